#!/usr/bin/env bash
# flwr-datasets 0.6.1: DistributionPartitioner gives one client of each class about 100 examples too many.
#
# Its docstring says that shares are rounded to the nearest integer, and that one client gets what
# rounding leaves over. One expects a few examples, because errors of both signs cancel. But all shares
# are rounded down, which leaves about half an example for each of a class's 200 clients. This is the
# docstring's own setup, with as many examples of each class as in MNIST. A client whose share is 5 gets
# 101.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check flwr-datasets==0.6.1 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import numpy as np
from datasets import Dataset
from flwr_datasets.partitioner import DistributionPartitioner

MNIST = np.array([5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949])

weights = np.random.default_rng(2024).lognormal(0.0, 2.0, 2000).reshape(10, 200)
partitioner = DistributionPartitioner(
    distribution_array=weights,
    num_partitions=1000,
    num_unique_labels_per_partition=2,
    partition_by="label",
    preassigned_num_samples_per_label=5,
)
partitioner.dataset = Dataset.from_dict({"label": np.repeat(np.arange(10), MNIST)})
labels = [partitioner.load_partition(number)["label"] for number in range(1000)]
counts = np.array([np.bincount(client, minlength=10) for client in labels]).T

for number, (row, count) in enumerate(zip(weights, counts)):
    shares = 5 + row / row.sum() * (MNIST[number] - 1000)
    got = count[count > 0]  # in the order of the clients, as are the shares
    left = int(np.argmax(got - shares))
    off = abs(MNIST[number] - np.rint(shares).sum())
    print(
        f"class {number}: a client whose share is {shares[left]:.1f} gets {got[left]}, "
        f"the nearest integers are {off:.0f} off in all"
    )
PYTHON

cat > "$folder/seen" <<'SEEN'
class 0: a client whose share is 6.9 gets 97, the nearest integers are 6 off in all
class 1: a client whose share is 5.1 gets 98, the nearest integers are 9 off in all
class 2: a client whose share is 5.1 gets 101, the nearest integers are 1 off in all
class 3: a client whose share is 5.1 gets 97, the nearest integers are 4 off in all
class 4: a client whose share is 319.1 gets 414, the nearest integers are 1 off in all
class 5: a client whose share is 68.7 gets 158, the nearest integers are 8 off in all
class 6: a client whose share is 41.4 gets 138, the nearest integers are 1 off in all
class 7: a client whose share is 25.0 gets 117, the nearest integers are 2 off in all
class 8: a client whose share is 31.8 gets 130, the nearest integers are 1 off in all
class 9: a client whose share is 7.3 gets 107, the nearest integers are 1 off in all
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
