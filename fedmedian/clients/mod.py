"""The mod that makes an existing ClientApp answer with perturbed signs or updates."""

from contextvars import ContextVar

from flwr.app import ConfigRecord, Context, Error, Message, MessageType, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import ErrorCode

from fedmedian.clients.answering import answer
from fedmedian.instructions import Instruction
from fedmedian.layout import Arrays, Layout
from fedmedian.logs import warn
from fedmedian.records import to_arrays, to_record
from fedmedian.wire import PREFIX, WireError, refusal

_FIT_METRICS = "fitres.metrics"
_RECORD = "fedmedian"

_TRAINING = ContextVar("_TRAINING", default=False)
"""Whether this mod waits for what it has called."""


def perturb(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Let a ClientApp answer a fedmedian strategy, and any other strategy as before.

    The app trains as it always does. If the server sent an instruction, what leaves the client
    is not the trained weights but the update x − x_i, clipped, with noise, and as packed signs
    if the server wants signs. Use it as ``ClientApp(mods=[perturb])``. It must be the first, that
    is the outermost mod, so that other mods see the weights they expect.

    Works with apps of the Message API and, through ``ClientApp(client_fn=...)``, with NumPyClients.

    Parameters
    ----------
    message : Message
        The server's message. Its instruction is taken out before the app sees it.
    context : Context
        The client's context; ``node_config["partition-id"]`` is its identity in simulation.
    call_next : callable
        The next mod, or the app.

    Returns
    -------
    Message
        The reply. If the app's update cannot be sent (it is not finite, does not match the
        model, or the reply has not exactly one ArrayRecord) an error reply that says why, with
        code ``MOD_FAILED_PRECONDITION``.
    """
    config = _instructed_config(message)
    if config is None:
        if _TRAINING.get():
            warn("perturb stands twice among a ClientApp's mods; the first of them does the work")
        return call_next(message, context)
    try:
        instruction = Instruction.decode(config)
        before = _read_model(message.content)
    except ValueError as error:
        return _refuse(message, error)
    for key in [key for key in config if key.startswith(PREFIX)]:
        del config[key]
    training = _TRAINING.set(True)
    try:
        reply = call_next(message, context)
    finally:
        _TRAINING.reset(training)
    if reply.has_error():
        return reply
    try:
        layout = Layout.with_exact_positions(before, instruction.exact)
        after = layout.named(_read_model(reply.content))
        update = layout.difference(before, after)
        payload = answer(context, instruction, layout, update, after)
    except ValueError as error:
        return _refuse(message, error)
    bodies, scalars = payload.encode()
    (name,) = reply.content.array_records
    # No model's names: another mod must not take these arrays for the model's.
    reply.content[name] = to_record({f"{PREFIX}{i}": body for i, body in enumerate(bodies)})
    # The older FitRes has room for scalars in its metrics only.
    record = _FIT_METRICS if _FIT_METRICS in reply.content else _RECORD
    own = reply.content.config_records.get(record, ConfigRecord())
    reply.content[record] = ConfigRecord({**own, **scalars})
    return reply


def _instructed_config(message: Message) -> ConfigRecord | None:
    if message.metadata.message_type.split(".")[0] != MessageType.TRAIN:
        return None
    records = message.content.config_records.values()
    return next((record for record in records if Instruction.is_in(record)), None)


def _read_model(content: RecordDict) -> Arrays:
    if len(content.array_records) != 1:
        raise WireError(f"expected one ArrayRecord, got {len(content.array_records)}")
    (record,) = content.array_records.values()
    return to_arrays(record)


def _refuse(message: Message, error: ValueError) -> Message:
    return Message(Error(ErrorCode.MOD_FAILED_PRECONDITION, refusal(error)), reply_to=message)
