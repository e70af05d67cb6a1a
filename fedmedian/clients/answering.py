"""The answer of a client to an instruction, with its own noise and memory."""

from flwr.app import Context

from fedmedian.clients.memory import recall, remember
from fedmedian.instructions import Instruction, perturb_update
from fedmedian.layout import Arrays, Layout
from fedmedian.payloads import Payload
from fedmedian.randomness import client_rng, secret_rng
from fedmedian.wire import Float32


def answer(
    context: Context,
    instruction: Instruction,
    layout: Layout,
    update: Float32,
    after: Arrays,
    *,
    secret: bool = False,
) -> Payload:
    """Answer an instruction as this client.

    Parameters
    ----------
    context : Context
        The client's context; its memory in it is updated.
    instruction : Instruction
        The server's wish.
    layout : Layout
        The model's layout.
    update : (d,) float32
        The update. It is overwritten.
    after : mapping of str to array
        The model after training, for its exact arrays.
    secret : bool (default: False)
        Whether the noise has to hide something; the instruction's seed plays no part then.

    Returns
    -------
    Payload
        The answer, with the client's partition if it has one.

    Raises
    ------
    UpdateError, WireError
        See `fedmedian.instructions.perturb_update`.
    """
    named = "partition-id" in context.node_config
    # A node id stands in for the noise, but is no partition and may exceed a record's integers.
    partition = int(context.node_config.get("partition-id", context.node_id))
    rng = (
        secret_rng()
        if secret
        else client_rng(instruction.seed, partition, instruction.server_round)
    )
    memory = recall(context)
    payload = perturb_update(
        instruction, layout, update, after, rng, memory, partition if named else None
    )
    remember(context, memory)
    return payload
