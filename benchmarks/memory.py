"""Peak memory: of a server round, of each estimator alone, and of a client's answer."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common import Scalar
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.rounds import SIZES, STRATEGIES, ServerRound
from benchmarks.timing import peak_mebibytes
from fedmedian import Clip
from fedmedian.aggregators.base import Answers
from fedmedian.aggregators.medians import Median
from fedmedian.aggregators.votes import Counts, Majority
from fedmedian.clients import InProcessGrid, SignClient, perturb
from fedmedian.model.blocks import Blocks
from fedmedian.records import to_record
from fedmedian.rules.noise import Gaussian
from fedmedian.strategies import MedianSGD, SignSGD

_SITUATION = ConfigRecord(), InProcessGrid(ClientApp(), 2)


@dataclass(frozen=True)
class Peak:
    """The most memory that some work takes at once.

    Parameters
    ----------
    work, by : str
        The work, and what does it.
    mebibytes : float
        The memory, without the clients' replies and with the result.
    """

    work: str
    by: str
    mebibytes: float


def round_peaks() -> Iterator[Peak]:
    """Yield the peaks of a server round, from configure_train to the new model."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    for clients, dim in SIZES:
        for name in STRATEGIES:
            work = f"server round, M = {clients}, d = {dim:,}"
            yield Peak(work, name, peak_mebibytes(ServerRound(name, clients, dim)))


def estimator_peaks(clients: int = 101, dim: int = 10**7) -> Iterator[Peak]:
    """Yield the peaks of the estimators, with all their diagnostics.

    Replies that are read in place are none of their memory, so that one stands for all of them.
    The smoothed median, which goes through its rows in the same blocks, would take minutes.
    """
    rng, ones = np.random.default_rng(0), np.ones((clients, 1))
    scales, weights = ones.astype(np.float32), np.full(clients, 1 / clients)
    votes, update = rng.integers(0, 256, dim // 8, np.uint8), rng.standard_normal(dim, np.float32)
    signs, vectors = (
        Answers([body] * clients, weights, Blocks((dim,)), Gaussian(), scales, ones, report={})
        for body in (votes, update)
    )
    estimators: dict[str, Callable[[], object]] = {
        "counts": lambda: Counts().direction(signs, rng),
        "majority": lambda: Majority().direction(signs, rng),
        "calibrated majority": lambda: Majority(calibrated=True).direction(signs, rng),
        "median": lambda: Median().direction(vectors, rng),
        "median, noise at the server": lambda: Median().direction(
            replace(vectors, noise_at="server"), rng
        ),
    }
    for name, estimate in estimators.items():
        work = f"estimate, M = {clients}, d = {dim:,}"
        yield Peak(work, name, peak_mebibytes(estimate))


def client_peaks(dim: int = 10**7) -> Iterator[Peak]:
    """Yield the peaks of a client's answer, beside the server's model and the trained one.

    The model of `SignClient` and its updates are torch's, and not counted.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)
    start = np.random.default_rng(0).standard_normal((dim // 1000, 1000), np.float32)
    work = f"client's answer, d = {start.size:,}"
    trained = to_record({"weight": start * np.float32(0.999)})

    def train(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": trained, "metrics": metrics}), reply_to=message)

    for by, strategy in {
        "SignSGD, perturb": SignSGD(),
        "SignSGD, perturb, clipped": SignSGD(client_steps=[Clip(1.0)]),
        "MedianSGD, perturb": MedianSGD(),
    }.items():
        (message, *_) = strategy.configure_train(1, to_record({"weight": start}), *_SITUATION)
        context = Context(1, 1, {"partition-id": 0}, RecordDict(), {})
        yield Peak(work, by, peak_mebibytes(partial(perturb, message, context, train)))
    model = nn.Linear(1000, dim // 1000, bias=False)
    client = SignClient(
        Context(1, 1, {"partition-id": 0}, RecordDict(), {}),
        model,
        DataLoader(TensorDataset(torch.ones(1, 1000), torch.zeros(1, dtype=torch.int64))),
    )
    (message, *_) = SignSGD().configure_train(1, to_record({"0": start}), *_SITUATION)
    config = cast(dict[str, Scalar], dict(message.content.config_records["config"]))
    yield Peak(work, "SignSGD, SignClient", peak_mebibytes(partial(client.fit, [start], config)))
