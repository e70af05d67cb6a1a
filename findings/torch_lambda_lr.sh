#!/usr/bin/env bash
# torch 2.13.0: a new LambdaLR starts at the learning rate of the optimizer's first schedule.
#
# Its docstring says: "When last_epoch=-1, sets initial lr as lr." So one expects a client that sets the
# server's learning rate in its optimizer and makes a new schedule in each round to start there, and with
# CosineAnnealingLR it does. But the first schedule leaves initial_lr in the optimizer, and LambdaLR starts
# from that: each round has the learning rate of round 1. There is no warning. Set group["initial_lr"], too.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

SCHEDULES = {
    "CosineAnnealingLR": lambda optimizer: CosineAnnealingLR(optimizer, T_max=10),
    "LambdaLR": lambda optimizer: LambdaLR(optimizer, lambda epoch: 0.5**epoch),
}


def started(optimizer: torch.optim.Optimizer, name: str, lr: float) -> LRScheduler:
    """Start a round's schedule at the server's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    return SCHEDULES[name](optimizer)


for kept in (False, True):
    for name in SCHEDULES:
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        rounds = []
        for lr in (0.1, 0.01, 0.001):
            if not kept:
                optimizer = torch.optim.SGD([parameter], lr=0.1)
            schedule = started(optimizer, name, lr)
            rounds.append(f"{lr} starts at {schedule.get_last_lr()[0]}")
        optimizers = "one optimizer" if kept else "an optimizer per round"
        print(f"{name}, {optimizers}: {', '.join(rounds)}")
PYTHON

cat > "$folder/seen" <<'SEEN'
CosineAnnealingLR, an optimizer per round: 0.1 starts at 0.1, 0.01 starts at 0.01, 0.001 starts at 0.001
LambdaLR, an optimizer per round: 0.1 starts at 0.1, 0.01 starts at 0.01, 0.001 starts at 0.001
CosineAnnealingLR, one optimizer: 0.1 starts at 0.1, 0.01 starts at 0.01, 0.001 starts at 0.001
LambdaLR, one optimizer: 0.1 starts at 0.1, 0.01 starts at 0.1, 0.001 starts at 0.1
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
