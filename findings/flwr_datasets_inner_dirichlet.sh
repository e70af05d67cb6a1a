#!/usr/bin/env bash
# flwr-datasets 0.6.1: InnerDirichletPartitioner loses the last class if the labels start at 1.
#
# `partition_by` names the column of labels, and one expects every class to be dealt out, as by
# DirichletPartitioner. The labels are taken to be 0, 1, …, number of classes − 1. Of labels 1, 2 and 3 it
# looks for 0, 1 and 2. No client gets an example of class 3. It warns only that the sizes do not add up
# to the whole dataset, which they are not meant to.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check flwr-datasets==0.6.1

cat > "$folder/finding.py" <<'PYTHON'
import warnings

from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner, InnerDirichletPartitioner

warnings.simplefilter("ignore")  # it warns that 3 × 50 is less than 300

for first in (0, 1):
    labels = [first + number % 3 for number in range(300)]
    for partitioner in (
        DirichletPartitioner(3, partition_by="label", alpha=100.0),
        InnerDirichletPartitioner([50] * 3, partition_by="label", alpha=100.0),
    ):
        partitioner.dataset = Dataset.from_dict({"label": labels})
        seen = [sorted({*partitioner.load_partition(number)["label"]}) for number in range(3)]
        print(f"labels {sorted({*labels})}, {type(partitioner).__name__}: clients have {seen}")
PYTHON

cat > "$folder/seen" <<'SEEN'
labels [0, 1, 2], DirichletPartitioner: clients have [[0, 1, 2], [0, 1, 2], [0, 1, 2]]
labels [0, 1, 2], InnerDirichletPartitioner: clients have [[0, 1, 2], [0, 1, 2], [0, 1, 2]]
labels [1, 2, 3], DirichletPartitioner: clients have [[1, 2, 3], [1, 2, 3], [1, 2, 3]]
labels [1, 2, 3], InnerDirichletPartitioner: clients have [[1, 2], [1, 2], [1, 2]]
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
