"""Which noise, which scale, which decoding: the tables of docs/noise.md, measured.

``python -m experiments.noise`` prints them all as Markdown, in about ten minutes on two cores;
``python -m experiments.noise decoding`` prints one; so do families, estimators, robustness, rule.
"""

import logging
import sys
from collections.abc import Callable, Iterable
from functools import partial
from math import pi

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    UserConfig,
)
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from numpy.typing import NDArray
from scipy.special import ndtri

from experiments.heterogeneous.cli import read_config
from experiments.heterogeneous.fedmedian_heterogeneous import client_app
from experiments.heterogeneous.fedmedian_heterogeneous.task import (
    evaluate,
    load_test_set,
    make_network,
)
from fedmedian import Adaptive, Gaussian, Layout, Momentum, Noise, mean_from_votes
from fedmedian.clients import InProcessGrid, perturb
from fedmedian.noise import NOISE_FAMILIES
from fedmedian.strategies import MedianSGD, SignSGD
from fedmedian.strategies.options import FedAvgOptions
from fedmedian.wire import read_npy

_SEEDS = (1, 2)
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


def markdown_table(headings: list[str], rows: Iterable[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def decoding_errors(
    updates: NDArray[np.float64], scale: float, rng: np.random.Generator, draws: int = 40
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
    draws : int (default: 40)
        How often.

    Returns
    -------
    linear, inverse : float
        The error of b/(2φ0)·(mean sign), and of b·F⁻¹(share of positive votes) with that share
        kept half a vote away from 0 and 1.
    """
    num_clients = len(updates)
    mean, errors = updates.mean(axis=0), np.zeros(2)
    for _ in range(draws):
        noise = Gaussian().sample(rng, updates.size).reshape(updates.shape)
        counts = (updates + scale * noise > 0).sum(axis=0)
        linear = mean_from_votes(counts, num_clients, Gaussian(), scale)
        margin = 0.5 / num_clients
        inverse = scale * ndtri(np.clip(counts / num_clients, margin, 1 - margin))
        errors += [np.mean((decoded - mean) ** 2) for decoded in (linear, inverse)]
    linear_error, inverse_error = errors / draws / np.mean(mean**2)
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
    return markdown_table(["updates", "M", "b = .5 × RMS", "b = RMS", "b = 3 × RMS"], rows)


def _everyone(config: UserConfig) -> FedAvgOptions:
    clients = int(config["num-clients"])
    return {"fraction_evaluate": 0.0, "min_train_nodes": clients, "min_available_nodes": clients}


def flip(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Make the first two clients bad: a mod that turns their update u into −5·u."""
    model = message.content.array_records["arrays"].to_numpy_ndarrays()
    reply = call_next(message, context)
    if int(context.node_config["partition-id"]) < 2:
        trained = reply.content.array_records["arrays"]
        for name, before in zip(list(trained), model, strict=True):
            trained[name] = Array(before + 5 * (before - trained[name].numpy()))
    return reply


attacked_app = ClientApp(mods=[perturb, flip])
attacked_app.train()(client_app.train_model)


def accuracy(
    make: Callable[[int, FedAvgOptions], Strategy],
    overrides: list[str],
    app: ClientApp = client_app.app,
) -> float:
    """Return the test accuracy of a strategy on digits, over the last ten rounds and all seeds.

    Parameters
    ----------
    make : callable
        Maps a seed and FedAvg's options to a strategy.
    overrides : list of str
        Overrides of the app's configuration, as on its command line.
    app : ClientApp (default: the experiment's)
        The clients.

    Returns
    -------
    float
        The mean accuracy.
    """
    images, labels = load_test_set()
    accuracies = []
    for seed in _SEEDS:
        config = read_config([*overrides, f"seed={seed}"])
        model, rounds = make_network(seed), int(config["rounds"])

        def test(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            if server_round > rounds - 10:  # noqa: B023  # called within this turn of the loop
                model.load_state_dict(arrays.to_torch_state_dict())  # noqa: B023
                accuracies.append(evaluate(model, images, labels))  # noqa: B023
            return None

        make(seed, _everyone(config)).start(
            grid=InProcessGrid(app, int(config["num-clients"]), run_config=config),
            initial_arrays=ArrayRecord(dict(model.state_dict())),
            num_rounds=rounds,
            evaluate_fn=test,
        )
    return float(np.mean(accuracies))


def _accuracy_table(first: str, makers: dict[str, Callable[[int, FedAvgOptions], Strategy]]) -> str:
    rows = [
        [name, *(f"{accuracy(make, overrides):.3f}" for overrides in _SETTINGS.values())]
        for name, make in makers.items()
    ]
    return markdown_table([first, *_SETTINGS], rows)


def _counts(noise: Noise, seed: int, options: FedAvgOptions) -> SignSGD:
    return SignSGD(noise, seed=seed, **options)


def families_table() -> str:
    """Compare noise families and scales with SignSGD's counts."""
    makers: dict[str, Callable[[int, FedAvgOptions], Strategy]] = {
        "FedAvg": lambda seed, options: FedAvg(**options)
    }
    for family in NOISE_FAMILIES.values():
        for factor in (1.0, 3.0, 6.0):
            noise = family(Adaptive(factor))
            makers[f"{family.__name__}, b = {factor:g} × RMS"] = partial(_counts, noise)
    makers["Gaussian, b = .3 × maximum"] = partial(_counts, Gaussian(Adaptive(0.3, of="max")))
    return _accuracy_table("SignSGD, counts", makers)


def estimators_table() -> str:
    """Compare what the server can do with signs and with vectors."""
    return _accuracy_table(
        "strategy",
        {
            "FedAvg": lambda seed, options: FedAvg(**options),
            "SignSGD()": lambda seed, options: SignSGD(seed=seed, **options),
            "SignSGD(optimizer=Momentum(0.9))": lambda seed, options: SignSGD(
                optimizer=Momentum(0.9), seed=seed, **options
            ),
            'SignSGD(decode="majority", calibrated=True)': lambda seed, options: SignSGD(
                decode="majority", calibrated=True, seed=seed, **options
            ),
            'SignSGD(None, decode="majority", learning_rate=0.003)': lambda seed, options: SignSGD(
                None, decode="majority", learning_rate=0.003, seed=seed, **options
            ),
            "MedianSGD()": lambda seed, options: MedianSGD(seed=seed, **options),
            "MedianSGD(Gaussian(Adaptive(3.0)))": lambda seed, options: MedianSGD(
                Gaussian(Adaptive(3.0)), seed=seed, **options
            ),
            'MedianSGD(estimator="smoothed")': lambda seed, options: MedianSGD(
                estimator="smoothed", seed=seed, **options
            ),
            "MedianSGD(None)": lambda seed, options: MedianSGD(None, seed=seed, **options),
        },
    )


def robustness_table() -> str:
    """Compare strategies where two of ten clients send minus five times their update."""
    overrides = [*_SETTINGS["Dirichlet(.3), 3 local epochs"], "alpha=1.0"]
    makers: dict[str, Callable[[int, FedAvgOptions], Strategy]] = {
        "FedAvg": lambda seed, options: FedAvg(**options),
        "SignSGD()": lambda seed, options: SignSGD(seed=seed, **options),
        "MedianSGD()": lambda seed, options: MedianSGD(seed=seed, **options),
        "MedianSGD(Gaussian(Adaptive(1.0)))": lambda seed, options: MedianSGD(
            Gaussian(Adaptive(1.0)), seed=seed, **options
        ),
        'MedianSGD(Gaussian(Adaptive(1.0)), estimator="smoothed")': lambda seed, options: MedianSGD(
            Gaussian(Adaptive(1.0)), estimator="smoothed", seed=seed, **options
        ),
        "MedianSGD(None)": lambda seed, options: MedianSGD(None, seed=seed, **options),
    }
    rows = [
        [name, f"{accuracy(make, overrides):.3f}", f"{accuracy(make, overrides, attacked_app):.3f}"]
        for name, make in makers.items()
    ]
    return markdown_table(["strategy", "nobody attacks", "two of ten attack"], rows)


class _Probe(FedAvg):
    """FedAvg that notes what the rule for b* would choose, as a multiple of the RMS."""

    def __init__(self, window: int, options: FedAvgOptions) -> None:
        super().__init__(**options)
        self.window = window
        self.factors: list[float] = []
        self._model: dict[str, NDArray[np.generic]] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember the model that the clients start from."""
        self._model = {name: read_npy(array.data) for name, array in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Note the rule's choice for this round's updates, then aggregate as FedAvg."""
        replies, layout = list(replies), Layout.of(self._model)
        updates = []
        for reply in replies:
            trained = reply.content.array_records["arrays"]
            after = {name: read_npy(array.data) for name, array in trained.items()}
            updates.append(layout.difference(self._model, after).astype(np.float64))
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
        config = read_config(overrides)
        for window in (1, 10, 100):
            probe, model = _Probe(window, _everyone(config)), make_network(1)
            probe.start(
                grid=InProcessGrid(client_app.app, int(config["num-clients"]), run_config=config),
                initial_arrays=ArrayRecord(dict(model.state_dict())),
                num_rounds=30,
            )
            chosen = [f"{probe.factors[t - 1]:.1f}" for t in (1, 10, 30)]
            rows.append([name, str(window), *chosen])
    return markdown_table(["data", "W", "round 1", "round 10", "round 30"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "decoding": decoding_table,
    "families": families_table,
    "estimators": estimators_table,
    "robustness": robustness_table,
    "rule": rule_table,
}


def main() -> None:
    """Print the tables that the command line names, or all."""
    names = sys.argv[1:] or list(TABLES)
    if unknown := [name for name in names if name not in TABLES]:
        raise SystemExit(f"unknown table {unknown[0]!r}; there are: {', '.join(TABLES)}")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    for name in names:
        print(f"### {name}\n\n{TABLES[name]()}\n", flush=True)


if __name__ == "__main__":
    main()
