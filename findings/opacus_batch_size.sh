#!/usr/bin/env bash
# opacus 1.6.0: its data loader's average batch can be half of the batch size, or all of the data.
#
# DPDataLoader replaces a loader, and documents that the average batch keeps its size. Its sample rate is
# one by the number of batches, which counts a last, partial batch as a full one: with 66 examples,
# batch_size=64 becomes 33. With drop_last=True 100 examples are one batch, so each step takes them all.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check opacus==1.6.0 torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import logging

import torch
from opacus.data_loader import DPDataLoader
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("opacus").setLevel(logging.ERROR)  # it warns that it ignores drop_last

for examples, drop_last in ((128, False), (100, False), (66, False), (100, True)):
    dataset = TensorDataset(torch.zeros(examples, 1))
    ordinary = DataLoader(dataset, batch_size=64, drop_last=drop_last)
    private = DPDataLoader.from_data_loader(ordinary, generator=torch.Generator().manual_seed(0))
    sizes = [len(batch) for _ in range(2000) for (batch,) in private]
    print(
        f"{examples} examples, batch_size=64, drop_last={drop_last}: "
        f"sample rate {private.sample_rate}, batches of {sum(sizes) / len(sizes):.0f} on average"
    )
PYTHON

cat > "$folder/seen" <<'SEEN'
128 examples, batch_size=64, drop_last=False: sample rate 0.5, batches of 64 on average
100 examples, batch_size=64, drop_last=False: sample rate 0.5, batches of 50 on average
66 examples, batch_size=64, drop_last=False: sample rate 0.5, batches of 33 on average
100 examples, batch_size=64, drop_last=True: sample rate 1.0, batches of 100 on average
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
