#!/usr/bin/env bash
# flwr 1.42.0: FedXgbCyclic(fraction_evaluate=0.0) says that it skips evaluation, and evaluates.
#
# It accepts 1.0 and 0.0, and for 0.0 it warns that evaluation will be skipped. One expects clients
# without data for evaluation to be left alone, as with FedAvg. But its evaluation reads only
# fraction_train. In every round it sends the model to a client and waits for the answer.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check flwr==1.42.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import logging
from types import SimpleNamespace

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAvg, FedXgbBagging, FedXgbCyclic
from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # as in a ServerApp

warned = []
log = logging.getLogger("flwr")
log.handlers = []
log.addFilter(lambda line: line.levelno >= logging.WARNING and warned.append(line.getMessage()))

grid = SimpleNamespace(get_node_ids=lambda: [1, 2, 3])
arrays = ArrayRecord([np.zeros(1, np.uint8)])

for strategy in (FedAvg, FedXgbBagging, FedXgbCyclic):
    skipping = strategy(fraction_evaluate=0.0)
    asked = [
        len([*skipping.configure_evaluate(number, arrays, ConfigRecord(), grid)])
        for number in (1, 2, 3)
    ]
    print(f"{strategy.__name__}: {warned.pop()} Clients asked in three rounds: {asked}")
PYTHON

cat > "$folder/seen" <<'SEEN'
FedAvg: fraction_evaluate is set to 0.0. Federated evaluation will be skipped. Clients asked in three rounds: [0, 0, 0]
FedXgbBagging: fraction_evaluate is set to 0.0. Federated evaluation will be skipped. Clients asked in three rounds: [0, 0, 0]
FedXgbCyclic: fraction_evaluate is set to 0.0. Federated evaluation will be skipped. Clients asked in three rounds: [1, 1, 1]
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
