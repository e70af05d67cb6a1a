#!/usr/bin/env bash
# torchmetrics 1.9.0: compute() after merge_state returns the value from before the merge.
#
# merge_state adds another metric's counts to a metric's own, and one expects compute() to use the sum. But
# compute() keeps its result until update() or reset(), and merge_state is neither. A server that merges
# the clients' metrics and logs the accuracy after each gets the first client's every time. The counts are
# right, and there is no warning. Construct the metrics with compute_with_cache=False.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import torch
from torchmetrics.classification import BinaryAccuracy


def client(right: int, examples: int, cache: bool) -> BinaryAccuracy:
    """Return a client's metric after its evaluation."""
    metric = BinaryAccuracy(compute_with_cache=cache)
    metric.update(torch.ones(examples), (torch.arange(examples) < right).int())
    return metric


def report(metric: BinaryAccuracy) -> str:
    """Return the counts of a metric, and what it makes of them."""
    right, wrong = metric.tp.item(), metric.fp.item()
    return f"{right} of {right + wrong} right, compute() returns {metric.compute().item():.2f}"


for cache in (False, True):
    merged, *others = [client(*counts, cache) for counts in ((9, 10), (10, 90), (21, 100))]
    print(f"compute_with_cache={cache}, 1 client: {report(merged)}")
    for clients, other in enumerate(others, 2):
        merged.merge_state(other)
        print(f"compute_with_cache={cache}, {clients} clients: {report(merged)}")
PYTHON

cat > "$folder/seen" <<'SEEN'
compute_with_cache=False, 1 client: 9 of 10 right, compute() returns 0.90
compute_with_cache=False, 2 clients: 19 of 100 right, compute() returns 0.19
compute_with_cache=False, 3 clients: 40 of 200 right, compute() returns 0.20
compute_with_cache=True, 1 client: 9 of 10 right, compute() returns 0.90
compute_with_cache=True, 2 clients: 19 of 100 right, compute() returns 0.90
compute_with_cache=True, 3 clients: 40 of 200 right, compute() returns 0.90
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
