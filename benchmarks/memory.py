"""Peak memory: of a server round, and of each estimator alone."""

import logging
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.rounds import SIZES, STRATEGIES, ServerRound
from fedmedian.aggregators.base import Answers
from fedmedian.aggregators.medians import Median
from fedmedian.aggregators.votes import Counts, Majority
from fedmedian.model.blocks import Blocks
from fedmedian.rules.noise import Gaussian


@dataclass(frozen=True)
class Peak:
    """The most memory that some work takes at once.

    Parameters
    ----------
    work, by : str
        What is done, and by whom.
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
            yield _measure(work, name, ServerRound(name, clients, dim))


def estimator_peaks(clients: int = 101, dim: int = 10**7) -> Iterator[Peak]:
    """Yield the peaks of the estimators, with all their diagnostics.

    Replies that are read in place are none of their memory, so that one stands for all of them.
    The smoothed median, which goes through its rows in the same blocks, would take minutes.
    """
    rng, ones = np.random.default_rng(0), np.ones((clients, 1), np.float32)
    weights = np.full(clients, 1 / clients)
    votes, update = rng.integers(0, 256, dim // 8, np.uint8), rng.standard_normal(dim, np.float32)
    signs, vectors = (
        Answers([body] * clients, weights, Blocks((dim,)), Gaussian(), ones, ones, report={})
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
        yield _measure(f"estimate, M = {clients}, d = {dim:,}", name, estimate)


def _measure(work: str, by: str, run: Callable[[], object]) -> Peak:
    tracemalloc.start()
    run()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return Peak(work, by, peak / 2**20)
