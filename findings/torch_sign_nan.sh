#!/usr/bin/env bash
# torch 2.13.0: sign() of NaN is 0, so a client whose gradient is NaN looks like one without a gradient.
#
# In NumPy the sign of NaN is NaN, and other functions of torch keep NaN, too. So one expects a client whose
# data has a missing value to show it. With SGD and Adam its weights become NaN. With Rprop, which takes
# signs, they stay as they were. A client that sends signs to the server sends zeros in each round, a valid
# vote that decides nothing. There is no warning. Call isfinite on gradients.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import numpy as np
import torch

X = torch.tensor([[1.0, 2.0, 3.0], [2.0, 1.0, float("nan")]])  # one value of a client is missing


def gradient() -> torch.nn.Linear:
    """Return a model with the gradient of the client's loss."""
    model = torch.nn.Linear(3, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    model(X).square().mean().backward()
    return model


model = gradient()
grad = model.weight.grad
print(f"gradient: {grad[0].tolist()}")
print(f"numpy.sign: {np.sign(grad.numpy())[0].tolist()}")
for name in ("sign", "abs", "round", "tanh"):
    print(f"torch.{name}: {getattr(torch, name)(grad)[0].tolist()}")

for optimizer in (torch.optim.SGD, torch.optim.Adam, torch.optim.Rprop):
    model = gradient()
    optimizer(model.parameters(), lr=0.1).step()
    print(f"weights after a step of {optimizer.__name__}: {model.weight[0].tolist()}")
PYTHON

cat > "$folder/seen" <<'SEEN'
gradient: [nan, nan, nan]
numpy.sign: [nan, nan, nan]
torch.sign: [0.0, 0.0, 0.0]
torch.abs: [nan, nan, nan]
torch.round: [nan, nan, nan]
torch.tanh: [nan, nan, nan]
weights after a step of SGD: [nan, nan, nan]
weights after a step of Adam: [nan, nan, nan]
weights after a step of Rprop: [1.0, 1.0, 1.0]
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
