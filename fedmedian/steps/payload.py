"""A client's answer to an instruction, and its wire format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmedian.wire.scalars import (
    PREFIX,
    WIRE_VERSION,
    Float32,
    Reader,
    WireError,
    WireScalar,
    floats_to_bytes,
    with_prefix,
)

MOST_ARRAYS = 2
"""The largest number of arrays in a payload."""

DIGEST = 16
"""The number of bytes that name a version of the model; see `fedmedian.steps.downlink`."""

MASKED = "masked-signs"
"""The encoding of a payload of masked votes."""

_REPORTS = "reports"
_OF_MASKED = ("shares", "commitment", "about")


@dataclass(frozen=True, eq=False)
class Payload:
    """A client's answer.

    Parameters
    ----------
    encoding : str
        The name of the encoding that made `body`.
    body : array
        The encoded update: (⌈d/8⌉,) uint8 of packed signs, (d,) float32 of a vector, or whatever a
        custom encoding makes.
    exact : (exact_bytes,) uint8
        The exact arrays after training, as `Layout.pack_exact` returns them.
    server_round : int
        The round of the instruction that it answers.
    partition : int or None
        The client's partition, for the server's log; None for a client without one.
    reports : mapping of str to (n,) float32
        What client steps report, by the step's name.
    question : int (default: 0)
        The question of the round that it answers.
    held : str, optional
        The version of the model that the client holds; see `fedmedian.steps.downlink`.
    shares, commitment, about : bytes, optional
        What belongs to masked votes; see `fedmedian.secure.masking.Masked`.
    """

    encoding: str
    body: NDArray[Any]
    exact: NDArray[np.uint8]
    server_round: int
    partition: int | None = None
    reports: Mapping[str, Float32] = field(default_factory=dict)
    question: int = 0
    held: str | None = None
    shares: bytes | None = None
    commitment: bytes | None = None
    about: bytes | None = None

    def encode(self) -> tuple[list[NDArray[Any]], dict[str, WireScalar]]:
        """Return the payload's arrays, one or two, and its scalars."""
        message: dict[str, WireScalar] = {
            "payload": WIRE_VERSION,
            "round": self.server_round,
            "encoding": self.encoding,
        }
        for step, values in self.reports.items():
            message[f"{_REPORTS}.{step}"] = floats_to_bytes(values)
        if self.partition is not None:
            message["partition"] = self.partition
        if self.question:
            message["question"] = self.question
        for name in ("held", *_OF_MASKED):
            if (value := getattr(self, name)) is not None:
                message[name] = value
        arrays = [self.body, self.exact] if self.exact.size else [self.body]
        return arrays, with_prefix(message)

    @staticmethod
    def is_in(config: Mapping[str, Any]) -> bool:
        """Return whether a reply's config or metrics hold a payload's scalars."""
        return PREFIX + "payload" in config

    @staticmethod
    def question_in(config: Mapping[str, Any]) -> int | None:
        """Return the number of the question that a reply names; None if it is not an integer."""
        number = config.get(PREFIX + "question", 0)
        return number if type(number) is int else None

    @classmethod
    def decode(cls, arrays: Sequence[NDArray[Any]], config: Mapping[str, Any]) -> "Payload":
        """Read a payload from a reply's arrays and scalars.

        Raises
        ------
        WireError
            If it has another version, is malformed, or holds an unknown entry. For whether it
            answers an instruction, see `Instruction.require_answer`.
        """
        read = Reader(config, "payload")
        if not 1 <= len(arrays) <= MOST_ARRAYS:
            raise WireError(f"a payload has one or two arrays, got {len(arrays)}")
        encoding = read.required("encoding", str)
        masked = dict.fromkeys(_OF_MASKED, bytes) if encoding == MASKED else {}
        own = read.optionals(partition=int, held=str, **masked)
        payload = cls(
            encoding=encoding,
            body=arrays[0],
            exact=arrays[1] if len(arrays) == 2 else np.empty(0, dtype=np.uint8),
            server_round=read.server_round,
            reports=read.floats_below(_REPORTS),
            question=read.question,
            **{**own, "held": as_version(own["held"])},
        )
        read.finish()
        return payload


def as_version(value: Any) -> str | None:
    """Return the version of the model that a reply names, or None if it is not one."""
    return value if isinstance(value, str) and len(value) == 2 * DIGEST else None
