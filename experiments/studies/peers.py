"""Other ways to send fewer bits, packed: half precision, QSGD, top-k, scaled and noisy signs, EDEN.

A codec turns an update into bytes and back. `compress` is a mod that sends these bytes in place of
the trained model, and `Decoding` is FedAvg on the decoded models. Arrays must be floating point,
without running statistics.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from fedmedian.kernels.rotation import padded_size, rotate, rotate_back
from fedmedian.kernels.signs import pack_signs, unpack_signs
from fedmedian.model.blocks import Blocks
from fedmedian.model.layout import Arrays, Layout
from fedmedian.records import to_arrays, to_record
from fedmedian.steps.base import UpdateError
from fedmedian.wire.scalars import refusal

Vector = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_FEEDBACK = "feedback"


class Codec(ABC):
    """A way to send an update as bytes."""

    @abstractmethod
    def encode(self, update: Vector, blocks: Blocks, rng: np.random.Generator) -> Bytes:
        """Return the bytes that a client sends for its (d,) update."""

    @abstractmethod
    def decode(self, body: Bytes, blocks: Blocks) -> Vector:
        """Return the (d,) update that bytes stand for."""


@dataclass(frozen=True)
class Half(Codec):
    """The update in float16."""

    def encode(self, update: Vector, blocks: Blocks, rng: np.random.Generator) -> Bytes:
        """Round the update."""
        return _joined(update.astype("<f2"))

    def decode(self, body: Bytes, blocks: Blocks) -> Vector:
        """Convert it back to float32."""
        return body.view("<f2").astype(np.float32)


@dataclass(frozen=True)
class Int8(Codec):
    """The update in 255 levels of each array's largest entry, rounded at random without bias.

    QSGD of Alistarh et al., NeurIPS 2017 (arXiv 1610.02132), with the maximum in place of the norm.
    """

    def encode(self, update: Vector, blocks: Blocks, rng: np.random.Generator) -> Bytes:
        """Round each entry to one of the two levels beside it."""
        steps = np.array(
            [np.abs(part).max(initial=0) / 127 for part in blocks.split(update)], np.float32
        )
        width = np.repeat(np.where(steps > 0, steps, 1), blocks.sizes)
        levels = np.floor(update / width + rng.random(update.size, dtype=np.float32))
        return _joined(steps, np.clip(levels, -127, 127).astype(np.int8))

    def decode(self, body: Bytes, blocks: Blocks) -> Vector:
        """Return the levels."""
        steps, levels = _read(body, "<f4", len(blocks)), body[4 * len(blocks) :].view(np.int8)
        return np.repeat(steps, blocks.sizes) * levels.astype(np.float32)


@dataclass(frozen=True)
class TopK(Codec):
    """The largest entries of the update and where they are, 64 bits each; all others are 0.

    Stich et al., NeurIPS 2018 (arXiv 1809.07599), who send what is left out later: with feedback.

    Parameters
    ----------
    share : float
        The share of entries that is sent.
    """

    share: float

    def encode(self, update: Vector, blocks: Blocks, rng: np.random.Generator) -> Bytes:
        """Choose the largest entries."""
        kept = ceil(self.share * update.size)
        places = np.argpartition(np.abs(update), -kept)[-kept:].astype("<i4")
        return _joined(places, update[places])

    def decode(self, body: Bytes, blocks: Blocks) -> Vector:
        """Return them at their places, and zeros elsewhere."""
        kept = body.size // 8
        update = np.zeros(blocks.dim, dtype=np.float32)
        update[_read(body, "<i4", kept)] = _read(body[4 * kept :], "<f4", kept)
        return update


@dataclass(frozen=True)
class ScaledSigns(Codec):
    """The signs of the update times the mean magnitude of each array.

    Karimireddy et al., ICML 2019 (arXiv 1901.09847), who send what is rounded off later: with
    feedback.
    """

    def encode(self, update: Vector, blocks: Blocks, rng: np.random.Generator) -> Bytes:
        """Take signs and mean magnitudes."""
        scales = [np.abs(part).mean() if part.size else 0 for part in blocks.split(update)]
        return _joined(np.array(scales, np.float32), pack_signs(update, rng))

    def decode(self, body: Bytes, blocks: Blocks) -> Vector:
        """Return their products."""
        scales = np.repeat(_read(body, "<f4", len(blocks)), blocks.sizes)
        return scales * unpack_signs(body[4 * len(blocks) :], blocks.dim)


@dataclass(frozen=True)
class NoisySigns(Codec):
    """The signs of the update and Gaussian noise, each worth a step of the server's own.

    z-SignFedAvg of Tang et al. (arXiv 2302.02589), z = 1. The server is not told the noise.

    Parameters
    ----------
    noise : float
        The standard deviation σ of the noise.
    step : float
        The step η of a sign.
    """

    noise: float
    step: float

    def encode(self, update: Vector, blocks: Blocks, rng: np.random.Generator) -> Bytes:
        """Add noise and take signs."""
        noise = rng.standard_normal(update.size, dtype=np.float32)
        return pack_signs(update + np.float32(self.noise) * noise)

    def decode(self, body: Bytes, blocks: Blocks) -> Vector:
        """Return a step along them."""
        return np.float32(self.step) * unpack_signs(body, blocks.dim)


@dataclass(frozen=True)
class Eden(Codec):
    """EDEN's one bit for each parameter, and a scale and a seed for all of them.

    Vargaftik et al., ICML 2022 (arXiv 2108.08842): each client rotates its whole update by a matrix
    of its own and sends the signs with the scale ‖Qu‖²/‖Qu‖₁, which makes them unbiased.
    """

    def encode(self, update: Vector, blocks: Blocks, rng: np.random.Generator) -> Bytes:
        """Rotate by a random matrix, and take signs."""
        return self.encode_from(int(rng.integers(1 << 62)), update)

    def encode_from(self, seed: int, update: Vector) -> Bytes:
        """Return the bytes for a matrix that follows from a seed."""
        rotated = rotate(update, np.random.default_rng(seed))
        norm = float(np.abs(rotated).sum())
        scale = float(np.square(rotated).sum()) / norm if norm else 0.0
        return _joined(np.array([seed], "<i8"), np.array([scale], "<f4"), pack_signs(rotated))

    def decode(self, body: Bytes, blocks: Blocks) -> Vector:
        """Return the signs, scaled and rotated back."""
        (seed,), (scale,) = _read(body, "<i8", 1), _read(body[8:], "<f4", 1)
        signs = scale * unpack_signs(body[12:], padded_size(blocks.dim))
        return rotate_back(signs, blocks.dim, np.random.default_rng(int(seed)))


def _joined(*arrays: NDArray[Any]) -> Bytes:
    return np.concatenate([np.frombuffer(array.tobytes(), np.uint8) for array in arrays])


def _read(body: Bytes, dtype: str, count: int) -> NDArray[Any]:
    return np.frombuffer(body.tobytes(), dtype, count)


def compress(codec: Codec, *, feedback: bool = False) -> Mod:
    """Return a mod that sends a client's update through a codec.

    Parameters
    ----------
    codec : Codec
        The codec.
    feedback : bool (default: False)
        Whether a client adds what the codec lost of earlier updates to its next one.

    Returns
    -------
    mod
        The mod.
    """

    def compressing(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        before = to_arrays(message.content.array_records["arrays"])
        reply = call_next(message, context)
        layout = _layout_of(before)
        update = layout.difference(before, to_arrays(reply.content.array_records["arrays"]))
        if _FEEDBACK in context.state:
            update += to_arrays(context.state.array_records[_FEEDBACK])["lost"]
        if not np.isfinite(update).all():
            # As `perturb` does: hostile clients may make a peer's model diverge.
            reason = refusal(UpdateError("update holds NaN or infinity"))
            return Message(Error(ErrorCode.MOD_FAILED_PRECONDITION, reason), reply_to=message)
        body = codec.encode(update, layout.blocks, np.random.default_rng())
        if feedback:
            lost = update - codec.decode(body, layout.blocks)
            context.state[_FEEDBACK] = to_record({"lost": lost})
        reply.content["arrays"] = to_record({"": body})
        return reply

    return compressing


class Remembering(FedAvg):
    """FedAvg that remembers the model that clients start from, as `before`."""

    before = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask clients to train, and remember the model that they start from."""
        self.before = arrays
        return super().configure_train(server_round, arrays, config, grid)


class Decoding(Remembering):
    """FedAvg of the models that a codec's bytes stand for.

    Parameters
    ----------
    codec : Codec
        The codec.
    **options
        FedAvg's own.
    """

    def __init__(self, codec: Codec, **options: Any) -> None:
        super().__init__(**options)
        self._codec = codec

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Decode the clients' updates, and average the models that they lead to."""
        before = to_arrays(self.before)
        layout, replies = _layout_of(before), list(replies)
        for reply in replies:
            if reply.has_content():
                (body,) = to_arrays(reply.content.array_records["arrays"]).values()
                update = self._codec.decode(body, layout.blocks)
                reply.content["arrays"] = to_record(layout.move(before, update, 1.0, before))
        return super().aggregate_train(server_round, replies)


def _layout_of(model: Arrays) -> Layout:
    return Layout.of_model(model, exact=())
