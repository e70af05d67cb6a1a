#!/usr/bin/env bash
# flwr 1.41.0: FedAdam returns float64 for a float32 model.
#
# FedAvg keeps float32, so one expects FedAdam to keep it. From round 1 on the model has twice the
# size, on the way down as well.
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


import numpy as np
from flwr.serverapp.strategy import FedAdam, FedAvg

for strategy in (FedAvg(), FedAdam()):
    strategy.current_arrays = {"0": np.zeros(3, np.float32)}  # as configure_train leaves it
    arrays, _ = strategy.aggregate_train(1, replies([[1.0, 2.0, 3.0]] * 3))
    print(type(strategy).__name__, arrays["0"].numpy().dtype)
PYTHON

cat > "$folder/seen" <<'SEEN'
FedAvg float32
FedAdam float64
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
