"""The harness of all studies: strategies on an app's clients, in this process, seed by seed."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MessageType, UserConfig
from flwr.clientapp import ClientApp
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from experiments.apps.heterogeneous.fedmedian_heterogeneous.measuring import (
    MeteredGrid,
    Run,
    Tell,
    measure,
)
from fedmedian.clients import InProcessGrid
from fedmedian.wire.scalars import is_refusal


class StudyGrid(MeteredGrid):
    """A metered Grid that keeps the clients' evaluations and lets no client fail.

    Clients answer in the order of their partitions, whichever Flower asks first.

    Attributes
    ----------
    evaluations : list of (int, float)
        Rounds, and the mean over all clients' examples of the "accuracy" that they reported.
    model : ArrayRecord
        The model that they evaluated last.
    """

    def __init__(self, client_app: ClientApp, config: UserConfig) -> None:
        super().__init__(InProcessGrid(client_app, int(config["num-clients"]), run_config=config))
        self.evaluations: list[tuple[int, float]] = []
        self.model = ArrayRecord()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages, and return their replies.

        Raises
        ------
        RuntimeError
            If a client fails: a study of fewer clients than it says would pass for one of all.
            A client whose training has diverged and who says so has not.
        """
        messages = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        replies = list(super().send_and_receive(messages, timeout=timeout))
        for reply in replies:
            if reply.has_error() and not _has_diverged(reply.error.reason):
                raise RuntimeError(f"a client failed: {reply.error.reason}")
        if messages and messages[0].metadata.message_type == MessageType.EVALUATE:
            (self.model,) = messages[0].content.array_records.values()
            accuracies, examples = (
                [cast(float, reply.content.metric_records["metrics"][key]) for reply in replies]
                for key in ("accuracy", "num-examples")
            )
            server_round = cast(int, messages[0].content.config_records["config"]["server-round"])
            self.evaluations.append((server_round, fmean(accuracies, weights=examples)))
        return replies


@dataclass(frozen=True)
class App:
    """An app in this process: a strategy and the clients that it trains.

    Parameters
    ----------
    client_app : ClientApp
        The app of each client.
    serve : callable
        Takes a run configuration, ``"seed"`` and ``"num-clients"`` in it, trains the clients of
        a grid, and tells the test accuracy after each round.
    """

    client_app: ClientApp
    serve: Callable[[UserConfig, StudyGrid, Tell], None]


def run(strategy: str, app: App, config: UserConfig, seeds: Iterable[int]) -> list[Run]:
    """Run an app once from each seed; the same seed gives the same run.

    Parameters
    ----------
    strategy : str
        The strategy's name in tables and figures.
    app : App
        The app.
    config : dict
        The run configuration, ``"num-clients"`` in it.
    seeds : iterable of int
        The seeds, each of which becomes the configuration's ``"seed"``.

    Returns
    -------
    list of Run
        One for each seed.

    Raises
    ------
    RuntimeError
        If a client fails.
    """
    runs = []
    for seed in seeds:
        seeded: UserConfig = {**config, "seed": seed}
        grid = StudyGrid(app.client_app, seeded)
        # The clients share the machine's cores with each other and with whatever else runs.
        with threadpool_limits(limits=1), _no_entropy(seed):
            runs.append(measure(strategy, seed, grid, partial(app.serve, seeded)))
    return runs


def _has_diverged(reason: str | None) -> bool:
    return is_refusal(reason or "") and str(reason).endswith("holds NaN or infinity")


@contextmanager
def _no_entropy(seed: int) -> Iterator[None]:
    """Let NumPy's and torch's generators follow from a seed, those without one too."""
    entropy, make = np.random.SeedSequence(seed), np.random.default_rng

    def make_seeded(seed: Any = None) -> np.random.Generator:
        return make(entropy.spawn(1)[0] if seed is None else seed)

    np.random.seed(seed)  # noqa: NPY002  # scikit-learn's
    torch.manual_seed(seed)
    with patch("numpy.random.default_rng", make_seeded):
        yield
