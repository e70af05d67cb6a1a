#!/usr/bin/env bash
# torch 2.13.0: ReduceLROnPlateau mistakes a negative loss that gets worse for one that improves.
#
# One expects the learning rate to fall if the loss does not. With the default threshold_mode="rel" a loss
# counts as better if it is below 0.9999 times the best, as documented. If the best is -100, that is -99.99.
# So a constant loss is better in each epoch, one that rises slowly is, too, and the learning rate never
# falls. The same happens to a negative score with mode="max". Losses of GaussianNLLLoss, normalizing flows
# and negated scores are often negative. There is no warning. Pass threshold_mode="abs".
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
from typing import Literal

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau


def scheduled(
    start: float, step: float, mode: Literal["min", "max"], threshold_mode: Literal["rel", "abs"]
) -> tuple[float, float]:
    """Return the learning rate and the best value after 50 epochs."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = ReduceLROnPlateau(
        optimizer, mode, factor=0.1, patience=10, threshold_mode=threshold_mode
    )
    for epoch in range(50):
        schedule.step(start + step * epoch)
    return optimizer.param_groups[0]["lr"], schedule.best


for threshold_mode in ("abs", "rel"):
    for mode, worse in (("min", 0.001), ("max", -0.001)):
        for start in (100.0, -100.0):
            for step in (0.0, worse):
                end = start + 49 * step
                rate, best = scheduled(start, step, mode, threshold_mode)
                print(
                    f"{threshold_mode}, {mode}, from {start:.3f} to {end:.3f}: "
                    f"best {best:.3f}, learning rate {rate:.4f}"
                )
PYTHON

cat > "$folder/seen" <<'SEEN'
abs, min, from 100.000 to 100.000: best 100.000, learning rate 0.0001
abs, min, from 100.000 to 100.049: best 100.000, learning rate 0.0001
abs, min, from -100.000 to -100.000: best -100.000, learning rate 0.0001
abs, min, from -100.000 to -99.951: best -100.000, learning rate 0.0001
abs, max, from 100.000 to 100.000: best 100.000, learning rate 0.0001
abs, max, from 100.000 to 99.951: best 100.000, learning rate 0.0001
abs, max, from -100.000 to -100.000: best -100.000, learning rate 0.0001
abs, max, from -100.000 to -100.049: best -100.000, learning rate 0.0001
rel, min, from 100.000 to 100.000: best 100.000, learning rate 0.0001
rel, min, from 100.000 to 100.049: best 100.000, learning rate 0.0001
rel, min, from -100.000 to -100.000: best -100.000, learning rate 1.0000
rel, min, from -100.000 to -99.951: best -99.951, learning rate 1.0000
rel, max, from 100.000 to 100.000: best 100.000, learning rate 0.0001
rel, max, from 100.000 to 99.951: best 100.000, learning rate 0.0001
rel, max, from -100.000 to -100.000: best -100.000, learning rate 1.0000
rel, max, from -100.000 to -100.049: best -100.049, learning rate 1.0000
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
