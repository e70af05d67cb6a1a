"""A client's answer to an instruction, with its noise and its memory."""

import re
from contextlib import nullcontext
from dataclasses import replace

from flwr.app import Context

from fedmedian.clients.memory import recall, remember
from fedmedian.logs import warned_of
from fedmedian.model.blocks import Read
from fedmedian.model.layout import Arrays, Layout
from fedmedian.randomness import client_rng, secret_rng
from fedmedian.steps.instruction import Instruction, perturb_update
from fedmedian.steps.payload import Payload
from fedmedian.wire.scalars import Float32

_NUMBER = re.compile("[0-9]{1,19}")
"""A partition's number, of as many digits as the largest integer of a record."""


def answer(
    context: Context,
    instruction: Instruction,
    layout: Layout,
    update: Float32 | Read,
    after: Arrays,
    *,
    clip: float | None = None,
    held: str | None = None,
) -> Payload:
    """Answer an instruction as this client.

    Parameters
    ----------
    context : Context
        The client's context, which holds its memory. It is updated.
    instruction : Instruction
        What the server asks for.
    layout : Layout
        The model's layout.
    update : (d,) float32 or callable
        The update; see `fedmedian.steps.instruction.perturb_update`.
    after : mapping of str to array
        The model after training, for its exact arrays.
    clip : float, optional
        The largest L2 norm of the vector that noise is added to, for privacy. The instruction's
        seed is then ignored; see `fedmedian.steps.instruction.perturb_update`.
    held : str, optional
        The version of the model that the client holds.

    Returns
    -------
    Payload
        The answer. It includes the client's partition if it has one.

    Raises
    ------
    UpdateError, WireError
        See `fedmedian.steps.instruction.perturb_update`.
    """
    partition = _partition_of(context)
    # A node id seeds the noise, but is no partition and may exceed a record's integers.
    number = context.node_id if partition is None else partition
    asked = instruction.seed, number, instruction.server_round
    rng = client_rng(*asked) if clip is None else secret_rng()
    memory = recall(context)
    payload = perturb_update(instruction, layout, update, after, rng, memory, partition, clip)
    with nullcontext() if clip is None else warned_of("the memory of client steps stays unchanged"):
        remember(context, memory)
    return replace(payload, held=held)


def _partition_of(context: Context) -> int | None:
    """Return the client's partition; None without one, or if its app finds data by other names."""
    text = str(context.node_config.get("partition-id"))
    if _NUMBER.fullmatch(text) and (number := int(text)) < 2**63:
        return number
    return None
