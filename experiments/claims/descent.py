"""Descent on small functions with the package's own strategies, one round per step."""

from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from fedmedian import Noise
from fedmedian.aggregators.base import Aggregator
from fedmedian.clients import InProcessGrid, perturb
from fedmedian.records import to_arrays, to_record
from fedmedian.strategies import MedianSGD, SignSGD

Points = NDArray[np.float64]
Look = Callable[[int, Points], None]
"""Takes a round, and the points after it."""


_PLAINLY: Any = {"rotation": None, "seed": 0, "diagnostics": False, "fraction_evaluate": 0.0}


def sign_descent(noise: Noise | None, aggregator: Aggregator, rate: float | None) -> SignSGD:
    """Make Algorithm 1, or Algorithm 3 with noise; with `Counts` the server decodes."""
    return SignSGD(noise, aggregator, rate, **_PLAINLY)


def median_descent(noise: Noise | None, rate: float | None) -> MedianSGD:
    """Make Algorithm 2, or Algorithm 4 with noise."""
    return MedianSGD(noise, learning_rate=rate, **_PLAINLY)


def descend(
    strategy: SignSGD | MedianSGD,
    gradient: Callable[[Points, int], Points],
    num_clients: int,
    start: Points,
    rounds: int,
    look: Look,
) -> None:
    """Descend from points, all at once and each with its own noise.

    Parameters
    ----------
    strategy : SignSGD or MedianSGD
        The algorithm.
    gradient : callable
        Returns the gradients of a client's function at points.
    num_clients : int
        The number of clients.
    start : (copies, ...) float64
        Where to begin.
    rounds : int
        The number of rounds.
    look : callable
        Is shown the points after each round.
    """
    app = ClientApp(mods=[perturb])

    @app.train()
    def _(message: Message, context: Context) -> Message:
        (points,) = to_arrays(message.content.array_records["arrays"]).values()
        moved = points - gradient(points, int(context.node_config["partition-id"]))
        content = RecordDict()
        content["arrays"] = to_record({"x": moved})
        content["metrics"] = MetricRecord({"num-examples": 1})
        return Message(content, reply_to=message)

    def watch(server_round: int, arrays: ArrayRecord) -> None:
        look(server_round, to_arrays(arrays)["x"])

    grid = InProcessGrid(app, num_clients)
    strategy.start(grid, to_record({"x": start}), rounds, evaluate_fn=watch)
