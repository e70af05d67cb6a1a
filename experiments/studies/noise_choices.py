"""Tables of docs/noise.md, measured: noise families, scales and decodings without a rotation.

``python -m experiments.studies.noise_choices`` prints them all, in about ten minutes on two cores;
``python -m experiments.studies.noise_choices decoding`` prints one; so do families, estimators,
rule.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import pi
from statistics import fmean
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, UserConfig
from flwr.serverapp.strategy import FedAvg, Strategy
from numpy.typing import NDArray
from scipy.special import ndtri

from experiments.apps import HETEROGENEOUS, read_config
from experiments.apps.heterogeneous.fedmedian_heterogeneous import client_app, server_app
from experiments.studies.commands import show_tables
from experiments.studies.harness import App, StudyGrid, Tell, run
from experiments.studies.peers import Remembering
from experiments.studies.random_basis import unseeded
from experiments.studies.runs import Run
from experiments.studies.tables import make_table
from fedmedian import (
    Adaptive,
    Gaussian,
    Layout,
    Majority,
    Momentum,
    SmoothedMedian,
    mean_from_votes,
)
from fedmedian.records import to_arrays
from fedmedian.rules.noise import NOISE_FAMILIES
from fedmedian.strategies import MedianSGD, SignSGD

MakeStrategy = Callable[..., Strategy]
"""Makes a strategy of a seed and of FedAvg's options."""

_DRAWS = 40
"""The number of draws of noise that a mean error is taken over."""

_SETTINGS = {
    "one class per client": ["rounds=60"],
    "Dirichlet(.3), 3 local epochs": [
        "rounds=30",
        "partition='dirichlet'",
        "local-epochs=3",
        "batch-size=32",
        "learning-rate=0.05",
    ],
}


def decoding_errors(
    updates: NDArray[np.float64], scale: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Return the mean squared error of two decodings of Gaussian votes, over the mean's energy.

    Parameters
    ----------
    updates : (M, d) float64
        The clients' updates.
    scale : float
        The noise scale b.
    rng : numpy.random.Generator
        Draws the noise.

    Returns
    -------
    linear, inverse : float
        The error of b/(2φ0)·(mean sign), and of b·F⁻¹(share of positive votes) with that share
        kept half a vote away from 0 and 1.
    """
    num_clients = len(updates)
    mean, errors = updates.mean(axis=0), np.zeros(2)
    for _ in range(_DRAWS):
        noise = Gaussian().sample(rng, updates.size).reshape(updates.shape)
        counts = (updates + scale * noise > 0).sum(axis=0)
        linear = mean_from_votes(counts, num_clients, Gaussian(), scale)
        margin = 0.5 / num_clients
        inverse = scale * ndtri(np.clip(counts / num_clients, margin, 1 - margin))
        errors += [np.mean((decoded - mean) ** 2) for decoded in (linear, inverse)]
    linear_error, inverse_error = errors / _DRAWS / np.mean(mean**2)
    return float(linear_error), float(inverse_error)


def decoding_table() -> str:
    """Compare the linear decoding of counts with the inversion of the exact law."""
    rng, dim, rows = np.random.default_rng(0), 2000, []
    for clients in (10, 50):
        signal = rng.lognormal(size=dim) * rng.choice([-1.0, 1.0], dim)
        alone = np.zeros((clients, dim))
        alone[rng.integers(0, clients, dim), np.arange(dim)] = signal * clients
        spread = rng.standard_normal((clients, dim)) * np.abs(signal) * 2
        for name, updates in (
            ("all alike", np.tile(signal, (clients, 1))),
            ("spread around the mean", signal + spread),
            ("one client alone", alone),
        ):
            rms = float(np.median(np.sqrt(np.mean(updates**2, axis=1))))
            row = [name, str(clients)]
            for factor in (0.5, 1.0, 3.0):
                linear, inverse = decoding_errors(updates, factor * rms, rng)
                row.append(f"{linear:.2f} / {inverse:.2f}")
            rows.append(row)
    return make_table(["updates", "M", "b = .5 × RMS", "b = RMS", "b = 3 × RMS"], rows)


def run_digits(
    strategy: str,
    make: MakeStrategy,
    overrides: list[str],
    seeds: Sequence[int] = (1, 2),
) -> list[Run]:
    """Run a strategy on digits.

    Parameters
    ----------
    strategy : str
        Its name.
    make : callable
        Makes it of a seed and of FedAvg's options.
    overrides : list of str
        Overrides of the app's configuration, as on its command line.
    seeds : sequence of int (default: 1 and 2)
        The seeds.

    Returns
    -------
    list of Run
        One for each seed.
    """

    def serve(config: UserConfig, grid: StudyGrid, tell: Tell) -> None:
        chosen = server_app.for_all_clients(make, config)(seed=int(config["seed"]))
        server_app.train(chosen, grid, config, tell)

    return run(strategy, App(client_app.app, serve), read_config(HETEROGENEOUS, overrides), seeds)


def late_accuracy(runs: list[Run]) -> float:
    """Return the mean test accuracy over runs and the last ten rounds of each."""
    return fmean(accuracy for one in runs for _, accuracy in one.history[-10:])


def _accuracy_table(first: str, makers: dict[str, MakeStrategy]) -> str:
    rows = [
        [
            name,
            *(
                f"{late_accuracy(run_digits(name, make, overrides)):.3f}"
                for overrides in _SETTINGS.values()
            ),
        ]
        for name, make in makers.items()
    ]
    return make_table([first, *_SETTINGS], rows)


def families_table() -> str:
    """Compare noise families and scales with SignSGD's counts."""
    makers: dict[str, MakeStrategy] = {"FedAvg": partial(unseeded, FedAvg)}
    for family in NOISE_FAMILIES:
        for factor in (1.0, 3.0, 6.0):
            name = f"{family.__name__}, b = {factor:g} × RMS"
            makers[name] = partial(SignSGD, family(Adaptive(factor)), rotation=None)
    makers["Gaussian, b = .3 × maximum"] = partial(
        SignSGD, Gaussian(Adaptive(0.3, magnitude="max")), rotation=None
    )
    return _accuracy_table("SignSGD, counts", makers)


def estimators_table() -> str:
    """Compare what the server can do with signs and with vectors."""
    sign = partial(SignSGD, Gaussian(Adaptive(3.0)), rotation=None)
    less, more = (
        partial(MedianSGD, Gaussian(Adaptive(factor)), rotation=None) for factor in (3.0, 6.0)
    )
    return _accuracy_table(
        "strategy",
        {
            "FedAvg": partial(unseeded, FedAvg),
            "SignSGD, b = 3 × RMS": sign,
            "the same, optimizer=Momentum(0.9)": partial(sign, optimizer=Momentum(0.9)),
            "the same, aggregator=Majority(calibrated=True)": partial(
                sign, aggregator=Majority(calibrated=True)
            ),
            "SignSGD(None, Majority(), learning_rate=0.003)": partial(
                SignSGD, None, Majority(), learning_rate=0.003, rotation=None
            ),
            "MedianSGD, b = 6 × RMS": more,
            "MedianSGD, b = 3 × RMS": less,
            "MedianSGD, b = 6 × RMS, aggregator=SmoothedMedian()": partial(
                more, aggregator=SmoothedMedian()
            ),
            "MedianSGD(None)": partial(MedianSGD, None, rotation=None),
        },
    )


class _Probe(Remembering):
    """FedAvg that notes what the rule for b* would choose, as a multiple of the RMS."""

    def __init__(self, window: int, factors: list[float], *, seed: int, **options: Any) -> None:
        super().__init__(**options)
        self.window = window
        self.factors = factors

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Note the rule's choice for this round's updates, then aggregate as FedAvg."""
        replies, before = list(replies), to_arrays(self.before)
        layout = Layout.of_model(before)
        updates = []
        for reply in replies:
            trained = reply.content.array_records["arrays"]
            updates.append(layout.difference(before, to_arrays(trained)).astype(np.float64))
        stacked = np.stack(updates)
        third = np.mean((stacked - stacked.mean(axis=0)) ** 3, axis=0)
        # The minimum over b of the sum over coordinates of κ₃²/36b⁴ + πb²/(2MW).
        sixth = 4 * np.mean(third**2) / 36 * len(updates) * self.window / pi
        rms = np.median(np.sqrt(np.mean(stacked**2, axis=1)))
        self.factors.append(float(sixth ** (1 / 6) / rms))
        return super().aggregate_train(server_round, replies)


def rule_table() -> str:
    """Show what the rule for b* would choose, as a multiple of the clients' RMS."""
    rows = []
    for name, overrides in _SETTINGS.items():
        for window in (1, 10, 100):
            factors: list[float] = []
            probe = partial(_Probe, window, factors)
            run_digits(name, probe, [*overrides, "rounds=30"], seeds=(1,))
            rows.append([name, str(window), *(f"{factors[t - 1]:.1f}" for t in (1, 10, 30))])
    return make_table(["data", "W", "round 1", "round 10", "round 30"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "decoding": decoding_table,
    "families": families_table,
    "estimators": estimators_table,
    "rule": rule_table,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables that the command line names, or all."""
    show_tables("noise_choices", TABLES, arguments)


if __name__ == "__main__":
    main()
