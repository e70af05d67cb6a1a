"""Who a client is, what it remembers between rounds, and how it answers with both."""

from dataclasses import replace

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from numpy.typing import NDArray

from fedmedian.layout import Arrays, Layout
from fedmedian.optimizers import State
from fedmedian.perturbation import perturb_update
from fedmedian.randomness import client_rng
from fedmedian.wire import Instruction, Payload

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


def answer(
    context: Context,
    instruction: Instruction,
    layout: Layout,
    update: NDArray[np.float32],
    after: Arrays,
) -> Payload:
    """Answer an instruction as this client, with its own noise and memory.

    Parameters
    ----------
    context : Context
        The client's context; what is remembered in it is updated.
    instruction : Instruction
        What the server asks for.
    layout : Layout
        The model's layout.
    update : (d,) float32
        The update. It is overwritten.
    after : mapping of str to array
        The model after training, for its dense arrays.

    Returns
    -------
    Payload
        The answer, with the client's partition if it has one.

    Raises
    ------
    UpdateError, WireError
        See `fedmedian.perturbation.perturb_update`.
    """
    rng = client_rng(instruction.seed, partition_of(context), instruction.server_round)
    memory = recall(context)
    payload = perturb_update(instruction, layout, update, after, rng, memory)
    remember(context, memory)
    # A node id stands in for the noise, but is no partition and may exceed a record's integers.
    named = "partition-id" in context.node_config
    return replace(payload, partition=partition_of(context) if named else None)
