#!/usr/bin/env bash
# keras 3.15.1: with gradient_accumulation_steps, a client's step uses gradients of earlier rounds' models.
#
# A client of federated averaging calls set_weights with the server's model and then fit(). One expects all
# that it returns to come from that model. But if its batches are no multiple of the accumulation steps, the
# optimizer keeps the last gradients, and takes them for the first step of the next round, whatever the
# weights are by then. A client that is sent 0, where 1 is right, moves to -9. There is no warning. Compile the
# model again in each round, and use a number of batches that the steps divide.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check keras==3.15.1 torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import os

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np


def rounds(steps: int | None, batches: int, compile_again: bool) -> list[str]:
    """Return what a client returns in each round, and what it got from the server."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    x = np.ones((16 * batches, 1), np.float32)
    returned = []
    for number, server in enumerate((0.0, 100.0, 0.0, 100.0)):
        if number == 0 or compile_again:
            optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=steps)
            model.compile(optimizer, "mse")
        model.set_weights([np.full((1, 1), server, np.float32)])
        model.fit(x, x, batch_size=16, verbose=0)
        returned.append(f"{server:.0f} to {model.get_weights()[0].item():.1f}")
    return returned


for steps, batches, compile_again in (
    (None, 3, False),
    (2, 4, False),
    (2, 3, True),
    (2, 3, False),
    (4, 3, False),
):
    compiled = "in each round" if compile_again else "once"
    returned = ", ".join(rounds(steps, batches, compile_again))
    print(f"steps={steps}, {batches} batches, compiled {compiled}: {returned}")
PYTHON

cat > "$folder/seen" <<'SEEN'
steps=None, 3 batches, compiled once: 0 to 0.5, 100 to 51.7, 0 to 0.5, 100 to 51.7
steps=2, 4 batches, compiled once: 0 to 0.4, 100 to 64.4, 0 to 0.4, 100 to 64.4
steps=2, 3 batches, compiled in each round: 0 to 0.2, 100 to 80.2, 0 to 0.2, 100 to 80.2
steps=2, 3 batches, compiled once: 0 to 0.2, 100 to 72.3, 0 to 0.2, 100 to 72.3
steps=4, 3 batches, compiled once: 0 to 0.0, 100 to 95.2, 0 to -9.3, 100 to 85.7
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
