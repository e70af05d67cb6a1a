#!/usr/bin/env bash
# flwr 1.42.0: QFedAvg(q=0) is not FedAvg: it ignores how many examples clients have.
#
# Its docstring calls q = 0 equivalent to FedAvg, which weights each model by its number of examples, so
# one expects the same model. QFedAvg takes the plain mean: a client of 100 examples counts as much as
# one of 900. `weighted_by_key` acts on metrics alone.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check flwr==1.42.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import logging

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, QFedAvg
from flwr.supercore.task_identity import TaskIdentity

logging.getLogger("flwr").setLevel(logging.ERROR)
TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # as in a ServerApp


def reply(node: int, value: float, examples: int) -> Message:
    """Return the reply of a client, with a model of one weight."""
    arrays = ArrayRecord([np.asarray([value], np.float32)])
    metrics = MetricRecord({"num-examples": examples, "train_loss": 0.5})
    content = RecordDict({"arrays": arrays, "metrics": metrics})
    return Message(content, dst_node_id=node, message_type="train")


for strategy in (FedAvg(), QFedAvg(client_learning_rate=0.1, q=0.0)):
    strategy.current_arrays = ArrayRecord([np.zeros(1, np.float32)])  # as configure_train leaves it
    arrays, _ = strategy.aggregate_train(1, [reply(1, 1.0, 900), reply(2, 4.0, 100)])
    print(f"{type(strategy).__name__}: {arrays['0'].numpy()[0]:.2f}")
PYTHON

cat > "$folder/seen" <<'SEEN'
FedAvg: 1.30
QFedAvg: 2.50
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
