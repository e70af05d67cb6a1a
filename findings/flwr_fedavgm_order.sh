#!/usr/bin/env bash
# flwr 1.42.0: FedAvgM mixes up the arrays of clients that reply in another order than the model's.
#
# FedAvg averages arrays of the same name, whatever their order, and one expects the same of its subclass
# FedAvgM. But it subtracts the average's first array from the model's first, and so on. A client whose
# model has been in a safetensors file replies in another order. Here clients return the model that they
# got, so it must not change. Arrays of different shapes are broadcast, or fail. There is no warning.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    flwr==1.42.0 safetensors==0.8.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import logging
from types import SimpleNamespace

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM
from flwr.supercore.task_identity import TaskIdentity
from safetensors.numpy import load, save

logging.getLogger("flwr").setLevel(logging.ERROR)
TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # as in a ServerApp

GRID = SimpleNamespace(get_node_ids=lambda: [1, 2])
MODEL = {"encoder": np.float32([1.0]), "decoder": np.float32([5.0])}
FROM_FILE = load(save(MODEL))


def record(model: dict[str, np.ndarray]) -> ArrayRecord:
    """Return a model as it is sent."""
    return ArrayRecord({name: Array(array) for name, array in model.items()})


for strategy in (FedAvg(), FedAdam(), FedAvgM(server_learning_rate=0.5)):
    for returned in (MODEL, FROM_FILE):
        strategy.configure_train(1, record(MODEL), ConfigRecord(), GRID)
        metrics = MetricRecord({"num-examples": 1})
        replies = [
            Message(
                RecordDict({"arrays": record(returned), "metrics": metrics}),
                dst_node_id=node,
                message_type="train",
            )
            for node in (1, 2)
        ]
        arrays, _ = strategy.aggregate_train(1, replies)
        print(
            f"{type(strategy).__name__}, clients return {[*returned]}: "
            f"encoder {arrays['encoder'].numpy()[0]}, decoder {arrays['decoder'].numpy()[0]}"
        )
PYTHON

cat > "$folder/seen" <<'SEEN'
FedAvg, clients return ['encoder', 'decoder']: encoder 1.0, decoder 5.0
FedAvg, clients return ['decoder', 'encoder']: encoder 1.0, decoder 5.0
FedAdam, clients return ['encoder', 'decoder']: encoder 1.0, decoder 5.0
FedAdam, clients return ['decoder', 'encoder']: encoder 1.0, decoder 5.0
FedAvgM, clients return ['encoder', 'decoder']: encoder 1.0, decoder 5.0
FedAvgM, clients return ['decoder', 'encoder']: encoder 3.0, decoder 3.0
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
