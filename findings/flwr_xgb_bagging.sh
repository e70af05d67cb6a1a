#!/usr/bin/env bash
# flwr 1.42.0: FedXgbBagging keeps one tree of each client and round, however many the client trained.
#
# A client of Flower's XGBoost quickstart sends the trees of all its local rounds, as many as local-epochs
# says, and one expects the model to get them. The strategy takes as many trees as num_parallel_tree says,
# which is 1 except for random forests. It keeps a client's first tree and drops the later ones, which
# correct it, without a warning. Only the first client of round 1 keeps all, as there is no model yet.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    flwr==1.42.0 xgboost-cpu==3.2.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import logging

import numpy as np
import xgboost
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedXgbBagging
from flwr.supercore.task_identity import TaskIdentity

logging.getLogger("flwr").setLevel(logging.ERROR)
TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # as in a ServerApp

x = np.random.default_rng(0).normal(size=(200, 3))
y = x @ [1.0, 2.0, 3.0]
data = [xgboost.DMatrix(x[half], y[half]) for half in (slice(100), slice(100, 200))]


def trees(model: bytes) -> int:
    """Return the number of trees of a model, 0 before the first round."""
    return xgboost.Booster(model_file=bytearray(model)).num_boosted_rounds() if model else 0


def reply(node: int, model: bytes, local_rounds: int) -> Message:
    """Return the reply of a client: the trees that it added to the model."""
    start = xgboost.Booster(model_file=bytearray(model)) if model else None
    local = xgboost.train({"nthread": 1}, data[node - 1], local_rounds, xgb_model=start)
    added = local[trees(model) :].save_raw("json")
    arrays = ArrayRecord([np.frombuffer(added, np.uint8)])
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 100})})
    return Message(content, dst_node_id=node, message_type="train")


for local_rounds in (1, 5):
    strategy = FedXgbBagging()
    model = b""
    for number in (1, 2, 3):
        strategy.current_bst = model  # as configure_train leaves it
        replies = [reply(node, model, local_rounds) for node in (1, 2)]
        sent = [trees(message.content["arrays"]["0"].numpy().tobytes()) for message in replies]
        arrays, _ = strategy.aggregate_train(number, replies)
        before, model = model, arrays["0"].numpy().tobytes()
        kept = trees(model) - trees(before)
        print(f"{local_rounds} local rounds, round {number}: clients send {sent} trees, {kept} kept")
PYTHON

cat > "$folder/seen" <<'SEEN'
1 local rounds, round 1: clients send [1, 1] trees, 2 kept
1 local rounds, round 2: clients send [1, 1] trees, 2 kept
1 local rounds, round 3: clients send [1, 1] trees, 2 kept
5 local rounds, round 1: clients send [5, 5] trees, 6 kept
5 local rounds, round 2: clients send [5, 5] trees, 2 kept
5 local rounds, round 3: clients send [5, 5] trees, 2 kept
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
