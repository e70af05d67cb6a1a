"""Replies of clients to train, for findings about Flower's strategies: not a finding itself."""

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
