#!/usr/bin/env bash
# torch 2.13.0: with autocast around the training loop, all batches see the weights of the first.
#
# The documentation says to wrap forward passes alone, as backward passes need no autocast. One expects a
# wider block to be no worse, or less exact. But autocast keeps the bfloat16 copy that it makes of each weight
# until the block ends, and the optimizer does not update copies. Each step takes the gradient of the start,
# so the loss stays constant, and the weights run far past where they should be. There is no warning.
# Open autocast for each forward pass, or pass cache_enabled=False.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
from contextlib import nullcontext

import torch

torch.manual_seed(0)
X = torch.randn(256, 4)
Y = X.sum(dim=1, keepdim=True)


def train(around: str, cache: bool) -> tuple[list[float], float]:
    """Return the loss at steps 1, 21, 41, …, and the mean weight in the end."""

    def autocast(place: str) -> torch.autocast | nullcontext:
        if place != around:
            return nullcontext()
        return torch.autocast("cpu", torch.bfloat16, cache_enabled=cache)

    model = torch.nn.Linear(4, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    with autocast("training loop"):
        for _ in range(100):
            optimizer.zero_grad()
            with autocast("forward pass"):
                predicted = model(X)
            loss = (predicted.float() - Y).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses[::20], model.weight.mean().item()


for around, cache in (("forward pass", True), ("training loop", False), ("training loop", True)):
    losses, weight = train(around, cache)
    print(
        f"around the {around}, cache_enabled={cache}: loss {[round(loss, 1) for loss in losses]}, "
        f"weights {weight:.0f}"
    )
PYTHON

cat > "$folder/seen" <<'SEEN'
around the forward pass, cache_enabled=True: loss [4.0, 0.1, 0.0, 0.0, 0.0], weights 1
around the training loop, cache_enabled=False: loss [4.0, 0.1, 0.0, 0.0, 0.0], weights 1
around the training loop, cache_enabled=True: loss [4.0, 4.0, 4.0, 4.0, 4.0], weights 10
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
