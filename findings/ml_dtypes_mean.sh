#!/usr/bin/env bash
# ml_dtypes 0.6.0: np.mean of 1000 bfloat16 models of ones is a model of 0.256.
#
# np.mean is documented to compute float16 with float32 in between, "for extra precision", and one expects the
# same of bfloat16, or an error in the third digit. But it adds up in bfloat16, where 256 + 1 is 256: whatever
# comes after the first few hundred clients is lost, and the model shrinks. There is no warning. Pass
# dtype=np.float32.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ml_dtypes==0.6.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import ml_dtypes
import numpy as np

for clients in (200, 300, 1000):
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        models = np.ones((clients, 2), dtype)
        mean, right = np.mean(models, axis=0), np.mean(models, axis=0, dtype=np.float32)
        print(
            f"{clients} models of ones, {mean.dtype}: mean {mean.astype(float).round(3)[0]}, "
            f"with dtype=np.float32 {right[0]}"
        )
PYTHON

cat > "$folder/seen" <<'SEEN'
200 models of ones, float32: mean 1.0, with dtype=np.float32 1.0
200 models of ones, float16: mean 1.0, with dtype=np.float32 1.0
200 models of ones, bfloat16: mean 1.0, with dtype=np.float32 1.0
300 models of ones, float32: mean 1.0, with dtype=np.float32 1.0
300 models of ones, float16: mean 1.0, with dtype=np.float32 1.0
300 models of ones, bfloat16: mean 0.852, with dtype=np.float32 1.0
1000 models of ones, float32: mean 1.0, with dtype=np.float32 1.0
1000 models of ones, float16: mean 1.0, with dtype=np.float32 1.0
1000 models of ones, bfloat16: mean 0.256, with dtype=np.float32 1.0
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
