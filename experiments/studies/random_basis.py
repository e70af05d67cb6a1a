"""The study behind the strategies' defaults: votes and medians in a random basis.

``python -m experiments.studies.random_basis`` prints the tables of docs/noise.md about it;
``python -m experiments.studies.random_basis attacks`` prints one; so do accuracy, cohorts,
levels, minority. Results are kept in experiments/results, and a study that was killed resumes
there.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Krum, Strategy

from experiments.studies.commands import show_tables
from experiments.studies.federation import ATTACKS, Setting, simulate
from experiments.studies.jobs import Result, run_jobs
from experiments.studies.peers import Decoding, Eden, compress
from experiments.studies.tables import make_table
from fedmedian import Adaptive, Gaussian, Rotation, TopUp
from fedmedian.clients import perturb
from fedmedian.strategies import MedianSGD, SignSGD

RESULTS = Path(__file__).resolve().parents[1] / "results" / "random-basis"

HOSTILE = 2
"""The number of hostile clients of ten, which FedTrimmedAvg and Krum are told."""

COLLAPSED = 0.2
"""A run whose accuracy ends at or below this has learned nothing, or lost it."""


def unseeded(strategy: Callable[..., Strategy], *, seed: int, **options: Any) -> Strategy:
    """Make a strategy that takes no seed, as Flower's own."""
    return strategy(**options)


SIGN_IN_PLACE = partial(SignSGD, Gaussian(Adaptive(3.0)), rotation=None)
ONE_BLOCK = Rotation(smallest=2**62)
MEDIAN_IN_PLACE = partial(MedianSGD, Gaussian(Adaptive(6.0)), rotation=None)

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "FedAvg": partial(unseeded, FedAvg),
    "FedMedian": partial(unseeded, FedMedian),
    "FedTrimmedAvg (told)": partial(unseeded, partial(FedTrimmedAvg, beta=HOSTILE / 10)),
    "Krum (told)": partial(unseeded, partial(Krum, num_malicious_nodes=HOSTILE)),
    "EDEN, one bit": partial(unseeded, partial(Decoding, Eden())),
    "SignSGD()": SignSGD,
    "MedianSGD()": MedianSGD,
    "SignSGD, parameters' basis": SIGN_IN_PLACE,
    "MedianSGD, parameters' basis": MEDIAN_IN_PLACE,
    **{
        f"{strategy.__name__}, c = {factor:g}": partial(strategy, Gaussian(TopUp(factor)))
        for strategy in (SignSGD, MedianSGD)
        for factor in (1.0, 1.5, 2.0, 3.0)
    },
    **{
        f"{strategy.__name__}, one block": partial(strategy, rotation=ONE_BLOCK)
        for strategy in (SignSGD, MedianSGD)
    },
}
"""The strategies that are compared, by their names in tables."""

USUAL = list(STRATEGIES)[:9]
"""Those of the short tables: Flower's, EDEN and ours, without other levels and blocks."""

CURVES = {"Dirichlet(.3)": Setting(), "one class each": Setting(partition="classes")}
"""The federations whose curves are compared, of clients that hold alike and unlike data."""


def run_setting(strategy: str, setting: Setting, seed: int) -> Result:
    """Run a strategy on a federation; see `fedmedian` and `experiments.studies.federation`."""
    mods = [compress(Eden()) if strategy.startswith("EDEN") else perturb]
    return simulate(STRATEGIES[strategy], setting, seed, mods)


Key = tuple[str, Setting, int]


def run_all(keys: Iterable[Key]) -> dict[Key, Result]:
    """Run strategies on federations from seeds, unless their results are there already."""
    jobs = {
        key: (f"{key[0]} | {key[1]} | seed {key[2]}", partial(run_setting, *key)) for key in keys
    }
    return run_jobs(jobs, RESULTS)


def late(results: Iterable[Result], quantity: str = "accuracy", rounds: int = 5) -> float:
    """Return the mean over runs and their last rounds."""
    return fmean(value for one in results for value in one[quantity][-rounds:])


def accuracy_table() -> str:
    """Compare the curves: ten clients that hold alike and unlike data, two seeds."""
    names = [name for name in USUAL if "told" not in name]
    found = run_all((n, s, seed) for n in names for s in CURVES.values() for seed in (0, 1))
    rows = []
    for name in names:
        row = [name]
        for setting in CURVES.values():
            runs = [found[name, setting, seed] for seed in (0, 1)]
            row += [f"{fmean(one['accuracy'][9] for one in runs):.3f}", f"{late(runs):.3f}"]
        rows.append(row)
    return make_table(
        ["strategy", *(f"{s}, {when}" for s in CURVES for when in ("round 10", "26–30"))], rows
    )


def attacks_table() -> str:
    """Compare what two hostile clients of ten do."""
    honest = Setting()
    settings = {"none": honest}
    settings |= {name: replace(honest, attack=name, num_hostile=HOSTILE) for name in ATTACKS}
    found = run_all((n, s, 0) for s in settings.values() for n in USUAL)
    rows = []
    for name in USUAL:
        ends = [late([found[name, setting, 0]]) for setting in settings.values()]
        rows.append([name, *(f"{end:.3f}" for end in [*ends, min(ends[1:])])])
    return make_table(["strategy", *settings, "worst"], rows)


def cohorts_table() -> str:
    """Compare cohorts of a few clients, a CNN at the rate where FedAvg begins to fail."""
    near = Setting(
        examples=5000,
        network="cnn",
        partition="iid",
        rounds=15,
        learning_rate=0.1,
        momentum=0.9,
    )
    names, seeds = ["FedAvg", "SignSGD()", "MedianSGD()"], range(10)
    settings = {clients: replace(near, num_clients=clients) for clients in (1, 2, 3, 5)}
    found = run_all((n, s, seed) for seed in seeds for s in settings.values() for n in names)
    rows = []
    for name in names:
        row = [name]
        for setting in settings.values():
            ends = [late([found[name, setting, seed]], rounds=3) for seed in seeds]
            row.append(f"{sum(end <= COLLAPSED for end in ends)} / {fmean(ends):.3f}")
        rows.append(row)
    return make_table(["strategy", *(f"M = {clients}" for clients in settings)], rows)


MINORITY = Setting(dataset="digits", learning_rate=0.1, partition="lone class", rounds=200)


def minority_table() -> str:
    """Compare how well a class is known that one honest client of ten alone holds."""
    setting, seeds = MINORITY, (0, 1)
    names = [*USUAL, *(name for name in STRATEGIES if name.endswith("c = 3"))]
    found = run_all((name, setting, seed) for name in names for seed in seeds)
    rows = []
    for name in names:
        runs = [found[name, setting, seed] for seed in seeds]
        rows.append([name, f"{late(runs, 'recall'):.3f}", f"{late(runs):.3f}"])
    return make_table(["strategy", "recall of its class", "accuracy"], rows)


def level_settings() -> dict[str, list[Setting]]:
    """Return the federations over which levels are compared: one departure each from the first.

    Several under one name are attacks, of which the worst counts.
    """
    usual = Setting("digits", learning_rate=0.1, rounds=15)
    fashion = Setting(examples=3000, rounds=12)
    settings = {
        "Dirichlet(.3)": usual,
        "Dirichlet(.1)": replace(usual, alpha=0.1),
        "Dirichlet(1)": replace(usual, alpha=1.0),
        "iid": replace(usual, partition="iid"),
        "one class each": replace(usual, partition="classes"),
        "5 clients": replace(usual, num_clients=5),
        "30 clients": replace(usual, num_clients=30, alpha=1.0),
        "100 clients, iid": replace(usual, num_clients=100, partition="iid"),
        "a third of 30": replace(usual, num_clients=30, alpha=1.0, fraction=1 / 3),
        "five local epochs": replace(usual, local_epochs=5),
        "transformer": replace(usual, network="transformer"),
        "Fashion-MNIST": fashion,
        "Fashion-MNIST, one class each": replace(fashion, partition="classes"),
        "Fashion-MNIST, CNN with BatchNorm": replace(
            fashion, network="cnn with batchnorm", rounds=6
        ),
    }
    hostile = {
        f"{count} hostile, worst of seven": [
            replace(usual, attack=attack, num_hostile=count) for attack in ATTACKS
        ]
        for count in (1, 2, 3)
    }
    return {name: [setting] for name, setting in settings.items()} | hostile


def levels_table() -> str:
    """Compare levels, and no rotation, on many federations."""
    settings, table = level_settings(), []
    names = ["FedAvg", *(name for name in STRATEGIES if "SGD" in name)]
    every = [one for several in settings.values() for one in several]
    found = run_all((name, one, 0) for one in every for name in names)
    for label, several in settings.items():
        worst = [min(late([found[name, one, 0]]) for one in several) for name in names]
        table.append([label, *(f"{accuracy:.3f}" for accuracy in worst)])
    return make_table(["federation", *names], table)


TABLES: dict[str, Callable[[], str]] = {
    "accuracy": accuracy_table,
    "attacks": attacks_table,
    "cohorts": cohorts_table,
    "levels": levels_table,
    "minority": minority_table,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables that the command line names, or all."""
    show_tables("random_basis", TABLES, arguments)


if __name__ == "__main__":
    main()
