"""A client's key for secure sums, which it keeps between rounds, and its part in them."""

import json
from hashlib import sha256

from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedmedian.model.layout import Arrays, Layout
from fedmedian.secure.cohort import Place
from fedmedian.secure.masking import Key
from fedmedian.secure.requests import NO_KEY, answer, is_request
from fedmedian.steps.downlink import fingerprint
from fedmedian.steps.encodings import Signs
from fedmedian.steps.instruction import Instruction
from fedmedian.steps.payload import Payload
from fedmedian.steps.sums import VotesLayout, masked_payload
from fedmedian.wire.scalars import WireError

SUM_STATE = "fedmedian-sum"
"""The record of the client's state that holds its key."""

RECORD = "fedmedian"
"""The record of a reply that holds fedmedian's scalars."""


def answer_request(message: Message, context: Context) -> Message | None:
    """Return the reply to a request around a secure sum; None for any other message.

    Raises
    ------
    WireError
        If the request is malformed, or the client must not reveal what it asks for.
    """
    config = next((one for one in message.content.config_records.values() if is_request(one)), None)
    if config is None:
        return None
    key, reply = answer(config, _recall(context))
    remember(context, key)
    return Message(RecordDict({RECORD: ConfigRecord({**reply})}), reply_to=message)


def masked(
    payload: Payload, instruction: Instruction, layout: Layout, place: Place, context: Context
) -> Payload:
    """Return the answer to an instruction with masked votes.

    Raises
    ------
    WireError
        If a report is no vote, or as `Key.takes`.
    """
    votes = VotesLayout.of(instruction, layout).votes_of(payload)
    key = _recall(context)
    question = instruction.server_round, instruction.question
    if key is None or (key.place, key.question) != (place, question):
        raise WireError("the key for secure sums has changed during training")
    return masked_payload(payload, key.mask(votes))


def taking(place: Place, instruction: Instruction, model: Arrays, context: Context) -> Key:
    """Return the key as it is once a place in the sum of a question is taken; see `remember`.

    Only clients with the same instruction and the same model have masks that cancel.

    Raises
    ------
    WireError
        If it is not one of signs, this client has no key or another one, or as `Key.takes`.
    """
    if type(instruction.encoding) is not Signs:
        raise WireError(f"a secure sum is one of signs, not of {instruction.encoding.name!r}")
    key = _recall(context)
    if key is None:
        raise WireError(NO_KEY)
    if place.own != key.public:
        raise WireError(
            "the place in the secure sum is for a key that this client does not hold: it is of "
            "another client, or the server does not have this client's last key"
        )
    question = instruction.server_round, instruction.question
    asked = json.dumps(instruction.encode(), sort_keys=True, default=bytes.hex)
    about = sha256(f"{asked} {fingerprint(model)}".encode()).digest()
    return key.takes(place, question, about)


def _recall(context: Context) -> Key | None:
    record = context.state.config_records.get(SUM_STATE)
    if record is None:
        return None
    place, question = Place.take(dict(record)), (record["round"], record["question"])
    return Key(record["private"], question, place, record["revealed"], record["about"])  # type: ignore[arg-type]


def remember(context: Context, key: Key) -> None:
    """Keep a key, and what it has been used for."""
    record = ConfigRecord({"private": key.private, "revealed": key.revealed, "about": key.about})
    record["round"], record["question"] = key.question
    if key.place is not None:
        record.update(key.place.encode())
    context.state[SUM_STATE] = record
