"""The study of robustness: rules of aggregation under attack, in settings of the literature.

``python -m experiments.studies.robustness`` prints the tables of docs/robustness.md;
``python -m experiments.studies.robustness sorted`` prints one; so do flanders, adaptive, seven,
little, minority and honest. Results are kept in experiments/results, and a study that was killed
resumes there.
"""

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.clientapp.typing import Mod
from flwr.serverapp.strategy import Bulyan, FedAvg, FedMedian, FedTrimmedAvg, Krum, Strategy
from numpy.typing import NDArray

from experiments.studies.commands import show_tables
from experiments.studies.federation import ADAPTIVE, ATTACKS, CLAIMED, Setting, simulate
from experiments.studies.jobs import Result, run_jobs
from experiments.studies.peers import Remembering
from experiments.studies.random_basis import MINORITY, ONE_BLOCK, late, unseeded
from experiments.studies.tables import make_table
from fedmedian import Aggregator, Agreement, Answers, ClippedMean, Counts
from fedmedian.clients import perturb
from fedmedian.clients.attacks import ClaimMagnitude, ClaimScale, Hostile, squared_distances
from fedmedian.model.layout import Layout
from fedmedian.records import to_arrays, to_record
from fedmedian.strategies import MedianSGD, SignSGD

RESULTS = Path(__file__).resolve().parents[1] / "results" / "robustness"

Updates = NDArray[np.float32]
Rule = Callable[[Updates], Updates]
"""Takes (M, d) updates, and returns the (d,) update of the model."""


@dataclass(frozen=True)
class Study:
    """A federation, the attacks on it, and what the rules are told of them.

    Parameters
    ----------
    honest : Setting
        The federation without hostile clients.
    num_hostile : int
        The number of its clients that are hostile under attack; Flower's rules and NNM are told.
    attacks : tuple of str
        The attacks.
    radius : float
        The radius of centered clipping, in units of the clients' updates.
    """

    honest: Setting
    num_hostile: int
    attacks: tuple[str, ...]
    radius: float

    def settings(self) -> dict[str, Setting]:
        """Return the federation without hostile clients and under each attack."""
        hostile = partial(replace, self.honest, num_hostile=self.num_hostile)
        return {"none": self.honest} | {one: hostile(attack=one) for one in self.attacks}


BEST = "half-mimic"
"""The attack that costs most rules the most, of those that know rules by direction."""

STUDIES = {
    # Karimireddy et al., ICLR 2022, of MNIST: hostile clients draw from all examples, the honest
    # ones hold a shard of sorted labels each; a radius of ten gradients. Bit flip is a sign flip.
    "sorted": Study(
        Setting(
            partition="sorted",
            num_clients=25,
            rounds=600,
            local_steps=1,
            client_momentum=0.9,
            tested=10,
        ),
        num_hostile=5,
        attacks=("a little is enough", "sign flip", "inner product", "label flip", "mimic", BEST),
        radius=10 * 0.05,
    ),
    # Flower's baseline FLANDERS: half of Fashion-MNIST, of which its clients train on 300 examples
    # each. There other clients are hostile in each round; here they are the same, from the first.
    # The radius is that of the longest honest updates, of which the median is half as long.
    "flanders": Study(
        Setting(
            examples=30_000,
            num_clients=100,
            alpha=0.5,
            rounds=50,
            learning_rate=0.001,
            optimizer="adam",
            tested=10,
        ),
        num_hostile=20,
        attacks=("gaussian", "a little is enough", "opt", "min-max", BEST),
        radius=3.0,
    ),
    # Attacks that know the rules, on small data. The radius is twice the median honest norm.
    "adaptive": Study(
        Setting("digits", learning_rate=0.1, rounds=20, tested=5),
        num_hostile=2,
        attacks=("minus ten times the mean", "minus the mean", "a little is enough", *ADAPTIVE),
        radius=1.2,
    ),
    # The radius is about twice the median honest norm in the first rounds.
    "seven": Study(
        Setting(tested=5),
        num_hostile=2,
        attacks=(*ATTACKS, BEST),
        radius=2.0,
    ),
}

SEEDS = 0, 1
"""The seeds, over which accuracy is averaged."""


class InPlaceOfMean(Remembering):
    """FedAvg with another rule in place of the mean of the clients' updates.

    Parameters
    ----------
    rule : callable
        The rule.
    **options
        FedAvg's own.
    """

    def __init__(self, rule: Rule, **options: Any) -> None:
        super().__init__(**options)
        self._rule = rule

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Move the model by what the rule makes of the clients' updates."""
        valid, _ = self._check_and_log_replies(replies, is_train=True)
        before = to_arrays(self.before)
        layout = Layout.of_model(before, exact=())
        models = [to_arrays(reply.content.array_records["arrays"]) for reply in valid]
        updates = np.stack([layout.difference(before, model) for model in models])
        return to_record(layout.move(before, self._rule(updates), 1.0, before)), None


class CenteredClipping:
    """Centered clipping of the means of buckets, from where the last round's ended.

    Karimireddy et al., ICML 2021 (arXiv 2012.10333), with buckets of two clients drawn anew in
    each round: ICLR 2022 (arXiv 2006.09365).

    Parameters
    ----------
    radius : float
        The radius τ to which differences from the last aggregate are clipped.
    seed : int
        The seed of the buckets.
    """

    def __init__(self, radius: float, seed: int) -> None:
        self._radius, self._rng = radius, np.random.default_rng(seed)
        self._center: Updates | float = 0.0

    def __call__(self, updates: Updates) -> Updates:
        """Return the aggregate; see `Rule`."""
        shuffled = self._rng.permutation(updates)
        buckets = np.stack([shuffled[i : i + 2].mean(axis=0) for i in range(0, len(updates), 2)])
        offsets = buckets - self._center
        norms = np.linalg.norm(offsets, axis=1, keepdims=True)
        clipped = offsets * np.minimum(1, self._radius / np.maximum(norms, self._radius))
        self._center = np.asarray(self._center + clipped.mean(axis=0), dtype=np.float32)
        return self._center


@dataclass(frozen=True)
class Buckets(Aggregator):
    """Means of two clients each, drawn anew in each round, and then another rule of vectors.

    Karimireddy et al., ICLR 2022 (arXiv 2006.09365).

    Parameters
    ----------
    then : Aggregator
        The other rule.
    """

    then: Aggregator

    def direction(self, answers: Answers, rng: np.random.Generator) -> Updates:
        """Return the other rule's direction; see `Aggregator.direction`."""
        shuffled = rng.permutation(answers.vectors(rng))
        bodies = [shuffled[i : i + 2].mean(axis=0) for i in range(0, len(answers), 2)]
        equal = np.full(len(bodies), 1 / len(bodies))
        return self.then.direction(replace(answers, bodies=bodies, weights=equal), rng)


def geometric_median(updates: Updates, iterations: int = 10) -> Updates:
    """Return the vector with the least sum of distances to the updates, by Weiszfeld's iteration.

    RFA: Pillutla et al., IEEE TSP 2022 (arXiv 1912.13445).
    """
    center: Updates = np.asarray(updates.mean(axis=0))
    for _ in range(iterations):
        weights = 1 / np.maximum(np.linalg.norm(updates - center, axis=1), 1e-6)
        center = np.asarray((weights / weights.sum()) @ updates)
    return center


def mixed_by_angle(updates: Updates, num_hostile: int) -> Updates:
    """Return `mixed_trimmed_mean` of updates of the same length, whose distances are angles."""
    norms = np.linalg.norm(updates, axis=1, keepdims=True)
    units = np.divide(updates, norms, out=np.zeros_like(updates), where=norms > 0)
    return mixed_trimmed_mean(units * np.median(norms), num_hostile)


def mixed_trimmed_mean(updates: Updates, num_hostile: int) -> Updates:
    """Return the trimmed mean of each update's mean with its nearest neighbors.

    Nearest neighbor mixing, NNM: Allouah et al., AISTATS 2023 (arXiv 2302.01772).

    Parameters
    ----------
    updates : (M, d) float32
        The clients' updates.
    num_hostile : int
        f: the M − f nearest are mixed, and f values are trimmed at each end of a coordinate.

    Returns
    -------
    (d,) float32
        The aggregate.
    """
    clients, kept = len(updates), len(updates) - num_hostile
    nearest = np.argpartition(squared_distances(updates), kept - 1, axis=1)[:, :kept]
    weights = np.zeros((clients, clients), dtype=np.float32)
    np.put_along_axis(weights, nearest, np.float32(1 / kept), axis=1)
    ends = (num_hostile, kept - 1)
    ordered = np.partition(weights @ updates, ends, axis=0)
    return np.asarray(ordered[num_hostile:kept].mean(axis=0))


def _clipping(radius: float, *, seed: int, **options: Any) -> Strategy:
    return InPlaceOfMean(CenteredClipping(radius, seed), **options)


def _in_place(rule: Rule, *, seed: int, **options: Any) -> Strategy:
    return InPlaceOfMean(rule, **options)


_BY_AGREEMENT = partial(SignSGD, aggregator=Agreement(Counts()))

PEERS: dict[str, Callable[..., Strategy]] = {
    "Clipped mean, whole vector": partial(MedianSGD, None, ClippedMean(), rotation=ONE_BLOCK),
    "Clipped mean, each array": partial(MedianSGD, None, ClippedMean(), rotation=None),
    "Clipped mean, buckets of 2": partial(
        MedianSGD, None, Buckets(ClippedMean()), rotation=ONE_BLOCK
    ),
    "RFA": partial(_in_place, geometric_median),
    "SignSGD, agreement": _BY_AGREEMENT,
    "MedianSGD, agreement": partial(MedianSGD, None, Agreement(ClippedMean())),
}
"""Rules that compare norms or directions, ours the last."""


def rules(study: Study) -> dict[str, Callable[..., Strategy]]:
    """Return the rules that are compared, by their names in tables, told what they need to know.

    CClip and NNM are written here because the library that has both, byzfl, does not import
    beside a torch without CUDA. Bulyan needs 4f + 3 clients and is left out where there are fewer.
    """
    hostile, clients = study.num_hostile, study.honest.num_clients
    found: dict[str, Callable[..., Strategy]] = {
        "FedAvg": partial(unseeded, FedAvg),
        "FedMedian": partial(unseeded, FedMedian),
        "FedTrimmedAvg (told)": partial(unseeded, partial(FedTrimmedAvg, beta=hostile / clients)),
        "Krum (told)": partial(unseeded, partial(Krum, num_malicious_nodes=hostile)),
        "Bulyan (told)": partial(unseeded, partial(Bulyan, num_malicious_nodes=hostile)),
        "CClip, buckets of 2": partial(_clipping, study.radius),
        "CClip, a tenth of the radius": partial(_clipping, study.radius / 10),
        "NNM + trimmed mean (told)": partial(
            _in_place, partial(mixed_trimmed_mean, num_hostile=hostile)
        ),
        "SignSGD()": SignSGD,
        "MedianSGD()": MedianSGD,
        "NNM by angle + trimmed mean (told)": partial(
            _in_place, partial(mixed_by_angle, num_hostile=hostile)
        ),
        **PEERS,
    }
    if clients < 4 * hostile + 3:
        del found["Bulyan (told)"]
    return found


def run_rule(rule: str, study: Study, setting: Setting, seed: int) -> Result:
    """Run a rule on one of a study's federations."""
    # Flower's Bulyan collects garbage for each reply: half a second, unless modules are left out,
    # also the one that torch imports with an optimizer's first step.
    import_module("torch._dynamo")
    gc.collect()
    gc.freeze()
    return simulate(rules(study)[rule], setting, seed, [*_claims(setting), perturb])


def _claims(setting: Setting) -> list[Mod]:
    """Return what hostile clients say about their replies, beside the examples that they claim."""
    if not setting.attack:
        return []
    hostile = range(setting.num_clients - setting.num_hostile, setting.num_clients)
    return [Hostile(claim, hostile) for claim in (ClaimMagnitude(CLAIMED), ClaimScale(CLAIMED))]


def accuracies(study: Study) -> dict[str, dict[str, float]]:
    """Return each rule's accuracy at the end, by the attack, unless kept already after its runs.

    Parameters
    ----------
    study : Study
        The study.

    Returns
    -------
    dict of str to dict of str to float
        Accuracies by rule and attack, "none" the first and "worst" the last, each the mean over
        seeds and the tested rounds.
    """
    settings = study.settings()
    jobs = {
        (rule, attack, seed): (
            f"{rule} | {setting} | told {study.num_hostile}, {study.radius} | seed {seed}",
            partial(run_rule, rule, study, setting, seed),
        )
        for seed in SEEDS
        for attack, setting in settings.items()
        for rule in rules(study)
    }
    results = run_jobs(jobs, RESULTS)
    found = {}
    for rule in rules(study):
        ends = {
            attack: late(
                (results[rule, attack, seed] for seed in SEEDS),
                rounds=study.honest.tested,
            )
            for attack in settings
        }
        found[rule] = ends | {"worst": min(ends[attack] for attack in study.attacks)}
    return found


def table(study: Study) -> str:
    """Compare the rules under each attack of a study."""
    found = accuracies(study)
    rows = [[rule, *(f"{end:.3f}" for end in ends.values())] for rule, ends in found.items()]
    return make_table(["rule", *study.settings(), "worst"], rows)


NOISY: dict[str, Callable[..., Strategy]] = {
    "clipped vectors": partial(MedianSGD, None, ClippedMean()),
    "the same, noise added": partial(MedianSGD, aggregator=ClippedMean()),
    "votes": SignSGD,
    "votes by agreement": _BY_AGREEMENT,
}
"""From vectors to votes, step by step."""

LITTLE = {
    "a little is enough": replace(
        STUDIES["sorted"].settings()["a little is enough"], rounds=150, tested=10
    )
}
"""The first quarter of the rounds of the study of sorted labels."""

KEEPING: dict[str, Callable[..., Strategy]] = {
    "FedAvg": partial(unseeded, FedAvg),
    "SignSGD()": SignSGD,
    "MedianSGD()": MedianSGD,
    **{name: rule for name, rule in PEERS.items() if name.endswith("agreement")},
}
MINORITIES = {
    "one client": MINORITY,
    "two clients": replace(MINORITY, partition="shared class"),
}
"""Federations of honest clients, of which one or two alone hold a class."""

HONEST = {"nobody hostile": STUDIES["seven"].honest}

QUANTITIES = ("recall", "accuracy")


def _compare(
    rules: Mapping[str, Callable[..., Strategy]],
    settings: Mapping[str, Setting],
    quantities: Sequence[str] = ("accuracy",),
    rounds: int = 5,
    seeds: Sequence[int] = SEEDS,
) -> str:
    """Return a table of what rules reach in settings in the last rounds."""
    jobs = {
        (rule, label, seed): (
            f"{rule} | {setting} | seed {seed}",
            partial(simulate, rules[rule], setting, seed, [perturb]),
        )
        for seed in seeds
        for label, setting in settings.items()
        for rule in rules
    }
    results, rows = run_jobs(jobs, RESULTS), []
    for rule in rules:
        row = [rule]
        for label in settings:
            runs = [results[rule, label, seed] for seed in seeds]
            row += [f"{late(runs, quantity, rounds):.3f}" for quantity in quantities]
        rows.append(row)
    several = len(quantities) > 1
    columns = [f"{label}, {of}" if several else label for label in settings for of in quantities]
    return make_table(["rule", *columns], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables that the command line names, or all."""
    makers: dict[str, Callable[[], str]] = {
        name: partial(table, study) for name, study in STUDIES.items()
    }
    makers["little"] = partial(_compare, NOISY, LITTLE, rounds=10)
    makers["minority"] = partial(_compare, KEEPING, MINORITIES, QUANTITIES)
    makers["honest"] = partial(_compare, KEEPING, HONEST, seeds=range(6))
    show_tables("robustness", makers, arguments)


if __name__ == "__main__":
    main()
