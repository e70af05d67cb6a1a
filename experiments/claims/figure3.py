"""Figure 3 of the paper: a ResNet without BatchNorm, and noise that follows the gradients."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from experiments.claims.claim import Claim, Findings
from experiments.claims.training import (
    NONE,
    Descent,
    Groups,
    descend_all,
    draw,
    lacks_gain,
    tabulate,
)
from experiments.studies.federation import Setting
from fedmedian import Adaptive, Gaussian

NOISE = Gaussian(Adaptive(0.1, magnitude="max", quantile=1.0))
NOISY = "b = .1 × maximum"

ALL, ONE, TWO = "all classes each", "one class each", "two classes each"

STAND_IN = Setting(
    examples=2000, network="narrow resnet-20", partition="classes", rounds=420, batch_size=32
)
PAPERS = Setting("cifar-10", 50_000, "resnet-20", "classes", rounds=7000, batch_size=128)


@dataclass(frozen=True)
class StepDecay:
    """A learning rate: `initial`, divided by ``divisors[t]`` after round t."""

    initial: float
    divisors: Mapping[int, float]

    def __call__(self, server_round: int) -> float:
        """Return the learning rate of a round."""
        passed = [after for after in self.divisors if after < server_round]
        return self.initial / self.divisors[max(passed)] if passed else self.initial


def descents(setting: Setting, rate: float) -> Groups:
    """Return the runs on a federation of one class each; δ is divided where the paper divides it.

    That is after 1,000, 3,000 and 5,000 of its 7,000 rounds.
    """
    sevenths = {1: 2, 3: 10, 5: 20}
    divisors = {setting.rounds * part // 7: divisor for part, divisor in sevenths.items()}
    one = Descent(setting, None, StepDecay(rate, divisors), looks=20)
    two = replace(one, setting=replace(setting, partition="two classes"))
    return {
        ALL: {NONE: replace(one, setting=replace(setting, partition="iid"))},
        TWO: {NONE: two, NOISY: replace(two, noise=NOISE)},
        ONE: {NONE: one, NOISY: replace(one, noise=NOISE)},
    }


def measure(setting: Setting, rate: float, quick_setting: Setting, quick: bool) -> Findings:
    """Train all federations; a quick variant has those of one class only, and longer steps."""
    if quick:
        return descend_all({ONE: descents(quick_setting, 0.01)[ONE]}, quick=True)
    return descend_all(descents(setting, rate), quick=False)


def check(found: Findings) -> list[str]:
    """Return what of the claim does not hold."""
    # With two classes each, votes alone go further.
    gains = {ONE: 0.1, TWO: 0.03}
    return [
        wrong
        for group in found["runs"]
        if group in gains
        for wrong in lacks_gain(found, group, NOISY, gains[group])
    ]


def claim(
    name: str,
    title: str,
    images_and_model: Mapping[str, str],
    setting: Setting,
    rate: float,
    quick_setting: Setting,
) -> Claim:
    """Return the claim, measured on a federation.

    Parameters
    ----------
    name, title : str
        The claim's name and title.
    images_and_model : mapping of str to str
        The images and the model in words.
    setting : Setting
        The federation, of one class each.
    rate : float
        The step δ of the first round.
    quick_setting : Setting
        The federation of the quick variant.

    Returns
    -------
    Claim
        The claim.
    """
    return Claim(
        name=name,
        title=title,
        says="Where each client has one or two classes, votes with noise of .1 × the largest entry "
        "of any client's gradient, per array, end more accurate than votes without.",
        setting={
            **images_and_model,
            "clients": f"ten, batches of {setting.batch_size}",
            "rounds": f"{setting.rounds:,} of one gradient, one seed",
            "δ": f"{rate:g}, divided by 2, 10 and 20 after 1/7, 3/7 and 5/7 of the rounds, as in "
            "the paper",
            "maximum": "of the last round; changes by at most a factor of 2",
            "not in the paper": "batch size, first δ, and initial weights, which are He's",
        },
        measure=partial(measure, setting, rate, quick_setting),
        draw=draw,
        tabulate=tabulate,
        check=check,
    )


FIGURE_3 = claim(
    "figure3",
    "Figure 3, a small stand-in: a narrow ResNet-20 on Fashion-MNIST",
    {
        "data": f"the first {STAND_IN.examples:,} images of Fashion-MNIST, at half their size",
        "model": "ResNet-20 without BatchNorm, a quarter as wide as the paper's",
    },
    STAND_IN,
    0.003,
    replace(STAND_IN, dataset="digits", network="mlp of the paper", rounds=42),
)
FIGURE_3_CIFAR_10 = claim(
    "figure3-cifar-10",
    "Figure 3: ResNet-20 on CIFAR-10",
    {
        "data": "CIFAR-10",
        "model": "ResNet-20 without BatchNorm",
        "time": "about a day on a core for each run",
    },
    PAPERS,
    0.001,
    replace(PAPERS, examples=300, network="narrow resnet-20", rounds=7, batch_size=16),
)
