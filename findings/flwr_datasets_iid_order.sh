#!/usr/bin/env bash
# flwr-datasets 0.6.1: IidPartitioner keeps the order of the data.
#
# One expects the partitions of an "IID partitioner" to be drawn at random. They are consecutive
# parts, so data that are sorted by label give clients of one class each. Shuffle the dataset first.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check flwr-datasets==0.6.1

cat > "$folder/finding.py" <<'PYTHON'
from datasets import Dataset
from flwr_datasets.partitioner import IidPartitioner

partitioner = IidPartitioner(num_partitions=2)
partitioner.dataset = Dataset.from_dict({"label": [0] * 5 + [1] * 5})
for number in range(2):
    print([*partitioner.load_partition(number)["label"]])
PYTHON

cat > "$folder/seen" <<'SEEN'
[0, 0, 0, 0, 0]
[1, 1, 1, 1, 1]
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
