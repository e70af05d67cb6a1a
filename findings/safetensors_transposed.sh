#!/usr/bin/env bash
# safetensors 0.8.0: a transposed NumPy array comes back with its entries in another order.
#
# One expects the array that was saved, or an error as from safetensors.torch. The writer stores the
# buffer as it lies in memory beside the shape of the view. Pass np.ascontiguousarray(x).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import numpy as np
from safetensors.numpy import load, save

x = np.arange(6).reshape(2, 3).T
print("saved ", x.tolist())
print("loaded", load(save({"x": x}))["x"].tolist())
PYTHON

cat > "$folder/seen" <<'SEEN'
saved  [[0, 3], [1, 4], [2, 5]]
loaded [[0, 1], [2, 3], [4, 5]]
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
