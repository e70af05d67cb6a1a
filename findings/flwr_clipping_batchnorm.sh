#!/usr/bin/env bash
# flwr 1.42.0: with BatchNorm, clipping scales each update to almost nothing: it counts batches as distance.
#
# One expects an update shorter than clipping_norm to pass unchanged. But its length is that of all arrays,
# and the state_dict() of a model with BatchNorm has num_batches_tracked among them. 100 local batches make
# each update 100 longer, so that clipping_norm=2.0 leaves a fiftieth of it, and the model hardly moves.
# There is no warning. Send the model without num_batches_tracked.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check flwr==1.42.0 torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import logging
from types import SimpleNamespace

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor, nn

logging.getLogger("flwr").setLevel(logging.ERROR)
TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # as in a ServerApp

GRID = SimpleNamespace(get_node_ids=lambda: [1, 2])
COUNTER = "1.num_batches_tracked"


def trained(state: dict[str, Tensor], batches: int) -> dict[str, Tensor]:
    """Return a client's model after local training from the server's."""
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    net.load_state_dict(state, strict=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1 / batches)
    generator = torch.Generator().manual_seed(0)
    for _ in range(batches):
        x = torch.randn(32, 2, generator=generator)
        optimizer.zero_grad()
        (net(x) - x.sum(dim=1, keepdim=True)).square().mean().backward()
        optimizer.step()
    return net.state_dict()


def moved(new: dict[str, Tensor], old: dict[str, Tensor]) -> float:
    """Return how far apart two models are, without the counter."""
    arrays = [(new[name] - old[name]).flatten() for name in old if name != COUNTER]
    return torch.cat(arrays).norm().item()


torch.manual_seed(0)
whole = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).state_dict()
whole = {name: tensor.clone() for name, tensor in whole.items()}

for sent in (whole.keys() - {COUNTER}, whole.keys()):
    for batches in (1, 10, 100):
        old = {name: tensor for name, tensor in whole.items() if name in sent}
        strategy = DifferentialPrivacyServerSideFixedClipping(
            FedAvg(), noise_multiplier=0.0, clipping_norm=2.0, num_sampled_clients=2
        )
        strategy.configure_train(1, ArrayRecord(old), ConfigRecord(), GRID)
        local = {name: tensor for name, tensor in trained(old, batches).items() if name in sent}
        content = {"arrays": ArrayRecord(local), "metrics": MetricRecord({"num-examples": 1})}
        replies = [
            Message(RecordDict(dict(content)), dst_node_id=node, message_type="train")
            for node in (1, 2)
        ]
        arrays, _ = strategy.aggregate_train(1, replies)
        new = arrays.to_torch_state_dict()
        print(
            f"{'state_dict()' if COUNTER in sent else 'without counter'}, batches={batches}: "
            f"clients move {moved(local, old):.2f}, the model moves {moved(new, old):.2f}"
        )
PYTHON

cat > "$folder/seen" <<'SEEN'
without counter, batches=1: clients move 0.78, the model moves 0.78
without counter, batches=10: clients move 1.02, the model moves 1.02
without counter, batches=100: clients move 1.53, the model moves 1.53
state_dict(), batches=1: clients move 0.78, the model moves 0.78
state_dict(), batches=10: clients move 1.02, the model moves 0.20
state_dict(), batches=100: clients move 1.53, the model moves 0.03
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
