"""The study of privacy: what ε a run comes to, and how well a model learns at an ε.

``python -m experiments.studies.privacy`` prints the tables of docs/privacy.md;
``python -m experiments.studies.privacy rounds`` prints one; so do noise, sums and accuracy. The
last one trains: results are kept in experiments/results, and a study that was killed resumes there.

All rules stay within one (ε, δ) for all data of a client. `noise_multiplier_for` chooses the noise
of each, for any two updates of norm at most C. Against the server, each client adds the noise, and
all clients are asked in each round. Against readers of the models, a tenth of them is drawn in
secret, and with Flower's wrapper the server adds noise to the mean. Noise has a seed here, so that
a run can be repeated. Outside of a simulation it must not have one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from math import log, pi, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from flwr.clientapp.mod import LocalDpMod
from flwr.clientapp.typing import Mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Strategy,
)

from experiments.studies.commands import show_tables
from experiments.studies.federation import Setting, make_network, simulate
from experiments.studies.jobs import Job, Result, run_jobs
from experiments.studies.random_basis import late, unseeded
from experiments.studies.tables import make_table
from fedmedian import Clip, Gaussian, Rotation, SecureSum
from fedmedian.clients import perturb
from fedmedian.privacy import Mechanism, honest_of, limit_of_entries, noise_multiplier_for
from fedmedian.strategies import MedianSGD, SignSGD

RESULTS = Path(__file__).resolve().parents[1] / "results" / "privacy"

DELTA = 1e-5
EPSILONS = (1.0, 4.0, 8.0)
ROUNDS = (1, 10, 30, 100, 300, 1000)
DRAWN = 10
"""The number of clients that are a hidden tenth in the table of noise; all must answer."""
HONEST = (1, 3, 10, 30, 100, 300)
"""The numbers of honest clients in the table of sums."""
HONEST_SHARE = 0.8
"""The share of the clients in a secure sum that are counted on."""
LARGEST_ENTRY = limit_of_entries(8192)
"""The limit of entries in the table of sums, over the clipping norm."""
WHOLE = 10**9
"""More entries than any array has, so that all of them are rotated together."""
KINDS: dict[str, str] = {"vector": "vector", "votes": "signs"}


@dataclass(frozen=True)
class Study:
    """A federation whose clients are protected against the server or against readers.

    Parameters
    ----------
    setting : Setting
        The federation; a fraction below 1 is drawn in secret, which ε counts on.
    rules : tuple of str
        The `RULES` that are compared.
    epsilons : tuple of float
        The ε that they stay within.
    clips : tuple of float
        The clipping norms C that are tried; the best of each rule is shown.
    """

    setting: Setting
    rules: tuple[str, ...]
    epsilons: tuple[float, ...] = EPSILONS
    clips: tuple[float, ...] = (0.1, 0.3, 1.0)


_FEDERATION = Setting(
    examples=60_000, network="linear", num_clients=100, alpha=0.5, rounds=30, tested=5
)

STUDIES = {
    "against the server": Study(_FEDERATION, ("FedAvg, LocalDpMod", "SignSGD", "MedianSGD")),
    "against readers of the model": Study(
        replace(_FEDERATION, fraction=0.1, rounds=60),
        ("FedAvg, central wrapper", "SignSGD", "MedianSGD"),
    ),
}

SUMS = Study(
    _FEDERATION,
    ("FedAvg, central wrapper", "SignSGD, secure sums", "FedAvg, LocalDpMod"),
    epsilons=(4.0, 8.0),
)
"""Secure sums, beside a trusted server that adds the noise and clients that trust no one."""


Strategies = Callable[..., Strategy]
"""Makes a strategy of ``seed`` and of FedAvg's options."""


@dataclass(frozen=True)
class Rule:
    """A way to aggregate what clients hide.

    Parameters
    ----------
    kind : {"signs", "vector", "sums"}
        What is hidden in noise: votes, vectors, or sums of votes.
    strategy : callable
        Returns, of σ, C and the setting, what makes the strategy.
    mods : callable
        Returns, of σ and C, the mods of the clients.
    """

    kind: str
    strategy: Callable[[float, float, Setting], Strategies]
    mods: Callable[[float, float], Sequence[Mod]]


def _clipped(
    strategy: Strategies, sigma: float, clip: float, setting: Setting, **options: Any
) -> Strategies:
    noise, steps = Gaussian(sigma * clip), [Clip(clip)]
    return partial(strategy, noise, client_steps=steps, diagnostics=False, **options)


def _sums(sigma: float, clip: float, setting: Setting) -> Strategies:
    # Few neighbors take less time; the model is the same.
    secure, rotation = SecureSum(threshold=0.8, neighbors=20), Rotation(smallest=WHOLE)
    options = {"rotation": rotation, "weighted": False, "secure": secure}
    return _clipped(SignSGD, sigma, clip, setting, **options)


def _mean(sigma: float, clip: float, setting: Setting) -> Strategies:
    return partial(unseeded, FedAvg)


def _mean_of_wrapper(sigma: float, clip: float, setting: Setting) -> Strategies:
    # Noise of σ·C/m on the mean of m clients: of σ·C on their sum, in which one counts for 2·C.
    asked = round(setting.fraction * setting.num_clients)

    def make(**options: Any) -> Strategy:
        inner = unseeded(FedAvg, **options)
        return DifferentialPrivacyServerSideFixedClipping(inner, sigma, clip, asked)

    return make


def _local_dp(sigma: float, clip: float) -> Sequence[Mod]:
    # The mod's own ε is that of one round by the classical formula; it stands for σ here.
    epsilon = 2 * sqrt(2 * log(1.25 / DELTA)) / sigma
    return [LocalDpMod(clip, 2 * clip, epsilon, DELTA)]


def _perturb(sigma: float, clip: float) -> Sequence[Mod]:
    return [perturb]


def _none(sigma: float, clip: float) -> Sequence[Mod]:
    return []


RULES = {
    "FedAvg, central wrapper": Rule("vector", _mean_of_wrapper, _none),
    "FedAvg, LocalDpMod": Rule("vector", _mean, _local_dp),
    "SignSGD": Rule("signs", partial(_clipped, SignSGD), _perturb),
    "SignSGD, secure sums": Rule("sums", _sums, _perturb),
    "MedianSGD": Rule("vector", partial(_clipped, MedianSGD), _perturb),
}


@cache
def noise_of(kind: str, setting: Setting, epsilon: float) -> float:
    """Return the noise multiplier σ with which a federation keeps within (ε, δ)."""
    drawn = round(setting.fraction * setting.num_clients)
    find = partial(noise_multiplier_for, epsilon, DELTA, setting.rounds, setting.fraction)
    if kind == "sums":
        network = make_network(setting.network, setting.dataset, 0)
        dim = sum(parameter.numel() for parameter in network.parameters())
        return find(limit=limit_of_entries(dim), summed=honest_of(HONEST_SHARE, drawn))
    return find(kind=kind, min_replies=drawn)


def run_rule(rule: str, study: Study, epsilon: float, clip: float, seed: int) -> Result:
    """Train a study's federation within ε."""
    np.random.seed(seed)  # noqa: NPY002  # where Flower's noise comes from
    chosen, setting = RULES[rule], study.setting
    sigma = noise_of(chosen.kind, setting, epsilon)
    strategy = chosen.strategy(sigma, clip, setting)
    return simulate(strategy, setting, seed, chosen.mods(sigma, clip))


def accuracies(study: Study, seeds: Sequence[int] = (0,)) -> dict[str, list[float]]:
    """Return each rule's accuracy at the end, at each ε, with the clipping norm that suits it best.

    Parameters
    ----------
    study : Study
        The study.
    seeds : sequence of int
        The seeds, over which accuracy is averaged, as over the last tested rounds.

    Returns
    -------
    dict of str to list of float
        Accuracies by rule; FedAvg's, without privacy, the first, once for each ε.
    """
    setting = study.setting
    jobs: dict[Any, Job] = {
        (rule, epsilon, clip, seed): (
            f"{rule} | {setting} | epsilon {epsilon:g}, clip {clip:g} | seed {seed}",
            partial(run_rule, rule, study, epsilon, clip, seed),
        )
        for seed in seeds
        for rule in study.rules
        for epsilon in study.epsilons
        for clip in study.clips
    }
    jobs |= {
        seed: (
            f"nothing hidden | {setting} | seed {seed}",
            partial(simulate, partial(unseeded, FedAvg), setting, seed, []),
        )
        for seed in seeds
    }
    results = run_jobs(jobs, RESULTS)
    tested = setting.tested or 1

    def end(rule: str, epsilon: float, clip: float) -> float:
        runs = [results[rule, epsilon, clip, seed] for seed in seeds]
        return late(runs, rounds=tested)

    without = late((results[seed] for seed in seeds), rounds=tested)
    found = {"FedAvg, no privacy": [without] * len(study.epsilons)}
    for rule in study.rules:
        found[rule] = [max(end(rule, e, clip) for clip in study.clips) for e in study.epsilons]
    return found


def accuracy_table(study: Study, seeds: Sequence[int] = (0,)) -> str:
    """Compare the rules at each ε."""
    found = accuracies(study, seeds)
    rows = [[rule, *(f"{end:.3f}" for end in ends)] for rule, ends in found.items()]
    return make_table(["rule", *(f"ε = {epsilon:g}" for epsilon in study.epsilons)], rows)


def epsilon_of(kind: str, sigma: float, rounds: int) -> float:
    """Return ε of a client that was asked in a number of rounds."""
    return Mechanism(1.0, sigma, kind).epsilon(DELTA, rounds)


def rounds_table() -> str:
    """Say what ε the rounds of one client come to, of vectors and of votes."""
    rows = [
        [f"{name}, σ = {sigma:g}", *(f"{epsilon_of(kind, sigma, n):.2f}" for n in ROUNDS)]
        for sigma in (5.0, 20.0, 80.0)
        for name, kind in KINDS.items()
    ]
    return make_table(["what is sent", *map(_count, ROUNDS)], rows)


def noise_table() -> str:
    """Return the noise for rounds of all clients, and for rounds of a hidden tenth."""
    found = partial(noise_multiplier_for, delta=DELTA, min_replies=DRAWN)
    rows = [
        [
            f"{name}, ε = {epsilon:g}, {drawn}",
            *(f"{found(epsilon, rounds=n, sampling=q, kind=kind):.2f}" for n in ROUNDS),
        ]
        for drawn, q in (("local", 1.0), ("a hidden tenth", 0.1))
        for epsilon in EPSILONS
        for name, kind in KINDS.items()
    ]
    return make_table(["σ for", *map(_count, ROUNDS)], rows)


def sums_table() -> str:
    """Say what noise it takes for 30 rounds if the server sees the sum of votes alone."""
    rounds, rows = 30, []
    for epsilon in EPSILONS:
        found = partial(noise_multiplier_for, epsilon, DELTA, rounds)
        sums = [found(limit=LARGEST_ENTRY, summed=honest) for honest in HONEST]
        limits = [found(kind="vector") / sqrt(honest * pi / 2) for honest in HONEST]
        rows += [
            [f"{name}, ε = {epsilon:g}", *(f"{sigma:.2f}" for sigma in sigmas)]
            for name, sigmas in (("a sum of votes", sums), ("the Gaussian limit", limits))
        ]
    return make_table(["σ for", *(_count(honest, "client") for honest in HONEST)], rows)


def _count(number: int, what: str = "round") -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"


def _accuracy_tables() -> str:
    return "\n\n".join(f"{name}:\n\n{accuracy_table(one)}" for name, one in STUDIES.items())


TABLES: dict[str, Callable[[], str]] = {
    "rounds": rounds_table,
    "noise": noise_table,
    "sums": sums_table,
    "accuracy": _accuracy_tables,
    "sums-accuracy": partial(accuracy_table, SUMS),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables that the command line names, or all."""
    show_tables("privacy", TABLES, arguments)


if __name__ == "__main__":
    main()
