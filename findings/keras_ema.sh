#!/usr/bin/env bash
# keras 3.15.1: with use_ema=True, a client returns mostly its own past, whatever weights it was given.
#
# A client of federated averaging calls set_weights with the server's model and then fit(). One expects the
# result to start from there, as it does without use_ema. But at its end fit() replaces the weights by their
# moving average, which the optimizer keeps from all earlier rounds, and set_weights does not touch. With a
# momentum of 0.9 and two batches a round, four fifths of what the client returns is its own past. There is
# no warning. Compile the model again in each round.
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


def rounds(use_ema: bool, compile_again: bool) -> list[str]:
    """Return what a client returns in each round, and what it got from the server."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    x = np.ones((32, 1), np.float32)
    returned = []
    for number, server in enumerate((0.0, 100.0, 0.0, 100.0)):
        if number == 0 or compile_again:
            optimizer = keras.optimizers.SGD(0.01, use_ema=use_ema, ema_momentum=0.9)
            model.compile(optimizer, "mse")
        model.set_weights([np.full((1, 1), server, np.float32)])
        model.fit(x, x, batch_size=16, verbose=0)
        returned.append(f"{server:.0f} to {model.get_weights()[0].item():.0f}")
    return returned


for use_ema, compile_again in ((False, False), (True, True), (True, False)):
    compiled = "in each round" if compile_again else "once"
    print(f"use_ema={use_ema}, compiled {compiled}: {', '.join(rounds(use_ema, compile_again))}")
PYTHON

cat > "$folder/seen" <<'SEEN'
use_ema=False, compiled once: 0 to 0, 100 to 96, 0 to 0, 100 to 96
use_ema=True, compiled in each round: 0 to 0, 100 to 98, 0 to 0, 100 to 98
use_ema=True, compiled once: 0 to 0, 100 to 18, 0 to 15, 100 to 31
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
