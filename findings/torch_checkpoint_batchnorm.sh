#!/usr/bin/env bash
# torch 2.13.0: with activation checkpointing, BatchNorm counts each batch twice.
#
# torch.utils.checkpoint saves memory: it computes a part of the model again in the backward pass. It restores
# the random state for that, and one expects the same model as without it. The weights are the same. But
# BatchNorm updates its running statistics in both passes, so that num_batches_tracked is doubled, momentum=0.1
# acts as 0.19, and the model predicts differently. If some clients need to save memory, their statistics do
# not fit those of the others. There is no warning. Keep BatchNorm out of the checkpoint, or give it a momentum
# of 1 - (1 - momentum) ** 0.5.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def train(checkpointed: bool, momentum: float) -> nn.Sequential:
    """Return a model trained on five batches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=momentum), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(5):
        x = 3 + torch.randn(64, 4)
        optimizer.zero_grad()
        hidden = checkpoint(model[:2], x, use_reentrant=False) if checkpointed else model[:2](x)
        (model[2](hidden) - x[:, :1]).square().mean().backward()
        optimizer.step()
    return model


x = 3 + torch.randn(1000, 4, generator=torch.Generator().manual_seed(1))
usual = train(checkpointed=False, momentum=0.1)
for name, other in (
    ("checkpointed", train(checkpointed=True, momentum=0.1)),
    ("not checkpointed, momentum=0.19", train(checkpointed=False, momentum=0.19)),
    ("checkpointed, momentum=0.05132", train(checkpointed=True, momentum=1 - 0.9**0.5)),
):
    parameters = zip(usual.parameters(), other.parameters(), strict=True)
    same = all(torch.equal(one, two) for one, two in parameters)
    ratio = (other[1].running_mean / usual[1].running_mean).mean().item()
    change = (other.eval()(x) - usual.eval()(x)).abs().mean().item()
    print(
        f"{name}: same weights: {same}, {other[1].num_batches_tracked} batches counted, "
        f"running means {ratio:.2f} times as large, predictions differ by {change:.2f}"
    )
PYTHON

cat > "$folder/seen" <<'SEEN'
checkpointed: same weights: True, 10 batches counted, running means 1.60 times as large, predictions differ by 0.13
not checkpointed, momentum=0.19: same weights: True, 5 batches counted, running means 1.60 times as large, predictions differ by 0.13
checkpointed, momentum=0.05132: same weights: True, 10 batches counted, running means 1.00 times as large, predictions differ by 0.00
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
