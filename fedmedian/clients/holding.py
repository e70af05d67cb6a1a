"""The model that a client holds between rounds, and moves by coded steps."""

from weakref import WeakValueDictionary

from flwr.app import ArrayRecord, Context, Message, RecordDict

from fedmedian.records import to_arrays, to_record
from fedmedian.steps.downlink import CatchUp, fingerprint, is_in, keys_in, version_of_whole
from fedmedian.wire.scalars import WireError

MODEL_STATE = "fedmedian-model"
"""The record of the client's state that holds the model."""

_MODELS: WeakValueDictionary[str, ArrayRecord] = WeakValueDictionary()
"""The models that clients of this process hold, by version: equal ones are kept once."""


def receive(message: Message, context: Context) -> str | None:
    """Put the model that a message stands for into it, and hold it until the next round.

    Parameters
    ----------
    message : Message
        A message with a whole model to hold, or coded steps to it; any other stays unchanged.
    context : Context
        The client's context.

    Returns
    -------
    str or None
        The version that the client now holds, to be named in its reply; None for any other message.

    Raises
    ------
    WireError
        If the steps are malformed, or do not begin from what this client holds.
    """
    config = next((one for one in message.content.config_records.values() if is_in(one)), None)
    if config is None:
        return None
    scalars = {key: config.pop(key) for key in keys_in(config)}
    name, record = model_in(message.content)
    if version_of_whole(scalars) is not None:
        version = fingerprint(to_arrays(record))
        record = _shared(version) or record
    else:
        catch_up = CatchUp.decode([*to_arrays(record).values()], scalars)
        record, version = _follow(catch_up, context)
    _MODELS[version] = context.state[MODEL_STATE] = record
    # A copy of the names: the app may change its own.
    message.content[name] = ArrayRecord(dict(record))
    return version


def model_in(content: RecordDict) -> tuple[str, ArrayRecord]:
    """Return the only ArrayRecord of a message's content, after its name.

    Raises
    ------
    WireError
        If there is none, or more than one.
    """
    found = [(name, one) for name, one in content.items() if isinstance(one, ArrayRecord)]
    if len(found) != 1:
        raise WireError(f"expected one ArrayRecord, got {len(found)}")
    return found[0]


def _follow(catch_up: CatchUp, context: Context) -> tuple[ArrayRecord, str]:
    """Return the model that steps lead to, and its version."""
    held = context.state.array_records.get(MODEL_STATE)
    model = None if held is None else to_arrays(held)
    version = None if model is None else fingerprint(model)
    catch_up.require_start(version)
    target = [catch_up.base, *catch_up.versions][-1]
    if (shared := _shared(target)) is not None:
        return shared, target
    assert model is not None  # `require_start` raises
    assert version is not None
    return to_record(catch_up.applied(model, version)), target


def _shared(version: str) -> ArrayRecord | None:
    """Return a model that another client of this process holds, unless its app has changed it."""
    record = _MODELS.get(version)
    if record is None or fingerprint(to_arrays(record)) != version:
        return None
    return record
