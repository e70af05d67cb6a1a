"""Mods with which an existing ClientApp sends perturbed signs or updates."""

from collections.abc import Mapping

import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, MessageType, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.common.constant import ErrorCode

from fedmedian.checks import require_type
from fedmedian.clients.answering import answer
from fedmedian.clients.holding import model_in, receive
from fedmedian.clients.policy import Policies, Policy, PolicyError, are_enforced, enforcing
from fedmedian.clients.summing import RECORD, answer_request, masked, remember, taking
from fedmedian.logs import warn
from fedmedian.model.layout import Layout
from fedmedian.records import to_arrays, to_record
from fedmedian.secure.cohort import Place
from fedmedian.steps.downlink import HELD
from fedmedian.steps.instruction import Instruction
from fedmedian.wire.scalars import EVALUATION, PREFIX, WireScalar, refusal

_FIT_METRICS = "fitres.metrics"
_EVALUATION_METRICS = "evaluateres.metrics"


def perturb(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answer a fedmedian strategy as a mod; other strategies get the app's own replies.

    The app trains as always. If the server sent an instruction, the client sends the update x − x_i
    in place of the trained weights: clipped, with noise, and as packed signs if the server asks for
    signs. Use it as ``ClientApp(mods=[perturb])``. It must be the first mod, the outermost one, so
    that other mods see the weights that they expect.

    It works with apps of the Message API and, through ``ClientApp(client_fn=...)``, with
    NumPyClients.

    A fedmedian strategy reads only metrics from replies to evaluation, as Flower's strategies do.
    Arrays in such a reply stay on the client. They are sent to any other strategy, and to one that
    may read them: a subclass that overrides `aggregate_evaluate`, or one with an
    `evaluate_metrics_aggr_fn`.

    Without a policy in the environment or the run config, it does whatever the server asks; see
    `perturb_with`.

    Parameters
    ----------
    message : Message
        The server's message. Its instruction is removed before the app sees it.
    context : Context
        The client's context; ``node_config["partition-id"]`` is its identity in simulation.
    call_next : callable
        The next mod, or the app.

    Returns
    -------
    Message
        The reply. If the update cannot be sent, an error reply with the reason, with code
        ``MOD_FAILED_PRECONDITION``: the update is not finite or does not match the model, the reply
        does not have exactly one ArrayRecord, or a policy refuses. The client logs the same line.
    """
    return _answer(message, context, call_next)


def perturb_with(policy: Policy) -> Mod:
    """Return a `perturb` mod that enforces a client's policy, whatever the server asks.

    Use it as ``ClientApp(mods=[perturb_with(Policy(...))])``. Where the code cannot be changed,
    `perturb` enforces the policies in the environment variable ``FEDMEDIAN_POLICY`` and in the run
    config's ``fedmedian-policy``; see `Policy.from_text`. What any policy refuses is refused.

    Parameters
    ----------
    policy : Policy
        The policy.

    Returns
    -------
    mod
        The mod. It answers what the policy refuses with an error reply that names the rule, with
        code ``MOD_FAILED_PRECONDITION``.

    Raises
    ------
    TypeError
        If `policy` is not a `Policy`.

    Examples
    --------
    >>> from flwr.clientapp import ClientApp
    >>> policy = Policy(clip=1.0, noise_scale=0.5, rounds=100)
    >>> app = ClientApp(mods=[perturb_with(policy)])
    """
    require_type("policy", policy, Policy, "a Policy")

    def perturb(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        return _answer(message, context, call_next, policy)

    return perturb


def _answer(
    message: Message, context: Context, call_next: ClientAppCallable, *own: Policy
) -> Message:
    is_second = are_enforced()
    try:
        if is_second and own:
            raise PolicyError("use perturb_with(…) instead of perturb, and only once")
        policies = Policies() if is_second else Policies.in_force(context, *own)
        if (reply := answer_request(message, context)) is not None:
            return reply
        held = receive(message, context)
    except ValueError as error:
        return _refuse(message, error)
    records = message.content.config_records.values()
    config = next((one for one in records if Instruction.is_in(one)), None)
    if config is None or not is_training(message):
        if is_second and is_training(message):
            warn("perturb is listed twice in a ClientApp's mods; only the first one has an effect")
        return _pass_on(message, context, call_next, policies, held)
    return _follow(message, config, context, call_next, policies, held)


def _pass_on(
    message: Message,
    context: Context,
    call_next: ClientAppCallable,
    policies: Policies,
    held: str | None,
) -> Message:
    """Let the app answer a message without an instruction."""
    is_evaluation = _kind(message) == MessageType.EVALUATE
    configs = message.content.config_records.values()
    # Read before `_remove_keys` removes the key.
    wants_no_arrays = is_evaluation and any(EVALUATION in config for config in configs)
    _remove_keys(message)
    try:
        policies.admit_uninstructed(is_training(message))
        reply = _called(message, context, call_next)
        if reply.has_content():
            if wants_no_arrays:
                for name in list(reply.content.array_records):
                    del reply.content[name]
            policies.withhold_uninstructed(reply.content)
            if held is not None:
                _add_scalars(reply.content, _EVALUATION_METRICS, {HELD: held})
    except PolicyError as error:
        return _refuse(message, error)
    return reply


def _follow(
    message: Message,
    config: ConfigRecord,
    context: Context,
    call_next: ClientAppCallable,
    policies: Policies,
    held: str | None,
) -> Message:
    """Let the app train, and answer the instruction with its update."""
    try:
        place = Place.take(config)
        instruction = Instruction.decode(config)
        before = to_arrays(model_in(message.content)[1])
        layout = Layout.with_exact_positions(before, instruction.exact)
        instruction.blocks(layout)  # raises if the steps do not fit
        # Before the answer is counted, because this may refuse it, as where the key is lost.
        key = None if place is None else taking(place, instruction, before, context)
        policies.admit(instruction, layout, context, place)
        if key is not None:
            remember(context, key)
    except ValueError as error:
        return _refuse(message, error)
    _remove_keys(message)
    reply = _called(message, context, call_next)
    if reply.has_error():
        return reply
    content, clip = reply.content, policies.clip
    try:
        # Where warnings are errors, one about a value would report it in spite of a policy.
        with np.errstate(all="ignore" if policies.members else None):
            name, trained = model_in(content)
            own_arrays, unnamed = to_arrays(trained), _FIT_METRICS in content
            after = layout.named(own_arrays, unnamed=unnamed)
            policies.require_exact(instruction, layout.own_names(own_arrays, unnamed=unnamed))
            update = layout.reader_of_difference(before, after)
            payload = answer(context, instruction, layout, update, after, clip=clip, held=held)
            if place is not None:
                payload = masked(payload, instruction, layout, place, context)
            policies.withhold(content)
            bodies, scalars = payload.encode()
            # Not the model's names: another mod must not mistake these arrays for the model.
            content[name] = to_record({f"{PREFIX}{i}": body for i, body in enumerate(bodies)})
            _add_scalars(content, _FIT_METRICS, scalars)
    except ValueError as error:
        return _refuse(message, error)
    return reply


def _called(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Return the app's reply."""
    with enforcing(context):
        return require_reply(call_next(message, context))


def require_reply(reply: object) -> Message:
    """Return a reply, or raise TypeError if an app's function has returned something else."""
    if not isinstance(reply, Message):
        # Without its value, because the error leaves the client.
        raise TypeError(
            "the ClientApp's function must return a Message, such as Message(content, "
            f"reply_to=message), got {type(reply).__name__}"
        )
    return reply


def _add_scalars(content: RecordDict, metrics: str, scalars: Mapping[str, WireScalar]) -> None:
    """Add scalars to a reply; those of the older API have room for them in their metrics only."""
    record = metrics if metrics in content else RECORD
    own = content.config_records.get(record, ConfigRecord())
    content[record] = ConfigRecord({**own, **scalars})


def _remove_keys(message: Message) -> None:
    """Remove from a message, in place, what is not for the app."""
    for config in message.content.config_records.values():
        for key in [key for key in config if key.startswith(PREFIX)]:
            del config[key]


def is_training(message: Message) -> bool:
    """Return whether a message asks for training, also by a name, as in ``train.second``."""
    return _kind(message) == MessageType.TRAIN


def _kind(message: Message) -> str:
    return message.metadata.message_type.split(".")[0]


def _refuse(message: Message, error: ValueError) -> Message:
    warn("%s", refusal(error))
    return Message(Error(ErrorCode.MOD_FAILED_PRECONDITION, refusal(error)), reply_to=message)
