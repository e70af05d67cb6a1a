#!/usr/bin/env bash
# torch 2.13.0: randn_like draws other numbers for an equal tensor whose memory is in another order.
#
# It is documented as equivalent to randn(input.size(), dtype=…, layout=…, device=…). So one expects two
# clients with the same seed to draw the same mask for equal weights. But it fills memory in its own order. If
# one client trains in channels_last, each number of its mask is at another place, and masks that should cancel
# in the server's sum stay in it. There is no warning. Call randn(weight.size()).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import torch

layer = torch.nn.Conv2d(3, 4, 3)
first = layer.weight.detach().clone()
second = layer.to(memory_format=torch.channels_last).weight.detach().clone()
print(f"weights are equal: {torch.equal(first, second)}")

WAYS = {
    "randn_like(weight)": torch.randn_like,
    "rand_like(weight)": torch.rand_like,
    "empty_like(weight).normal_()": lambda weight: torch.empty_like(weight).normal_(),
    "randn(weight.size(), …)": lambda weight: torch.randn(
        weight.size(), dtype=weight.dtype, layout=weight.layout, device=weight.device
    ),
}
for name, draw in WAYS.items():
    torch.manual_seed(7)
    mask = draw(first)
    torch.manual_seed(7)
    print(f"{name}: masks are equal: {torch.equal(mask, draw(second))}")
PYTHON

cat > "$folder/seen" <<'SEEN'
weights are equal: True
randn_like(weight): masks are equal: False
rand_like(weight): masks are equal: False
empty_like(weight).normal_(): masks are equal: False
randn(weight.size(), …): masks are equal: True
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
