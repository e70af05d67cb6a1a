"""A client's memory between rounds, in its ``Context.state``."""

import numpy as np
from flwr.app import Context

from fedmedian.records import to_arrays, to_record
from fedmedian.steps.base import Memory
from fedmedian.wire.scalars import PREFIX


def recall(context: Context) -> Memory:
    """Return a client's memory.

    Parameters
    ----------
    context : Context
        The client's context.

    Returns
    -------
    dict of str to dict of str to array
        Arrays by step and name, copied so that they may be changed; empty at first.
    """
    return {
        key.removeprefix(PREFIX): {
            name: np.array(array) for name, array in to_arrays(record).items()
        }
        for key, record in context.state.array_records.items()
        if key.startswith(PREFIX)
    }


def remember(context: Context, memory: Memory) -> None:
    """Keep a client's memory until the next round.

    Parameters
    ----------
    context : Context
        The client's context.
    memory : dict of str to dict of str to array
        The memory: arrays by step and name.
    """
    records = {PREFIX + step: to_record(arrays) for step, arrays in memory.items()}
    # Converted first: if one cannot be stored, none is.
    for key, record in records.items():
        context.state[key] = record
