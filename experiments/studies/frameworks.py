"""The small apps of the frameworks that users come from, with FedAvg and with ours.

``python -m experiments.studies.frameworks`` prints the table of docs/recipes.md, without those
that are not installed. Results are kept in experiments/results.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

from flwr.app import UserConfig
from flwr.serverapp.strategy import FedAvg

from experiments.apps.frameworks import FRAMEWORKS, make_client_app
from experiments.studies.commands import show_tables
from experiments.studies.harness import App, StudyGrid, Tell, run
from experiments.studies.jobs import Result, run_jobs
from experiments.studies.tables import make_table
from fedmedian.model.layout import Layout
from fedmedian.records import to_arrays
from fedmedian.strategies import MedianSGD, SignSGD

RESULTS = Path(__file__).resolve().parents[1] / "results" / "frameworks"

STRATEGIES: dict[str, Callable[[], FedAvg]] = {
    "FedAvg": FedAvg,
    "SignSGD()": SignSGD,
    "MedianSGD()": MedianSGD,
}

ROUNDS = 20

_LOGGER = logging.getLogger(__name__)


def installed(names: Iterable[str]) -> list[str]:
    """Return the frameworks whose packages are installed, and log the others."""
    found = []
    for name in names:
        framework, packages = FRAMEWORKS[name]
        if missing := [package for package in packages if find_spec(package) is None]:
            _LOGGER.warning("%s is left out: %s is missing", framework, ", ".join(missing))
        else:
            found.append(name)
    return found


def train(name: str, strategy: str, rounds: int, seed: int) -> Result:
    """Train the model of a framework's app.

    Parameters
    ----------
    name : str
        The app's module.
    strategy : str
        One of `STRATEGIES`.
    rounds : int
        The number of rounds.
    seed : int
        The seed of noise and training.

    Returns
    -------
    dict
        The number of ``parameters``, the ``accuracy`` after the last round, and the ``bytes`` of
        a training reply.
    """
    framework: Any = import_module(f"experiments.apps.frameworks.{name}")
    arrays = framework.to_record(framework.create())

    def serve(config: UserConfig, grid: StudyGrid, tell: Tell) -> None:
        STRATEGIES[strategy]().start(grid, arrays, rounds)
        for server_round, accuracy in grid.evaluations:
            tell(server_round, accuracy)

    app = App(make_client_app(framework), serve)
    (found,) = run(strategy, app, {"num-clients": 10}, [seed])
    parameters = Layout.of_model(to_arrays(arrays)).dim
    return {"parameters": parameters, "accuracy": found.accuracy, "bytes": found.uplink_bytes}


def frameworks_table(rounds: int = ROUNDS, seeds: Sequence[int] = (0, 1)) -> str:
    """Compare strategies in the apps of the installed frameworks: means over seeds."""
    names = installed(FRAMEWORKS)
    jobs = {
        (name, strategy, seed): (
            f"{name} | {strategy} | {rounds} rounds | seed {seed}",
            partial(train, name, strategy, rounds, seed),
        )
        for name in names
        for strategy in STRATEGIES
        for seed in seeds
    }
    results = run_jobs(jobs, RESULTS)

    def mean(key: str, name: str, strategy: str) -> float:
        return fmean(results[name, strategy, seed][key] for seed in seeds)

    rows = []
    for name in names:
        ends = [f"{mean('accuracy', name, strategy):.3f}" for strategy in STRATEGIES]
        fedavg, sign = (mean("bytes", name, strategy) for strategy in ("FedAvg", "SignSGD()"))
        parameters = f"{mean('parameters', name, 'FedAvg'):,.0f}"
        rows.append([FRAMEWORKS[name][0], parameters, *ends, f"{fedavg / sign:.1f}"])
    return make_table(["framework", "parameters", *STRATEGIES, "FedAvg's / SignSGD's bytes"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    show_tables("frameworks", {"accuracy": frameworks_table}, arguments)


if __name__ == "__main__":
    main()
