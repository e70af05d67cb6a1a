#!/usr/bin/env bash
# opacus 1.6.0: accountants that load the same state_dict count each other's steps.
#
# state_dict() returns a copy, and one expects load_state_dict() to make one too, as that of a PyTorch
# module does. But it keeps the dict's own list, which step() then changes. Three clients that resume
# after the server's 100 steps, and take 100 more each, all report the ε of 400. The saved state now has
# 400, too, and the next accountant to load it starts from there. There is no warning. Pass
# copy.deepcopy(state).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check opacus==1.6.0 torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import copy
import warnings

from opacus.accountants import RDPAccountant

warnings.simplefilter("ignore")  # about the orders that it searched


def train(accountant: RDPAccountant) -> None:
    """Count 100 steps."""
    for _ in range(100):
        accountant.step(noise_multiplier=1.0, sample_rate=0.05)


def steps(history: list[tuple[float, float, int]]) -> int:
    """Return the number of steps in a history."""
    return sum(number for _, _, number in history)


for copied in (True, False):
    server = RDPAccountant()
    train(server)
    state = server.state_dict()
    clients = [RDPAccountant() for _ in range(3)]
    for client in clients:
        client.load_state_dict(copy.deepcopy(state) if copied else state)
    for client in clients:
        train(client)
    print(
        f"{'copies' if copied else 'one state'}: clients count {[steps(c.history) for c in clients]} "
        f"steps, ε {[round(c.get_epsilon(1e-5), 2) for c in clients]}, "
        f"the state has {steps(state['history'])}"
    )
PYTHON

cat > "$folder/seen" <<'SEEN'
copies: clients count [200, 200, 200] steps, ε [5.37, 5.37, 5.37], the state has 100
one state: clients count [400, 400, 400] steps, ε [7.42, 7.42, 7.42], the state has 400
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
