"""Figure 1 of the paper: where the four algorithms end on its toy, and the bias of the median."""

from collections.abc import Callable
from math import inf

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm

from experiments.claims.claim import Claim, Findings
from experiments.claims.descent import Points, descend, median_descent, sign_descent
from experiments.studies.figures import STYLES
from experiments.studies.tables import make_table
from fedmedian import Counts, Gaussian, Majority, coordinate_median
from fedmedian.strategies import MedianSGD, SignSGD

CLIENTS = (1.0, 2.0, 10.0)
"""The minima a_i of the clients' functions (x − a_i)²/2."""

MEAN, MEDIAN = float(np.mean(CLIENTS)), float(np.median(CLIENTS))
START = 0.0005
SCALES = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
BIAS_SCALES = tuple(float(b) for b in np.geomspace(2.5, 80, 16))
MEASURED_BIAS = (2.5, 5.0, 10.0, 20.0)

# Rates for which a step is small beside the noise, and the rounds of about twelve relaxation times.
ALGORITHMS: dict[str, tuple[Callable[[float], SignSGD | MedianSGD], int]] = {
    "signs, majority": (lambda b: sign_descent(Gaussian(b), Majority(), 0.01 * b), 1000),
    "median": (lambda b: median_descent(Gaussian(b), 0.05), 240),
    "signs, counts": (lambda b: sign_descent(Gaussian(b), Counts(), 0.02), 600),
}

PLAIN: dict[str, tuple[Callable[[], SignSGD | MedianSGD], int]] = {
    "signs, majority": (lambda: sign_descent(None, Majority(), 0.01), 600),
    "median": (lambda: median_descent(None, 0.05), 240),
}
"""The algorithms without noise, likewise."""


def expected_step(algorithm: str, x: float, scale: float) -> float:
    """Return the mean of a step's direction at x, up to a positive factor.

    Parameters
    ----------
    algorithm : str
        One of `ALGORITHMS`.
    x : float
        Where.
    scale : float
        The noise scale b, of Gaussian noise.

    Returns
    -------
    float
        P(majority is positive) − ½, E[median(x − a_i + b·ξ_i)], or Σ_i (2Φ((x − a_i)/b) − 1).
    """
    updates = x - np.array(CLIENTS)
    if algorithm == "median":
        return mean_of_median(updates, scale)
    positive = norm.cdf(updates / scale)
    if algorithm == "signs, counts":
        return float((2 * positive - 1).sum())
    return float(_two_of_three(positive) - 0.5)


def mean_of_median(updates: Points, scale: float) -> float:
    """Return E[median(u_i + b·ξ_i)] of three updates u_i with Gaussian noise, by quadrature."""
    center = float(updates.mean())

    def above(t: float) -> float:
        return _two_of_three(norm.sf((center + t - updates) / scale))

    positive, _ = quad(above, 0, inf, epsabs=1e-10, epsrel=1e-10, limit=200)
    negative, _ = quad(lambda t: 1 - above(-t), 0, inf, epsabs=1e-10, epsrel=1e-10, limit=200)
    return float(center + positive - negative)


def _two_of_three(p: Points) -> float:
    a, b, c = p
    return float(a * b + a * c + b * c - 2 * a * b * c)


def fixed_point(algorithm: str, scale: float) -> float:
    """Return where the expected step is zero."""
    return float(brentq(lambda x: expected_step(algorithm, x, scale), MEDIAN - 1, MEAN + 1))


def bias(scale: float) -> float:
    """Return mean(u) − E[median(u + b·ξ)] of u = a."""
    return MEAN - mean_of_median(np.array(CLIENTS), scale)


def measure_bias(scale: float, copies: int) -> tuple[float, float]:
    """Return the mean over copies of the noisy mean minus the noisy median, and its error."""
    noise = Gaussian().sample(np.random.default_rng(0), 3 * copies).reshape(3, copies)
    rows = np.float32(scale) * noise + np.array(CLIENTS, dtype=np.float32)[:, None]
    gaps = rows.mean(axis=0, dtype=np.float64) - coordinate_median(list(rows))
    return float(gaps.mean()), float(gaps.std() / np.sqrt(copies))


def end_of(strategy: SignSGD | MedianSGD, arrive: int, copies: int) -> tuple[float, float]:
    """Return the mean of where copies are after they have arrived, and its standard error."""
    sums, stay = np.zeros(copies), max(arrive // 3, 100)

    def look(server_round: int, points: Points) -> None:
        if server_round > arrive:
            sums[:] += points / stay

    start = np.full(copies, START)
    descend(strategy, lambda x, i: x - CLIENTS[i], 3, start, arrive + stay, look)
    return float(sums.mean()), float(sums.std() / np.sqrt(copies))


def measure(quick: bool) -> Findings:
    """Measure where the algorithms end, beside where they should, and the median's bias."""
    copies = 200 if quick else 4000
    scales = SCALES[2:3] if quick else SCALES
    names = ["median"] if quick else list(ALGORITHMS)
    plain = {
        name: end_of(make(), arrive, 10) for name, (make, arrive) in PLAIN.items() if name in names
    }
    ends = {
        name: [
            {"b": b, "exact": fixed_point(name, b), "end": end, "error": error}
            for b in scales
            for end, error in [end_of(make(b), arrive, copies)]
        ]
        for name in names
        for make, arrive in [ALGORITHMS[name]]
    }
    large = [b for b in BIAS_SCALES if b >= 20]
    slope, _ = np.polyfit(np.log(large), np.log([bias(b) for b in large]), 1)
    measured = [
        {"b": b, "bias": found, "error": error, "exact": bias(b)}
        for b in MEASURED_BIAS
        for found, error in [measure_bias(b, 100_000 if quick else 2_000_000)]
    ]
    fine = [float(b) for b in np.geomspace(0.8, 40, 10 if quick else 60)]
    return {
        "curves": {
            "b": fine,
            "exact": {name: [fixed_point(name, b) for b in fine] for name in names},
        },
        "plain": {name: end for name, (end, _) in plain.items()},
        "ends": ends,
        "bias": {"b": list(BIAS_SCALES), "exact": [bias(b) for b in BIAS_SCALES]},
        "measured bias": measured,
        "slope": float(slope),
    }


def check(found: Findings) -> list[str]:
    """Return what of the claim does not hold."""
    wrong = []
    for name, end in found["plain"].items():
        if abs(end - MEDIAN) > 0.02:
            wrong.append(f"{name} without noise ends at {end:.3f}, not at {MEDIAN:g}")
    for name, rows in found["ends"].items():
        wrong += [
            f"{name} at b = {row['b']:g} ends at {row['end']:.3f}"
            for row in rows
            # Five errors, and what a step that is not infinitesimal moves the mean by.
            if abs(row["end"] - row["exact"]) > 5 * row["error"] + 0.01
        ]
        distances = [MEAN - row["exact"] for row in rows]
        if sorted(distances, reverse=True) != distances:
            wrong.append(f"{name} does not come closer as b grows")
    wrong += [
        f"the bias at b = {row['b']:g} is {row['bias']:.4f}"
        for row in found["measured bias"]
        if abs(row["bias"] - row["exact"]) > 5 * row["error"]
    ]
    if abs(found["slope"] + 2) > 0.05:
        wrong.append(f"the bias falls as b to the {found['slope']:.2f}")
    return wrong


def draw(found: Findings) -> Figure:
    """Draw the ends over b, and the bias on log axes."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    fine = found["curves"]
    for style, marker, (name, rows) in zip(STYLES, "os^", found["ends"].items(), strict=False):
        (line,) = left.plot(fine["b"], fine["exact"][name], style, label=f"{name}, exact")
        left.errorbar(
            [row["b"] for row in rows],
            [row["end"] for row in rows],
            [3 * row["error"] for row in rows],
            fmt=marker,
            color=line.get_color(),
        )
    left.axhline(MEAN, color="black", linewidth=0.8)
    left.text(0.8, MEAN + 0.03, "optimum: the mean, 13/3")
    left.set_title("dots: measured, ± 3 standard errors")
    left.set_ylim(1.9, 4.55)
    left.axhline(MEDIAN, color="black", linewidth=0.8, linestyle="--")
    left.text(0.8, MEDIAN + 0.03, "without noise: the median, 2")
    left.set(xscale="log", xlabel="noise scale b", ylabel="where the algorithm ends")
    left.legend(loc="lower right")
    scales = np.array(found["bias"]["b"])
    right.plot(scales, found["bias"]["exact"], label="exact")
    measured = found["measured bias"]
    right.errorbar(
        [row["b"] for row in measured],
        [row["bias"] for row in measured],
        [3 * row["error"] for row in measured],
        fmt="o",
        label="measured, ± 3 standard errors",
    )
    first = found["bias"]["exact"][0] * scales[0]
    right.plot(scales, first / scales, ":", color="gray", label="a slope of −1, as proven")
    right.set(
        xscale="log", yscale="log", xlabel="noise scale b", ylabel="mean(a) − E[median(a + bξ)]"
    )
    right.set_title(f"slope from b = 20 on: {found['slope']:.2f}")
    right.legend()
    for axes in (left, right):
        shown = [b for b in (1, 2, 5, 10, 20, 30, 50, 80) if axes is left or b >= 2.5]
        axes.set_xticks([b for b in shown if axes is right or b <= 30], minor=False)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    return figure


def tabulate(found: Findings) -> str:
    """Return a table of the ends."""
    scales = [row["b"] for row in next(iter(found["ends"].values()))]
    rows = []
    for name, ends in found["ends"].items():
        rows.append([f"{name}: measured", *(f"{row['end']:.3f}" for row in ends)])
        rows.append([f"{name}: exact", *(f"{row['exact']:.3f}" for row in ends)])
    table = make_table(["ends at", *(f"b = {b:g}" for b in scales)], rows)
    plain = " and ".join(f"{name} at {end:.3f}" for name, end in found["plain"].items())
    return f"{table}\n\nWithout noise: {plain}. The bias falls as b^({found['slope']:.2f})."


TOY = Claim(
    name="toy",
    title="Figure 1: where the algorithms end",
    says="Without noise, sign and median stop where the *median* of the clients' gradients is "
    "zero. The larger the noise scale b, the nearer to the optimum they end: the proven bias is "
    "O(1/b), the measured one O(1/b²).",
    setting={
        "functions": "f = (1/3)·Σ(x − a_i)²/2, a = (1, 2, 10), from x = .0005",
        "averaged over": "4,000 copies, after convergence",
        "counts": "need a server that knows the noise",
    },
    measure=measure,
    draw=draw,
    tabulate=tabulate,
    check=check,
)
