"""The study of defaults: many kinds of app, each with FedAvg and with two lines changed.

``python -m experiments.studies.apps`` prints the table. Results are kept in experiments/results,
and a study that was killed resumes there.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from experiments.apps import QUICKSTARTS
from experiments.studies.both_ways import run_setting
from experiments.studies.commands import show_tables
from experiments.studies.federation import Setting
from experiments.studies.jobs import Result, run_jobs
from experiments.studies.plugging import plug_in
from experiments.studies.quickstarts import try_app
from experiments.studies.random_basis import late
from experiments.studies.tables import make_table

RESULTS = Path(__file__).resolve().parents[1] / "results" / "apps"

STRATEGIES = ("FedAvg", "SignSGD()", "SignSGD(downlink=CodedSteps())", "MedianSGD()")

EACH = 600
"""The number of images per client, so that all federations take as many steps one after another."""

Fashion = partial(Setting, examples=10 * EACH, tested=5)
CNN = partial(Fashion, network="cnn", momentum=0.9)


def _of(num_clients: int, **options: Any) -> Setting:
    """Return a federation that trains until FedAvg hardly climbs: for longer with few clients."""
    rounds = 25 if num_clients >= 10 else 75
    return CNN(num_clients=num_clients, examples=num_clients * EACH, rounds=rounds, **options)


COUNTS = (2, 3, 5, 10, 50)

SETTINGS = {
    **{f"CNN, {n} clients, iid": _of(n, partition="iid") for n in COUNTS},
    **{f"CNN, {n} clients, Dirichlet(.1)": _of(n, alpha=0.1) for n in COUNTS},
    "CNN, 2 of 10 clients a round, iid": CNN(partition="iid", fraction=0.2, rounds=75),
    "CNN with a local head, iid": _of(10, partition="iid", private_head=True),
    "CNN in float16, iid": _of(10, partition="iid", dtype="float16"),
    "CNN with BatchNorm, iid": _of(10, partition="iid", network="cnn with batchnorm"),
    "MLP with tied layers, iid": Fashion(network="mlp with tied layers", partition="iid"),
    "transformer with LayerNorm, iid": Fashion(network="transformer", partition="iid"),
}
"""The federations by name, of Fashion-MNIST and ten clients where not said."""


def run_app(strategy: str, app: Setting | Path, seed: int) -> Result:
    """Run an app with a strategy's defaults.

    Parameters
    ----------
    strategy : str
        One of `STRATEGIES`.
    app : Setting or Path
        A federation, or the folder of an app of Flower's, in which FedAvg is replaced.
    seed : int
        The seed.

    Returns
    -------
    dict
        ``accuracy`` after each round, or after the last.
    """
    from datasets import disable_progress_bars  # what only the apps themselves need otherwise

    disable_progress_bars()
    if isinstance(app, Setting):
        return run_setting(strategy, app, seed)
    if strategy == "FedAvg":
        return {"accuracy": [try_app(strategy, app, [seed]).accuracy]}
    with TemporaryDirectory() as temporary:
        changed = Path(temporary) / app.name
        plug_in(app, changed, strategy.partition("(")[0], downlink="downlink" in strategy)
        return {"accuracy": [try_app(strategy, changed, [seed]).accuracy]}


def app_table(apps: dict[str, Setting | Path], seeds: Sequence[int] = (0, 1)) -> str:
    """Compare strategies in apps: mean accuracy over seeds and, of federations, five rounds.

    Parameters
    ----------
    apps : dict of str to Setting or Path
        The apps by name.
    seeds : sequence of int (default: 0, 1)
        The seeds.

    Returns
    -------
    str
        The table, with how far the worst of ours is above FedAvg.
    """
    jobs = {
        (name, strategy, seed): (
            f"{strategy} | {app if isinstance(app, Setting) else app.name} | seed {seed}",
            partial(run_app, strategy, app, seed),
        )
        for seed in seeds
        for name, app in apps.items()
        for strategy in STRATEGIES
    }
    results = run_jobs(jobs, RESULTS)
    rows = []
    for name in apps:
        ends = [
            fmean(late([results[name, strategy, seed]]) for seed in seeds)
            for strategy in STRATEGIES
        ]
        rows.append([name, *(f"{end:.3f}" for end in ends), f"{min(ends[1:]) - ends[0]:+.3f}"])
    return make_table(["app", *STRATEGIES, "worst − FedAvg"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    apps: dict[str, Setting | Path] = {
        **{folder.name: folder for folder in QUICKSTARTS},
        **SETTINGS,
    }
    show_tables("apps", {"accuracy": partial(app_table, apps)}, arguments)


if __name__ == "__main__":
    main()
