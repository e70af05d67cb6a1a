#!/usr/bin/env bash
# keras 3.15.1: with the torch backend, train() does not turn on Dropout and BatchNormalization.
#
# With that backend a Keras model is a torch.nn.Module, whose train() one expects to act on dropout and batch
# normalization, as documented. It sets model.training to True, and Keras does not read that: a call without
# training=True is one for inference. So a client's usual loop in PyTorch trains without dropout, and its
# batch normalization neither normalizes batches nor learns their mean. There is no warning. Call
# model(x, training=True).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check keras==3.15.1 torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import os

os.environ["KERAS_BACKEND"] = "torch"

import keras
import torch

X = 5 + torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
MODELS = {
    "torch": torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5)),
    "keras": keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5, seed=0),
        ]
    ),
}


def report(name: str, training: bool | None = None) -> None:
    """Print what a model makes of data with a mean of 5."""
    model = MODELS[name].train()
    torch.manual_seed(0)
    output = model(X) if training is None else model(X, training=training)
    kept = output[output != 0]
    print(
        f"{name}, model.training={model.training}, call with training={training}: "
        f"drops half: {bool(len(kept) < 0.6 * output.numel())}, "
        f"normalizes: {bool(kept.mean().abs() < 1)}"
    )


report("torch")
report("keras", True)
report("keras")
PYTHON

cat > "$folder/seen" <<'SEEN'
torch, model.training=True, call with training=None: drops half: True, normalizes: True
keras, model.training=True, call with training=True: drops half: True, normalizes: True
keras, model.training=True, call with training=None: drops half: False, normalizes: False
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
