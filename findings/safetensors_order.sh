#!/usr/bin/env bash
# safetensors 0.8.0: load() returns the layers in random order, and load_file() in that of their names.
#
# save() takes a dict and load() returns one. One expects the order to last, as in np.savez, and a client to be
# able to zip() the arrays with its parameters. But load_file() sorts names, so that layer10 comes before
# layer2, and load() returns another order in each call, for the same bytes. Where shapes agree, layers are
# mixed up without an error. Go by the names.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import tempfile

import numpy as np
from safetensors.numpy import load, load_file, save, save_file

model = {f"layer{number}": np.full(2, number, np.float32) for number in (0, 1, 2, 10)}
print(f"saved: {list(model)}")

with tempfile.TemporaryDirectory() as folder:
    np.savez(f"{folder}/model.npz", **model)
    print(f"NumPy: {list(np.load(f'{folder}/model.npz'))}")
    save_file(model, f"{folder}/model.safetensors")
    print(f"safetensors, load_file: {list(load_file(f'{folder}/model.safetensors'))}")

data = save(model)
orders = {tuple(load(data)) for _ in range(1000)}
print(f"safetensors, load of the same bytes 1000 times: over 20 orders: {len(orders) > 20}")
PYTHON

cat > "$folder/seen" <<'SEEN'
saved: ['layer0', 'layer1', 'layer2', 'layer10']
NumPy: ['layer0', 'layer1', 'layer2', 'layer10']
safetensors, load_file: ['layer0', 'layer1', 'layer10', 'layer2']
safetensors, load of the same bytes 1000 times: over 20 orders: True
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
