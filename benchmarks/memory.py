"""Peak memory: of a server round, and of each estimator alone."""

import logging
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.rounds import SIZES, STRATEGIES, ServerRound
from fedmedian.aggregators.aggregation import Aggregate, aggregate_signs, aggregate_vectors
from fedmedian.aggregators.decoding import Counts, DecodeRule, Majority
from fedmedian.model.blocks import Blocks
from fedmedian.rules.noise import Gaussian
from fedmedian.steps.payload import Payload


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
    noise, scale = Gaussian(), np.ones(1, np.float32)
    blocks = Blocks((dim,))
    rng = np.random.default_rng(0)
    votes, vector = rng.bytes(dim // 8), rng.standard_normal(dim, np.float32)
    nothing = np.empty(0, np.uint8)
    signs = Payload("signs", np.frombuffer(votes, np.uint8), nothing, 1)
    update = Payload("vector", vector, nothing, 1)
    weights = np.full(clients, 1 / clients)
    ones = np.ones((clients, 1), np.float32)
    centre = partial(
        aggregate_vectors, [update] * clients, noise, blocks, scales=ones, magnitudes=ones
    )

    def decode(rule: DecodeRule) -> Aggregate:
        return aggregate_signs(
            *([signs] * clients, weights, blocks, noise, rule, rng), scales=ones, magnitudes=ones
        )

    estimators: dict[str, Callable[[], Aggregate]] = {
        "counts": lambda: decode(Counts()),
        "majority": lambda: decode(Majority()),
        "calibrated majority": lambda: decode(Majority(calibrated=True)),
        "median": lambda: centre(),
        "median, noise at the server": lambda: centre(added=scale, rng=rng),
    }
    for name, estimate in estimators.items():
        yield _measure(f"estimate, M = {clients}, d = {dim:,}", name, estimate)


def _measure(work: str, by: str, run: Callable[[], object]) -> Peak:
    tracemalloc.start()
    run()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return Peak(work, by, peak / 2**20)
