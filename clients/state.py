"""Who a client is, and what it remembers between rounds."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context

from fedmedian.optimizers import State

_RECORD = "fedmedian"


def partition_of(context: Context) -> int:
    """Return the client's partition, or where it has none its node id.

    Parameters
    ----------
    context : Context
        The client's context.

    Returns
    -------
    int
        A number >= 0 that no other client of the run has.
    """
    return int(context.node_config.get("partition-id", context.node_id))


def recall(context: Context) -> State:
    """Return what the client has remembered, by name; empty at first.

    Parameters
    ----------
    context : Context
        The client's context.

    Returns
    -------
    dict of str to array
        Arrays that may be changed.
    """
    record = context.state.array_records.get(_RECORD, ArrayRecord())
    return {name: array.numpy().astype(np.float32) for name, array in record.items()}


def remember(context: Context, memory: State) -> None:
    """Keep arrays in ``context.state`` until the next round.

    Parameters
    ----------
    context : Context
        The client's context.
    memory : dict of str to array
        What to keep.
    """
    if memory:
        record = ArrayRecord({name: Array(array) for name, array in memory.items()})
        context.state[_RECORD] = record
