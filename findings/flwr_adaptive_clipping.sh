#!/usr/bin/env bash
# flwr 1.41.0: adaptive clipping moves away from its quantile.
#
# With target_clipped_quantile=0.5 one expects the clipping norm to rise while all updates are longer
# than it, and to fall while all are shorter, until half of them are clipped. It does the reverse: it
# counts the clipped updates where the paper that it cites (Andrew et al.) counts those that are not,
# and keeps the sign of the step.
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
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import DifferentialPrivacyServerSideAdaptiveClipping, FedAvg

for length in (10.0, 0.1):
    strategy = DifferentialPrivacyServerSideAdaptiveClipping(
        FedAvg(), noise_multiplier=0.0, num_sampled_clients=10, initial_clipping_norm=1.0
    )
    strategy.current_arrays = ArrayRecord([np.zeros(1, np.float32)])
    for number in range(1, 6):
        strategy.aggregate_train(number, replies([[length]] * 10))
    print(f"updates of norm {length}: clipping norm 1.0 becomes {strategy.clipping_norm:.2f}")
PYTHON

cat > "$folder/seen" <<'SEEN'
updates of norm 10.0: clipping norm 1.0 becomes 0.61
updates of norm 0.1: clipping norm 1.0 becomes 1.65
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
