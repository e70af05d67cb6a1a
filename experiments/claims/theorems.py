"""Theorems 5 and 6 of the paper: how fast the gradient falls at the theorems' own b and δ."""

import numpy as np
from matplotlib.figure import Figure

from experiments.claims.claim import Claim, Findings
from experiments.claims.descent import Points, descend, median_descent, sign_descent
from experiments.studies.tables import make_table
from fedmedian import Gaussian, Majority, Theory
from fedmedian.strategies import MedianSGD, SignSGD

NUM_CLIENTS, DIM = 5, 10
LENGTHS = (100, 316, 1000, 3162, 10_000)
PROVEN = {"signs (Theorem 5)": -1 / 4, "median (Theorem 6)": -1 / 3}

_RNG = np.random.default_rng(0)
# Skewed, or the median of the gradients would be near their mean.
MINIMA = _RNG.lognormal(0.0, 1.0, (NUM_CLIENTS, DIM))


def squared_gradient(rounds: int, name: str, noisy: bool, copies: int) -> float:
    """Return the mean of ‖∇f‖² over the rounds of a run, and over copies.

    Parameters
    ----------
    rounds : int
        T.
    name : str
        An algorithm, of `PROVEN`.
    noisy : bool
        Whether it has the theorem's noise; its step is the theorem's in any case.
    copies : int
        The number of copies, each with its own noise.

    Returns
    -------
    float
        (1/T)·Σ_t ‖∇f(x_t)‖².
    """
    theory = Theory(rounds, DIM)
    noise = Gaussian(theory) if noisy else None
    strategy: SignSGD | MedianSGD
    if name.startswith("signs"):
        strategy = sign_descent(noise, Majority(), theory.learning_rate("signs"))
    else:
        strategy = median_descent(noise, theory.learning_rate("vector"))
    start = np.zeros((copies, DIM))
    optimum, total = MINIMA.mean(axis=0), 0.0

    def look(server_round: int, points: Points) -> None:
        nonlocal total
        if server_round < rounds:  # of x_0 to x_{T − 1}, as in the theorems
            total += float(np.square(points - optimum).sum(axis=1).mean())

    descend(strategy, lambda x, i: x - MINIMA[i], NUM_CLIENTS, start, rounds, look)
    return total / rounds


def measure(quick: bool) -> Findings:
    """Measure the mean squared gradient over T, with the theorems' noise and without."""
    lengths, copies = ((100, 200), 20) if quick else (LENGTHS, 100)
    found: Findings = {"T": list(lengths), "noisy": {}, "plain": {}, "exponent": {}}
    for name in PROVEN:
        for kind, noisy in (("noisy", True), ("plain", False)):
            found[kind][name] = [squared_gradient(T, name, noisy, copies) for T in lengths]
        slope, _ = np.polyfit(np.log(lengths[-3:]), np.log(found["noisy"][name][-3:]), 1)
        found["exponent"][name] = float(slope)
    return found


def check(found: Findings) -> list[str]:
    """Return what of the claim does not hold."""
    # A bound holds of large T only: a start that lies far off is still felt in short runs.
    allowed = 0.03 if found["T"][-1] == LENGTHS[-1] else 0.1
    return [
        f"{name} falls as T to the {found['exponent'][name]:.2f}, proven is {proven:.2f}"
        for name, proven in PROVEN.items()
        if found["exponent"][name] > proven + allowed
    ]


def draw(found: Findings) -> Figure:
    """Draw the mean squared gradient over T, beside the proven slopes."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    lengths = np.array(found["T"], dtype=float)
    for (name, proven), color in zip(PROVEN.items(), ("tab:blue", "tab:orange"), strict=True):
        noisy = np.array(found["noisy"][name])
        exponent = found["exponent"][name]
        axes.plot(lengths, noisy, "o-", color=color, label=f"{name}: slope {exponent:.2f}")
        axes.plot(
            lengths,
            noisy[0] * (lengths / lengths[0]) ** proven,
            ":",
            color=color,
            label=f"proven: {proven:.2f}",
        )
        axes.plot(lengths, found["plain"][name], "x--", color=color, label="without noise")
    axes.set(xscale="log", yscale="log", xlabel="rounds T", ylabel="mean of ‖∇f‖² over the rounds")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def tabulate(found: Findings) -> str:
    """Return a table of the means."""
    rows = []
    for name, proven in PROVEN.items():
        for kind, words in (("noisy", "with its noise"), ("plain", "without")):
            row = [f"{name}, {words}", *(f"{value:.3g}" for value in found[kind][name])]
            slope = f"{found['exponent'][name]:.2f} / {proven:.2f}" if kind == "noisy" else ""
            rows.append([*row, slope])
    return make_table(
        ["mean of ‖∇f‖²", *(f"T = {T:,}" for T in found["T"]), "slope / proven"], rows
    )


THEOREMS = Claim(
    name="theorems",
    title="Theorems 5 and 6: how fast the gradient falls",
    says="With b = (Td)^(1/4), δ = (Td)^(−1/2) for signs and b = (Td)^(1/6), δ = (Td)^(−2/3) for "
    "the median, the mean of ‖∇f‖² over T rounds is O(T^(−1/4)) and O(T^(−1/3)).",
    setting={
        "functions": "five quadratics in ten dimensions, lognormal minima, from the origin",
        "averaged over": "100 copies",
        "slope": "over the last three T",
    },
    measure=measure,
    draw=draw,
    tabulate=tabulate,
    check=check,
)
