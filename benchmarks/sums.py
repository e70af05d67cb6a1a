"""Secure sums beside Flower's SecAgg+: what a round costs its clients and its server."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.client import Client, NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.common.typing import NDArrays, Scalar
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow

from benchmarks.holding import app as ours
from fedmedian import SecureSum
from fedmedian.clients import InProcessGrid
from fedmedian.records import to_record
from fedmedian.strategies import SignSGD

SIZES = ((10, 10**6, 5), (100, 10**6, 1))
"""The numbers of clients, of parameters, and of rounds, in which keys are exchanged once."""

_SHARE = 2 / 3
"""The share of clients that a sum needs, in both."""


@dataclass(frozen=True)
class SumCost:
    """What one round of a secure sum costs.

    Parameters
    ----------
    clients, dim, rounds : int
        The numbers of clients, of parameters, and of the run's rounds. All else is for a round.
    by : str
        What sums: "SecureSum" or "SecAgg+".
    client_seconds, server_seconds : float
        The processor's time of one client, and of the server, without the transport.
    bits_up : float
        The bits that a client sends for each parameter, headers and all exchanges included.
    """

    clients: int
    dim: int
    rounds: int
    by: str
    client_seconds: float
    server_seconds: float
    bits_up: float


COLUMNS = [
    "clients",
    "parameters",
    "rounds",
    "by",
    "s per client",
    "s of the server",
    "bits up a parameter",
]


def sum_costs() -> list[SumCost]:
    """Measure a round of both at each number of clients, parameters and rounds."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    runs = {"SecureSum": _run_ours, "SecAgg+": _run_secagg}
    for run in runs.values():
        run(3, 100, 1)  # loads what is loaded on first use
    return [_cost(*size, by, run) for size in SIZES for by, run in runs.items()]


def rows(costs: Sequence[SumCost]) -> list[list[str]]:
    """Return costs as the rows of a table."""
    return [
        [
            str(cost.clients),
            f"{cost.dim:,}",
            str(cost.rounds),
            cost.by,
            f"{cost.client_seconds:.3g}",
            f"{cost.server_seconds:.3g}",
            f"{cost.bits_up:.2f}",
        ]
        for cost in costs
    ]


class _TimedApp(ClientApp):
    """Runs another app, and measures its time."""

    def __init__(self, app: ClientApp) -> None:
        super().__init__()
        self._app, self.seconds = app, 0.0

    def __call__(self, message: Message, context: Context) -> Message:
        start = time.process_time()
        try:
            return self._app(message, context)
        finally:
            self.seconds += time.process_time() - start


class _TimedGrid(InProcessGrid):
    """A grid that measures the time of its clients, and its own."""

    def __init__(self, app: ClientApp, num_nodes: int) -> None:
        self.clients, self.seconds = _TimedApp(app), 0.0
        super().__init__(self.clients, num_nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        start = time.process_time()
        try:
            return super().push_messages(messages)
        finally:
            self.seconds += time.process_time() - start


def _cost(
    clients: int,
    dim: int,
    rounds: int,
    by: str,
    run: Callable[[int, int, int], tuple[_TimedGrid, float]],
) -> SumCost:
    grid, seconds = run(clients, dim, rounds)
    return SumCost(
        clients,
        dim,
        rounds,
        by,
        grid.clients.seconds / clients / rounds,
        (seconds - grid.seconds) / rounds,
        8 * grid.bytes_up / clients / dim / rounds,
    )


def _run_ours(clients: int, dim: int, rounds: int) -> tuple[_TimedGrid, float]:
    grid, model = _TimedGrid(ours, clients), to_record({"w": np.zeros(dim, np.float32)})
    strategy = SignSGD(weighted=False, secure=SecureSum(_SHARE), fraction_evaluate=0.0)
    return grid, _seconds(lambda: strategy.start(grid, model, num_rounds=rounds))


def _run_secagg(clients: int, dim: int, rounds: int) -> tuple[_TimedGrid, float]:
    grid = _TimedGrid(ClientApp(client_fn=_make_client, mods=[secaggplus_mod]), clients)
    strategy = FedAvg(
        min_available_clients=clients,
        fraction_evaluate=0.0,
        initial_parameters=ndarrays_to_parameters([np.zeros(dim, np.float32)]),
    )
    empty = Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})
    context = LegacyContext(empty, ServerConfig(num_rounds=rounds), strategy)
    workflow = DefaultWorkflow(fit_workflow=SecAggPlusWorkflow(1.0, _SHARE))
    return grid, _seconds(lambda: workflow(grid, context))


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _make_client(context: Context) -> Client:
    return _Client().to_client()


class _Client(NumPyClient):
    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        return [one + np.float32(1e-3) for one in parameters], 1, {}
