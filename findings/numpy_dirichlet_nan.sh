#!/usr/bin/env bash
# numpy 2.4.6: np.random.dirichlet returns NaN for small alpha, Generator.dirichlet does not.
#
# Shares of classes are drawn from Dirichlet(alpha) to split data among clients, and alpha = 0.001 stands for
# one class per client. One expects shares that add up to 1. np.random.dirichlet and RandomState divide gamma
# numbers by their sum, and for such an alpha all of them can be too small for a float64, so that they divide
# 0 by 0. The fewer classes, the more often that happens. There is no warning. Use default_rng().dirichlet.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import warnings

import numpy as np

warnings.simplefilter("error")

DRAWS = 10_000

for classes in (2, 10, 100):
    for alpha in (0.01, 0.001, 0.0001):
        counts = {}
        for name, generator in (
            ("RandomState", np.random.RandomState(0)),
            ("default_rng", np.random.default_rng(0)),
        ):
            shares = generator.dirichlet(np.full(classes, alpha), DRAWS)
            counts[name] = int(np.isnan(shares).any(axis=1).sum())
        print(f"{classes} classes, alpha {alpha:g}: of {DRAWS} draws, NaN in {counts}")
PYTHON

cat > "$folder/seen" <<'SEEN'
2 classes, alpha 0.01: of 10000 draws, NaN in {'RandomState': 0, 'default_rng': 0}
2 classes, alpha 0.001: of 10000 draws, NaN in {'RandomState': 2496, 'default_rng': 0}
2 classes, alpha 0.0001: of 10000 draws, NaN in {'RandomState': 8713, 'default_rng': 0}
10 classes, alpha 0.01: of 10000 draws, NaN in {'RandomState': 0, 'default_rng': 0}
10 classes, alpha 0.001: of 10000 draws, NaN in {'RandomState': 5, 'default_rng': 0}
10 classes, alpha 0.0001: of 10000 draws, NaN in {'RandomState': 4907, 'default_rng': 0}
100 classes, alpha 0.01: of 10000 draws, NaN in {'RandomState': 0, 'default_rng': 0}
100 classes, alpha 0.001: of 10000 draws, NaN in {'RandomState': 0, 'default_rng': 0}
100 classes, alpha 0.0001: of 10000 draws, NaN in {'RandomState': 8, 'default_rng': 0}
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
