#!/usr/bin/env bash
# byzfl 0.0.11: Clipping and ARC change the caller's vectors, so rules that are called later see them clipped.
#
# One expects pre-aggregators to return new vectors, as NNM and Bucketing do, and as Clipping and ARC do for a
# list of vectors. For an array, or a tensor of float32, they write the clipped vectors into it. Whoever
# compares rules on the same vectors compares all but the first on clipped ones. Here the mean seems to
# withstand the attack if it is computed after Clipping. There is no warning. Pass a list, or a copy.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 scipy==1.17.1
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps byzfl==0.0.11

cat > "$folder/finding.py" <<'PYTHON'
import sys
from unittest.mock import MagicMock

import numpy as np
import torch

for name in ("torchvision", "matplotlib", "matplotlib.pyplot", "seaborn"):
    sys.modules[name] = MagicMock()  # large, and needed only by byzfl's benchmark

import byzfl

HONEST = np.random.default_rng(0).normal(size=(4, 3)) * 0.1 + 1.0
VECTORS = np.concatenate([HONEST, [[-1000.0] * 3]]).astype(np.float32)  # and an attacker

for form, copy in (
    ("list", lambda: list(VECTORS.copy())),
    ("array", lambda: VECTORS.copy()),
    ("tensor", lambda: torch.from_numpy(VECTORS.copy())),
):
    for rule in (byzfl.NNM(f=1), byzfl.Bucketing(s=2), byzfl.Clipping(c=2.0), byzfl.ARC(f=1)):
        vectors = copy()
        before = float(byzfl.Average()(vectors)[0])
        rule(vectors)
        after = float(byzfl.Average()(vectors)[0])
        print(f"{form}: mean {before:.1f}, after {type(rule).__name__} {after:.1f}")
PYTHON

cat > "$folder/seen" <<'SEEN'
list: mean -199.2, after NNM -199.2
list: mean -199.2, after Bucketing -199.2
list: mean -199.2, after Clipping -199.2
list: mean -199.2, after ARC -199.2
array: mean -199.2, after NNM -199.2
array: mean -199.2, after Bucketing -199.2
array: mean -199.2, after Clipping 0.6
array: mean -199.2, after ARC 0.6
tensor: mean -199.2, after NNM -199.2
tensor: mean -199.2, after Bucketing -199.2
tensor: mean -199.2, after Clipping 0.6
tensor: mean -199.2, after ARC 0.6
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
