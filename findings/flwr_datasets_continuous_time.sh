#!/usr/bin/env bash
# flwr-datasets 0.6.1: ContinuousPartitioner(strictness=1) does not put Unix times in order.
#
# By its docstring it then strictly follows the ranking of a column, and one expects each client's
# examples to end before the next one's begin. But it reads the column as float32, which near today's
# Unix time has one number every 128 seconds. Examples of the same two minutes come in any order, on
# either side of a boundary. There is no warning. Partition by the time since the first example.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check flwr-datasets==0.6.1 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
from itertools import pairwise

import numpy as np
from datasets import Dataset
from flwr_datasets.partitioner import ContinuousPartitioner

HOUR = np.random.default_rng(0).permutation(3600)

for name, times in (
    ("seconds since the first example", HOUR),
    ("Unix time", HOUR + 1_790_000_000),
    ("Unix time in ms", 1000 * (HOUR + 1_790_000_000)),
):
    partitioner = ContinuousPartitioner(4, partition_by="time", strictness=1.0)
    partitioner.dataset = Dataset.from_dict({"time": times})
    clients = [np.array(partitioner.load_partition(number)["time"]) for number in range(4)]
    overlaps = sum(int(client.max() > following.min()) for client, following in pairwise(clients))
    print(
        f"{name}: {len({*times})} different, {len({*times.astype(np.float32)})} in float32, "
        f"{overlaps} of 3 clients end after the next one begins"
    )
PYTHON

cat > "$folder/seen" <<'SEEN'
seconds since the first example: 3600 different, 3600 in float32, 0 of 3 clients end after the next one begins
Unix time: 3600 different, 29 in float32, 3 of 3 clients end after the next one begins
Unix time in ms: 3600 different, 29 in float32, 3 of 3 clients end after the next one begins
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
