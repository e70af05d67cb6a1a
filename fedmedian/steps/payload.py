"""Clients' answers: the signs of an update or the update itself, and the noise that is in it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from fedmedian.wire.scalars import (
    PREFIX,
    WIRE_VERSION,
    Float32,
    PayloadKind,
    Reader,
    WireError,
    WireScalar,
    floats_to_bytes,
    with_prefix,
)

MOST_ARRAYS = 2
"""The number of arrays that a payload has, at most."""


@dataclass(frozen=True, eq=False)
class Payload:
    """A client's answer.

    Parameters
    ----------
    kind : {"signs", "vector"}
        What `body` is.
    noise : str or None
        The family of the noise that was added, or None.
    scales : (L,) float32
        The noise scale b that was used for each block; zeros where there was no noise.
    magnitudes : (L,) float32
        The magnitude of each block of the update before noise; zeros where none was asked for.
    body : (⌈d/8⌉,) uint8 or (d,) float32
        Packed signs of the noisy update, or the noisy update.
    exact : (exact_bytes,) uint8
        The exact arrays after training, as `Layout.pack_exact` returns them.
    server_round : int
        The round of the instruction that it answers.
    partition : int or None
        The client's partition, for the server's log; None where it has none.
    tied : tuple of int
        The groups of tied arrays of the instruction that the client's training has left tied.
    """

    kind: PayloadKind
    noise: str | None
    scales: Float32
    magnitudes: Float32
    body: NDArray[Any]
    exact: NDArray[np.uint8]
    server_round: int
    partition: int | None = None
    tied: tuple[int, ...] = ()

    def encode(self) -> tuple[list[NDArray[Any]], dict[str, WireScalar]]:
        """Return the payload's arrays, one or two, and the scalars that go with them."""
        message: dict[str, WireScalar] = {
            "payload": WIRE_VERSION,
            "round": self.server_round,
            "kind": self.kind,
            "scales": floats_to_bytes(self.scales),
            "magnitudes": floats_to_bytes(self.magnitudes),
        }
        if self.noise is not None:
            message["noise"] = self.noise
        if self.partition is not None:
            message["partition"] = self.partition
        if self.tied:
            message["tied"] = json.dumps(self.tied)
        arrays = [self.body, self.exact] if self.exact.size else [self.body]
        return arrays, with_prefix(message)

    @staticmethod
    def is_in(config: Mapping[str, Any]) -> bool:
        """Tell whether a reply's config or metrics hold a payload's scalars."""
        return PREFIX + "payload" in config

    @classmethod
    def decode(cls, arrays: Sequence[NDArray[Any]], config: Mapping[str, Any]) -> "Payload":
        """Read a payload from a reply's arrays and scalars.

        Raises
        ------
        WireError
            If it is of another version, malformed, or says something that is unknown here.
            Whether it answers an instruction is for `Instruction.require_answer` to say.
        """
        read = Reader(config, "payload")
        if not 1 <= len(arrays) <= MOST_ARRAYS:
            raise WireError(f"a payload has one or two arrays, got {len(arrays)}")
        payload = cls(
            kind=cast(PayloadKind, read.choice("kind", get_args(PayloadKind))),
            noise=read.optional("noise", str),
            scales=read.floats("scales"),
            magnitudes=read.floats("magnitudes"),
            body=arrays[0],
            exact=arrays[1] if len(arrays) == 2 else np.empty(0, dtype=np.uint8),
            server_round=read.required("round", int),
            partition=read.optional("partition", int),
            tied=tuple(read.listed("tied", int, required=False)),
        )
        read.finish()
        return payload
