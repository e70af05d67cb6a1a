#!/usr/bin/env bash
# flwr 1.42.0: central privacy adds noise for a plain mean to FedAvg's weighted one.
#
# noise_multiplier is documented as that of the Gaussian mechanism: how large the noise is, compared with how
# far one client can move the model. The noise is clipping_norm over the number of clients, times that. But
# FedAvg weights clients by their examples. One that has 91 % of them moves the model nine times as far as that,
# and is protected by a multiplier of 0.1 where 1.0 was given. There is no warning: unequal weights are an error
# only with accountant=. Have clients report the same number of examples.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check flwr==1.42.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import logging
from types import SimpleNamespace

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from flwr.supercore.task_identity import TaskIdentity

logging.getLogger("flwr").setLevel(logging.ERROR)
TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # as in a ServerApp

CLIENTS = range(10)
GRID = SimpleNamespace(get_node_ids=lambda: [*CLIENTS])


def aggregated(examples: list[int], moved: bool, noise_multiplier: float) -> np.ndarray:
    """Return the new model if the first client moves its model, or not."""
    strategy = DifferentialPrivacyServerSideFixedClipping(
        FedAvg(), noise_multiplier, clipping_norm=1.0, num_sampled_clients=len(CLIENTS)
    )
    strategy.configure_train(1, ArrayRecord([np.zeros(10_000)]), ConfigRecord(), GRID)
    replies = []
    for client in CLIENTS:
        model = np.full(10_000, 1e-6)  # all clients move a little
        if client == 0 and moved:
            model[0] = 1.0
        metrics = MetricRecord({"num-examples": examples[client]})
        content = RecordDict({"arrays": ArrayRecord([model]), "metrics": metrics})
        replies.append(Message(content, dst_node_id=client, message_type="train"))
    arrays, _ = strategy.aggregate_train(1, replies)
    return arrays["0"].numpy()


for examples in ([100] * 10, [910] + [10] * 9):
    distance = np.linalg.norm(aggregated(examples, True, 0.0) - aggregated(examples, False, 0.0))
    noise = aggregated(examples, False, 1.0).std()
    print(
        f"first client has {examples[0] / sum(examples):.0%} of the examples: it moves the model "
        f"by {distance:.2f}, noise {noise:.2f}, noise multiplier {noise / distance:.1f}"
    )
PYTHON

cat > "$folder/seen" <<'SEEN'
first client has 10% of the examples: it moves the model by 0.10, noise 0.10, noise multiplier 1.0
first client has 91% of the examples: it moves the model by 0.91, noise 0.10, noise multiplier 0.1
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
