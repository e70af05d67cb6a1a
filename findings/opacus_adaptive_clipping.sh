#!/usr/bin/env bash
# opacus 1.6.0: with BatchMemoryManager, adaptive clipping counts only the last part of each batch.
#
# BatchMemoryManager splits a batch to save memory, and its docstring says that until the last part
# zero_grad() keeps the sum of the gradients. One expects the same training as without it. The first step
# of the model is the same, the clipping bound is not: after each part zero_grad() forgets how many
# examples it had and how many were clipped. Here 48 of 64 are clipped, so that the bound must rise until
# half of them are. In parts of 16 it falls. And the noise for a count of 64 is added to a count of 16.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check opacus==1.6.0 torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import logging
import warnings

import torch
from opacus import PrivacyEngine
from opacus.utils.batch_memory_manager import BatchMemoryManager
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("opacus").setLevel(logging.ERROR)
warnings.simplefilter("ignore")  # of secure_mode, and of hooks on inputs without gradients

examples = torch.tensor([[10.0]] * 48 + [[0.1]] * 16)  # also their gradients

for size in (64, 32, 16):
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    model, optimizer, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        data_loader=DataLoader(TensorDataset(examples), batch_size=64),
        poisson_sampling=False,
        clipping="adaptive",
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        target_unclipped_quantile=0.5,
        clipbound_learning_rate=0.2,
        min_clipbound=0.01,
        max_clipbound=100.0,
        unclipped_num_std=0.001,
    )
    with BatchMemoryManager(
        data_loader=loader, max_physical_batch_size=size, optimizer=optimizer
    ) as parts:
        for (part,) in parts:
            model(part).mean().backward()
            optimizer.step()
            counted = optimizer.sample_size
            optimizer.zero_grad()
    weight = next(model.parameters()).item()
    print(
        f"parts of {size}: weight {weight:.3f}, {counted} of 64 examples counted, "
        f"clipping bound 1.00 becomes {optimizer.max_grad_norm:.2f}"
    )
PYTHON

cat > "$folder/seen" <<'SEEN'
parts of 64: weight -0.775, 64 of 64 examples counted, clipping bound 1.00 becomes 1.05
parts of 32: weight -0.775, 32 of 64 examples counted, clipping bound 1.00 becomes 1.00
parts of 16: weight -0.775, 16 of 64 examples counted, clipping bound 1.00 becomes 0.90
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
