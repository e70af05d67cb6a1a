#!/usr/bin/env bash
# opacus 1.6.0: a convolution with padding_mode="reflect" gets the gradient of one that pads with zeros.
#
# Opacus computes each example's gradient itself, and one expects that without noise and clipping they add up
# to PyTorch's. ModuleValidator finds no errors. But for a convolution's weights Opacus pads with zeros,
# whatever its padding_mode is, while the model predicts with that mode. At the borders of a small image the
# gradient is off by 30 to 41 %. There is no warning. Pass grad_sample_mode="functorch" to make_private.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check opacus==1.6.0 torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import warnings

import torch
from opacus import PrivacyEngine
from opacus.validators import ModuleValidator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

warnings.simplefilter("ignore")  # about the random numbers of the noise; there is none
X = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = X.flatten(1)[:, :2]


def network(padding_mode: str) -> nn.Module:
    """Return a network, with the same weights in each call."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(1, 4, 3, padding=1, padding_mode=padding_mode)
    return nn.Sequential(convolution, nn.Tanh(), nn.Flatten(), nn.Linear(256, 2))


def gradient(padding_mode: str, grad_sample_mode: str | None) -> torch.Tensor:
    """Return the gradient of the convolution's weights, by Opacus if there is a mode."""
    model = network(padding_mode)
    weight = model[0].weight
    if grad_sample_mode:
        model, optimizer, _ = PrivacyEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(TensorDataset(X, Y), batch_size=16),
            noise_multiplier=0.0,
            max_grad_norm=1e6,
            poisson_sampling=False,
            grad_sample_mode=grad_sample_mode,
        )
    nn.functional.mse_loss(model(X), Y).backward()
    if grad_sample_mode:
        optimizer.pre_step()
    return weight.grad


for padding_mode in ("zeros", "reflect", "replicate", "circular"):
    errors = len(ModuleValidator.validate(network(padding_mode)))
    right = gradient(padding_mode, None)
    for mode in ("functorch", "hooks"):
        off = (gradient(padding_mode, mode) - right).norm() / right.norm()
        print(f"{padding_mode}, {mode}: {errors} errors, the gradient is off by {off:.0%}")
PYTHON

cat > "$folder/seen" <<'SEEN'
zeros, functorch: 0 errors, the gradient is off by 0%
zeros, hooks: 0 errors, the gradient is off by 0%
reflect, functorch: 0 errors, the gradient is off by 0%
reflect, hooks: 0 errors, the gradient is off by 41%
replicate, functorch: 0 errors, the gradient is off by 0%
replicate, hooks: 0 errors, the gradient is off by 30%
circular, functorch: 0 errors, the gradient is off by 0%
circular, hooks: 0 errors, the gradient is off by 30%
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
