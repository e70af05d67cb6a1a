#!/usr/bin/env bash
# flwr 1.41.0: FedTrimmedAvg(beta=0.1) of fewer than ten clients is the mean.
#
# One expects a tenth at each end to be cut, and so at least the one outlier among nine. The number of
# clients is rounded down to none, without a warning, and one client decides.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check flwr==1.41.0

cat > "$folder/finding.py" <<'PYTHON'
import logging
from collections.abc import Sequence

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

logging.getLogger("flwr").setLevel(logging.ERROR)
TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # as in a ServerApp


def replies(values: Sequence[Sequence[float]]) -> list[Message]:
    """Return one reply per client, with one float32 array and one example."""
    return [
        Message(
            RecordDict(
                {
                    "arrays": ArrayRecord([np.asarray(value, np.float32)]),
                    "metrics": MetricRecord({"num-examples": 1}),
                }
            ),
            dst_node_id=node,
            message_type="train",
        )
        for node, value in enumerate(values, 1)
    ]


from flwr.serverapp.strategy import FedTrimmedAvg

for clients in (9, 10):
    values = [[1.0]] * (clients - 1) + [[1000.0]]
    arrays, _ = FedTrimmedAvg(beta=0.1).aggregate_train(1, replies(values))
    print(f"{clients} clients, one at 1000, the others at 1: {arrays['0'].numpy()[0]:.0f}")
PYTHON

cat > "$folder/seen" <<'SEEN'
9 clients, one at 1000, the others at 1: 112
10 clients, one at 1000, the others at 1: 1
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
