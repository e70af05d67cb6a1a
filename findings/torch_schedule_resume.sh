#!/usr/bin/env bash
# torch 2.13.0: a schedule that resumes with last_epoch takes one step from the first learning rate.
#
# last_epoch is for resuming, and needs initial_lr in the optimizer. A client that makes a new optimizer in
# each round passes both, and one expects the learning rate of that round. LambdaLR and
# CosineAnnealingWarmRestarts return it. The others multiply the optimizer's current learning rate, which
# for a new optimizer is the first. So the learning rate does not change from round to round, except that
# the end of a warm-up from a half doubles it. There is no warning. Use LambdaLR.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
from collections.abc import Callable

import torch
from torch.optim import SGD, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

ROUNDS = 100
Schedule = Callable[[SGD, int], LRScheduler]


def optimizer() -> SGD:
    """Return an optimizer as a schedule leaves it, except for the learning rate."""
    weight = torch.nn.Parameter(torch.zeros(1))
    return SGD([{"params": [weight], "initial_lr": 1.0}], lr=1.0)


def at_once(schedule: Schedule) -> list[float]:
    """Return the learning rate of each round with one optimizer."""
    kept = optimizer()
    steps, rates = schedule(kept, -1), []
    for _ in range(ROUNDS):
        rates.append(kept.param_groups[0]["lr"])
        kept.step()
        steps.step()
    return rates


def anew(schedule: Schedule, number: int) -> float:
    """Return the learning rate of a round with an optimizer of its own."""
    fresh = optimizer()
    schedule(fresh, number - 1)
    return fresh.param_groups[0]["lr"]


SCHEDULES: dict[str, Schedule] = {
    "LambdaLR": lambda o, last: lr_scheduler.LambdaLR(o, lambda n: 0.97**n, last),
    "CosineAnnealingWarmRestarts": lambda o, last: lr_scheduler.CosineAnnealingWarmRestarts(
        o, ROUNDS, last_epoch=last
    ),
    "CosineAnnealingLR": lambda o, last: lr_scheduler.CosineAnnealingLR(o, ROUNDS, 0.0, last),
    "ExponentialLR": lambda o, last: lr_scheduler.ExponentialLR(o, 0.97, last),
    "StepLR": lambda o, last: lr_scheduler.StepLR(o, 30, 0.1, last),
    "LinearLR": lambda o, last: lr_scheduler.LinearLR(o, 0.5, 1.0, 10, last),
    "ConstantLR": lambda o, last: lr_scheduler.ConstantLR(o, 0.5, 10, last),
}
for name, schedule in SCHEDULES.items():
    kept = at_once(schedule)
    compared = ", ".join(f"{kept[n]:.2f} / {anew(schedule, n):.2f}" for n in (5, 10, 50, 90))
    print(f"{name}: {compared}")
PYTHON

cat > "$folder/seen" <<'SEEN'
LambdaLR: 0.86 / 0.86, 0.74 / 0.74, 0.22 / 0.22, 0.06 / 0.06
CosineAnnealingWarmRestarts: 0.99 / 0.99, 0.98 / 0.98, 0.50 / 0.50, 0.02 / 0.02
CosineAnnealingLR: 0.99 / 1.00, 0.98 / 1.00, 0.50 / 1.00, 0.02 / 1.00
ExponentialLR: 0.86 / 1.00, 0.74 / 1.00, 0.22 / 1.00, 0.06 / 1.00
StepLR: 1.00 / 1.00, 1.00 / 1.00, 0.10 / 1.00, 0.00 / 0.10
LinearLR: 0.75 / 1.00, 1.00 / 1.00, 1.00 / 1.00, 1.00 / 1.00
ConstantLR: 0.50 / 1.00, 1.00 / 2.00, 1.00 / 1.00, 1.00 / 1.00
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
