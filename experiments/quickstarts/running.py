"""Running a Flower app, from its folder, in this process."""

import sys
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch
from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from fedmedian.clients import InProcessGrid

NUM_CLIENTS = 10
"""What ``flwr new`` gives an app."""


@dataclass(frozen=True)
class App:
    """A loaded app: its two components and its run configuration."""

    server_app: ServerApp
    client_app: ClientApp
    run_config: UserConfig


@dataclass(frozen=True)
class Outcome:
    """What a run of an app came to.

    Parameters
    ----------
    arrays : ArrayRecord
        The model after the last round.
    accuracy : float
        Its accuracy on the test sets of all clients together.
    uplink_bytes : float
        Bytes of a training reply as sent, with all headers, the mean over clients and rounds.
    """

    arrays: ArrayRecord
    accuracy: float
    uplink_bytes: float


@contextmanager
def loaded(folder: Path) -> Iterator[App]:
    """Import an app, and forget its modules afterwards, so that a copy of it can be next.

    Parameters
    ----------
    folder : Path
        The app's folder, with its ``pyproject.toml``.

    Yields
    ------
    App
        The app. Its modules are in ``sys.modules`` as long as the context is open.
    """
    project = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    components = project["components"]
    package, _, _ = components["serverapp"].partition(".")
    sys.path.insert(0, str(folder))
    try:
        yield App(
            _load(components["serverapp"]),
            _load(components["clientapp"]),
            project["config"],
        )
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]


def _load(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def run(app: App, seed: int) -> Outcome:
    """Run an app's ServerApp on ten clients that run its ClientApp.

    Parameters
    ----------
    app : App
        The app. In its last round it must evaluate on all clients, which report "accuracy".
    seed : int
        What torch's generator starts from, so that runs of an app start from the same model.

    Returns
    -------
    Outcome
        What came of it.

    Raises
    ------
    RuntimeError
        If a client fails.
    """
    grid = _ObservingGrid(app.client_app, NUM_CLIENTS, run_config=app.run_config)
    context = Context(
        run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=app.run_config
    )
    torch.manual_seed(seed)
    # The clients share the machine's cores with each other and with whatever else runs.
    with threadpool_limits(limits=1):
        app.server_app(grid=grid, context=context)
    return grid.outcome()


class _ObservingGrid(InProcessGrid):
    """Tells training replies from others, and keeps the last evaluation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._trained = 0
        self._training_bytes = 0
        self._last_evaluation: tuple[list[Message], list[Message]] = [], []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        messages, before = list(messages), self.bytes_up
        replies = super().send_and_receive(messages, timeout=timeout)
        for reply in replies:
            if reply.has_error():
                raise RuntimeError(f"a client failed: {reply.error.reason}")
        if messages[0].metadata.message_type == MessageType.TRAIN:
            self._trained += len(replies)
            self._training_bytes += self.bytes_up - before
        else:
            self._last_evaluation = messages, replies
        return replies

    def outcome(self) -> Outcome:
        messages, replies = self._last_evaluation
        (arrays,) = messages[0].content.array_records.values()
        accuracies, examples = (
            [cast(float, reply.content.metric_records["metrics"][key]) for reply in replies]
            for key in ("accuracy", "num-examples")
        )
        return Outcome(
            arrays=arrays,
            accuracy=fmean(accuracies, weights=examples),
            uplink_bytes=self._training_bytes / self._trained,
        )
