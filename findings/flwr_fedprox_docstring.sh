#!/usr/bin/env bash
# flwr 1.42.0: clients with the code in FedProx's docstring train as with FedAvg, whatever mu is.
#
# One expects a larger mu to keep a client's model closer to the global one. The docstring's copy of the
# global parameters is a generator, which the first batch uses up. In that batch the model still equals
# the global one, and in later ones nothing is left to compare with: the term is always 0, without a
# warning. As a list, the same copy makes mu work.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check flwr==1.42.0 torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import copy
import inspect
import re
from textwrap import dedent
from types import SimpleNamespace

import torch
from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp.strategy import FedProx

documented = re.findall(r"code:: python\n\n((?: {4}.*\n|\n)+)", inspect.getdoc(FedProx))
without_term, with_term, keep_global = map(dedent, documented)


def train(mu: float, *, as_list: bool) -> float:
    """Return the weight after ten batches that pull it from 0 to 1."""
    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(net.weight)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    ones = torch.ones(4, 1)
    message = SimpleNamespace(content=RecordDict({"config": ConfigRecord({"proximal-mu": mu})}))
    client = {"net": net, "criterion": torch.nn.MSELoss(), "inputs": ones, "labels": ones}
    client |= {"copy": copy, "msg": message}
    exec(keep_global, client)
    if as_list:
        client["global_params"] = list(client["global_params"])
    for _ in range(10):
        exec(with_term, client)
        optimizer.zero_grad()
        client["loss"].backward()
        optimizer.step()
    return net.weight.item()


for as_list in (False, True):
    for mu in (0.0, 1.0, 2.0):
        kept = "with a list" if as_list else "as documented"
        print(f"{kept}, mu={mu}: weight {train(mu, as_list=as_list):.2f}")
PYTHON

cat > "$folder/seen" <<'SEEN'
as documented, mu=0.0: weight 0.89
as documented, mu=1.0: weight 0.89
as documented, mu=2.0: weight 0.89
with a list, mu=0.0: weight 0.89
with a list, mu=1.0: weight 0.68
with a list, mu=2.0: weight 0.46
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
