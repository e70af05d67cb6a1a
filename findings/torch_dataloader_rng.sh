#!/usr/bin/env bash
# torch 2.13.0: reading a DataLoader draws from the global generator even without shuffling or workers.
#
# The documentation says what random numbers are for: the order, and the seeds of workers. So one expects an
# evaluation, in order and in this process, to leave them alone. But each iterator draws a seed for workers
# that it does not have. A client that evaluates the server's model trains in another order afterwards than one
# with the same seed that does not. Pass a generator of its own to the evaluation's loader.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
from collections.abc import Callable

import torch
from torch.utils.data import DataLoader

EXAMPLES = torch.arange(6)


def without_loader() -> None:
    """Read the examples."""
    for example in EXAMPLES:
        example.item()


def with_loader() -> None:
    """Read the examples, in order and in this process."""
    for batch in DataLoader(EXAMPLES, shuffle=False, num_workers=0):
        batch.item()


def with_loader_and_generator() -> None:
    """Read the examples by a loader that has its own generator."""
    for batch in DataLoader(EXAMPLES, generator=torch.Generator()):
        batch.item()


def order(evaluate: Callable[[], None]) -> list[int]:
    """Return the order in which a client trains after its evaluation."""
    torch.manual_seed(0)
    evaluate()
    return [batch.item() for batch in DataLoader(EXAMPLES, shuffle=True)]


for evaluate in (without_loader, with_loader_and_generator, with_loader):
    print(f"evaluated {evaluate.__name__}: trains on {order(evaluate)}")
PYTHON

cat > "$folder/seen" <<'SEEN'
evaluated without_loader: trains on [0, 4, 3, 5, 2, 1]
evaluated with_loader_and_generator: trains on [0, 4, 3, 5, 2, 1]
evaluated with_loader: trains on [5, 0, 3, 2, 1, 4]
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
