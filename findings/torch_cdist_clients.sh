#!/usr/bin/env bash
# torch 2.13.0: cdist of 25 models is right; of 26, many distances are 0, and others are far too large.
#
# It is documented as equivalent to SciPy's cdist, and as using a matrix product for more than 25 rows.
# One expects that to cost a few digits. But it subtracts the squared norms of whole models, which are
# far larger than the distances between clients that started from the same one. Grouping clients or
# looking for outliers among them sees only noise from 26 clients on. There is no warning. Pass updates,
# or compute_mode="donot_use_mm_for_euclid_dist".
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 scipy==1.17.1

cat > "$folder/finding.py" <<'PYTHON'
import torch
from scipy.spatial.distance import cdist

generator = torch.Generator().manual_seed(0)
server = torch.randn(10_000, generator=generator)


def compare(name: str, models: torch.Tensor) -> None:
    """Print how the distances of different models compare to SciPy's."""
    others = ~torch.eye(len(models), dtype=torch.bool)
    right = torch.from_numpy(cdist(models, models))[others]
    ratios = torch.cdist(models, models)[others] / right
    print(
        f"{len(models)} {name}: all within 1 %: {bool(((ratios - 1).abs() < 0.01).all())}, "
        f"over a third are 0: {bool((ratios == 0).double().mean() > 1 / 3)}, "
        f"some are over twice as large: {bool((ratios > 2).any())}"
    )


for clients in (25, 26):
    models = server + 1e-4 * torch.randn(clients, 10_000, generator=generator)
    compare("models", models)
    compare("updates", models - server)
PYTHON

cat > "$folder/seen" <<'SEEN'
25 models: all within 1 %: True, over a third are 0: False, some are over twice as large: False
25 updates: all within 1 %: True, over a third are 0: False, some are over twice as large: False
26 models: all within 1 %: False, over a third are 0: True, some are over twice as large: True
26 updates: all within 1 %: True, over a third are 0: False, some are over twice as large: False
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
