"""Figure 2 of the paper: an MLP, and clients that hold images of one or two classes each."""

from dataclasses import replace
from functools import partial

from experiments.claims.claim import Claim, Findings
from experiments.claims.training import (
    NONE,
    Descent,
    Groups,
    descend_all,
    draw,
    end,
    lacks_gain,
    tabulate,
)
from experiments.studies.federation import Setting
from fedmedian import Gaussian

EXAMPLES, ROUNDS, BATCH = 4000, 600, 128
SIGN_RATE, MEDIAN_RATE = 0.001, 0.1

SCALES = (1e-5, 1e-3, 1e-2)
"""The noise scales b for signs: the paper's two, and a larger one."""

MEDIAN_SCALE = 0.1
PAPERS = "b = 0.001"
ONE, TWO = "one class each", "two classes each"
MEDIAN = f"{ONE}, median"


def with_noise(descent: Descent, *scales: float) -> dict[str, Descent]:
    """Return a descent without noise, and with that of scales in ascending order."""
    noisy = {f"b = {scale:g}": replace(descent, noise=Gaussian(scale)) for scale in scales}
    return {NONE: descent, **noisy}


def descents(dataset: str, quick: bool) -> Groups:
    """Return the runs; a quick variant has two, of fewer and longer steps."""
    setting = Setting(dataset, EXAMPLES, "mlp of the paper", "classes", rounds=ROUNDS, batch_size=0)
    signs = Descent(setting, None, SIGN_RATE)
    if quick:
        short = replace(signs, setting=replace(setting, rounds=40), rate=5 * SIGN_RATE, looks=10)
        return {ONE: with_noise(short, SCALES[-1])}
    two = replace(signs, setting=replace(setting, partition="two classes"))
    batches = {
        f"{group}, batch {BATCH}": replace(one, setting=replace(one.setting, batch_size=BATCH))
        for group, one in ((ONE, signs), (TWO, two))
    }
    return {
        ONE: with_noise(signs, *SCALES),
        TWO: with_noise(two, *SCALES),
        **{group: with_noise(one, SCALES[-1]) for group, one in batches.items()},
        MEDIAN: with_noise(replace(signs, rate=MEDIAN_RATE, algorithm="median"), MEDIAN_SCALE),
    }


def check(found: Findings) -> list[str]:
    """Return what of the claim does not hold."""
    wrong = []
    for group, runs in found["runs"].items():
        most = list(runs)[-1]
        # Two classes each are nearer to each other, and most of the way is gone without noise.
        wrong += lacks_gain(found, group, most, 0.03 if group.startswith(TWO) else 0.2)
        if PAPERS in runs and group == ONE:
            wrong += lacks_gain(found, group, PAPERS, 0.1)
        without, with_it = (end(runs[noise], "gradient") for noise in (NONE, most))
        if with_it > without / 1.5:
            wrong.append(
                f"{group}: the gradient is {with_it:.2g} with {most}, {without:.2g} without"
            )
    return wrong


def measure(dataset: str, quick_dataset: str, quick: bool) -> Findings:
    """Train all federations."""
    return descend_all(descents(quick_dataset if quick else dataset, quick), quick=quick)


def claim(name: str, dataset: str, images: str, quick_dataset: str) -> Claim:
    """Return the claim, measured on a data set.

    Parameters
    ----------
    name : str
        The claim's name.
    dataset : str
        The data set; see `Setting`.
    images : str
        The data set's name in sentences.
    quick_dataset : str
        The data set of the quick variant.

    Returns
    -------
    Claim
        The claim.
    """
    return Claim(
        name=name,
        title=f"Figure 2: one or two classes per client, {images}",
        says="Where each client has one or two classes, signs and medians of full gradients learn "
        "little without noise. With noise they learn, and the gradient stays smaller. (In the "
        "paper the noise of batches is enough too, on MNIST in 50,000 rounds.)",
        setting={
            "data": f"the first {EXAMPLES:,} images of {images}",
            "model": "784-128-10",
            "clients": "ten",
            "rounds": f"{ROUNDS} of one gradient, one seed",
            "δ": f"{SIGN_RATE:g}; {MEDIAN_RATE:g} for the median, the best of 1, .1, .01 and .001",
            "b": "10⁻⁵ and 10⁻³ are the paper's; the others and the median are ours",
            "zeros": "ties move nothing; a gradient of exactly zero votes by a coin",
        },
        measure=partial(measure, dataset, quick_dataset),
        draw=draw,
        tabulate=tabulate,
        check=check,
    )


FIGURE_2 = claim("figure2", "fashion-mnist", "Fashion-MNIST", "digits")
FIGURE_2_MNIST = claim("figure2-mnist", "mnist", "MNIST", "mnist")
