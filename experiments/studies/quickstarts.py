"""Three apps as Flower's quickstarts are, with FedAvg and with two lines changed.

``python -m experiments.studies.quickstarts [REPETITIONS]`` prints the table of
docs/existing-apps.md: means over runs from the seeds 0, 1, …; ``-c`` changes the apps'
configuration, as for ``flwr run``, and leaves out the apps that have no such key.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from flwr.app import ArrayRecord, Context, RecordDict, UserConfig
from flwr.common.config import get_project_config
from flwr.serverapp import ServerApp

from experiments.apps import QUICKSTARTS, read_config
from experiments.studies.commands import document, make_documenting_parser
from experiments.studies.harness import App, StudyGrid, Tell, run
from experiments.studies.plugging import plug_in
from experiments.studies.progress import tracked
from experiments.studies.runs import Run
from experiments.studies.tables import make_table
from fedmedian.model.layout import Layout
from fedmedian.records import to_arrays

NUM_CLIENTS = 10
"""The number of clients that ``flwr new`` gives an app."""


@contextmanager
def loaded(folder: Path) -> Iterator[App]:
    """Import an app, and forget its modules afterwards, so that a copy of it can be next.

    Parameters
    ----------
    folder : Path
        The app's folder, with its ``pyproject.toml``. In its last round it evaluates on all
        clients.

    Yields
    ------
    App
        The app. Its modules are in ``sys.modules`` as long as the context is open.
    """
    components = get_project_config(folder)["tool"]["flwr"]["app"]["components"]
    package, _, _ = components["serverapp"].partition(".")
    sys.path.insert(0, str(folder))
    try:
        server_app: ServerApp = _load(components["serverapp"])

        def serve(config: UserConfig, grid: StudyGrid, tell: Tell) -> None:
            server_app(grid=grid, context=Context(1, 1, {}, RecordDict(), config))
            for server_round, accuracy in grid.evaluations:
                tell(server_round, accuracy)

        yield App(_load(components["clientapp"]), serve)
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]


def _load(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


@dataclass(frozen=True)
class Outcome:
    """The result of an app with one strategy.

    Parameters
    ----------
    runs : list of Run
        Its runs, one for each seed.
    model : ArrayRecord
        The model at the end of the last one.
    """

    runs: list[Run]
    model: ArrayRecord

    @property
    def accuracy(self) -> float:
        """The mean accuracy after the last round."""
        return fmean(run.accuracy for run in self.runs)

    @property
    def uplink_bytes(self) -> float:
        """The mean of a training reply's bytes."""
        return fmean(run.uplink_bytes for run in self.runs)


def try_app(
    strategy: str, folder: Path, seeds: Sequence[int], overrides: Sequence[str] = ()
) -> Outcome:
    """Run an app as it stands.

    Parameters
    ----------
    strategy : str
        The name of its strategy.
    folder : Path
        The app's folder.
    seeds : sequence of int
        The seeds, at least one.
    overrides : sequence of str (default: none)
        What differs from the app's own configuration, ``KEY=VALUE``.

    Returns
    -------
    Outcome
        The result.
    """
    model: ArrayRecord

    with loaded(folder) as app:

        def serve(config: UserConfig, grid: StudyGrid, tell: Tell) -> None:
            nonlocal model
            app.serve(config, grid, tell)
            model = grid.model

        config: UserConfig = {**read_config(folder, overrides), "num-clients": NUM_CLIENTS}
        runs = run(strategy, App(app.client_app, serve), config, seeds)
    return Outcome(runs, model)


def compare(
    folder: Path, seeds: Sequence[int], overrides: Sequence[str] = ()
) -> tuple[Outcome, Outcome]:
    """Run an app as it stands, with FedAvg, and with the two lines changed, with SignSGD.

    Parameters
    ----------
    folder : Path
        The app's folder.
    seeds : sequence of int
        The seeds, at least one.
    overrides : sequence of str (default: none)
        What differs from the app's own configuration, ``KEY=VALUE``.

    Returns
    -------
    fedavg, sign : Outcome
        The results.
    """
    with TemporaryDirectory() as temporary:
        changed = Path(temporary) / folder.name
        plug_in(folder, changed)
        return (
            try_app("FedAvg", folder, seeds, overrides),
            try_app("SignSGD", changed, seeds, overrides),
        )


def quickstart_table(seeds: Sequence[int], overrides: Sequence[str] = ()) -> str:
    """Compare the apps; bytes are those of a training reply as sent, headers included.

    Parameters
    ----------
    seeds : sequence of int
        The seeds, at least one.
    overrides : sequence of str (default: none)
        What differs from the apps' own configuration, ``KEY=VALUE``.

    Returns
    -------
    str
        The table, of the apps that have all of these keys.

    Raises
    ------
    SystemExit
        If an override is not of that form, or no app has its key.
    """
    rows = []
    for folder in tracked(_apps_with(overrides), "app"):
        fedavg, sign = compare(folder, seeds, overrides)
        row = [folder.name, f"{Layout.of_model(to_arrays(fedavg.model)).dim:,}"]
        row += [f"{outcome.accuracy:.3f}" for outcome in (fedavg, sign)]
        row += [f"{outcome.uplink_bytes:,.0f}" for outcome in (fedavg, sign)]
        rows.append([*row, f"{fedavg.uplink_bytes / sign.uplink_bytes:.1f}"])
    headings = ["app", "parameters"]
    for measured in ("accuracy", "uplink bytes"):
        headings += [f"{measured} FedAvg", f"{measured} SignSGD"]
    return make_table([*headings, "ratio"], rows)


def _apps_with(overrides: Sequence[str]) -> list[Path]:
    apps, refusal = [], None
    for folder in QUICKSTARTS:
        try:
            read_config(folder, overrides)
        except SystemExit as error:
            refusal = error
        else:
            apps.append(folder)
    if not apps and refusal is not None:
        raise refusal
    return apps


def main() -> None:
    """Print the table."""
    parser = make_documenting_parser("quickstarts")
    parser.add_argument(
        "repetitions",
        type=_at_least_one,
        nargs="?",
        default=1,
        help="seeds to average over (default: 1)",
    )
    parser.add_argument(
        "-c",
        dest="overrides",
        metavar="KEY=VALUE",
        nargs="+",
        default=[],
        help="another value for a key of the apps' pyproject.toml, such as num-server-rounds=10",
    )
    arguments = parser.parse_args()
    from datasets import disable_progress_bars  # what only the apps themselves need otherwise

    disable_progress_bars()
    text = quickstart_table(range(arguments.repetitions), arguments.overrides)
    print(text)
    if arguments.document:
        document("-".join(["quickstarts", str(arguments.repetitions), *arguments.overrides]), text)


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
