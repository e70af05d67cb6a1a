"""What a run returns, as people look at it: a short text, a table in notebooks, a figure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from math import isfinite
from typing import TYPE_CHECKING

from flwr.app import MetricRecord
from flwr.serverapp.strategy import Result

from fedmedian.aggregators.diagnostics import without_lists
from fedmedian.checks import require_type
from fedmedian.logs import cut
from fedmedian.rounds.watch import single_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = dict[int, float]
"""A metric's values by round."""

_WIDTH, _HEIGHT = 120, 24


@dataclass(repr=False)
class ShownResult(Result):
    """Flower's Result with a shorter text, without the values of each block, and a table."""

    def __repr__(self) -> str:
        reports = self.train_metrics_clientapp
        short = {number: MetricRecord(without_lists(one)[0]) for number, one in reports.items()}
        return repr(Result(**{**vars(self), "train_metrics_clientapp": short}))

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><td>{phase}</td><td>{escape(cut(name))}</td><td>{_sparkline(curve.values())}</td>"
            f"<td>{curve[max(curve)]:.4g}</td></tr>"
            for phase, by_round in _phases(self)
            for name, curve in _curves(by_round).items()
        )
        head = "<tr><th>phase</th><th>metric</th><th>by round</th><th>last</th></tr>"
        return f"<table>{head}{''.join(rows)}</table>"


def plot(results: Result | Mapping[str, Result], metric: str = "accuracy") -> "Figure":
    """Draw a metric over rounds, and beside it over the bytes that a client has sent.

    Parameters
    ----------
    results : Result or mapping of str to Result
        What `start` has returned, or several such, by name. Flower's own strategies do not report
        bytes: their runs are drawn over rounds only.
    metric : str (default: "accuracy")
        A metric from the server's evaluation, or else from the clients' evaluation or training.

    Returns
    -------
    matplotlib.figure.Figure
        The figure, which a notebook shows.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    TypeError
        If the results are not a Result, or a mapping.
    ValueError
        If a result does not have the metric.

    Examples
    --------
    >>> from flwr.app import MetricRecord
    >>> from flwr.serverapp.strategy import Result
    >>> rounds = {n: MetricRecord({"accuracy": 1 - 0.5**n}) for n in range(1, 9)}
    >>> plot(Result(evaluate_metrics_clientapp=rounds))  # doctest: +ELLIPSIS
    <Figure size ...>
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError("plot needs matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(9.0, 3.5), layout="constrained")
    over_rounds, over_bytes = figure.subplots(1, 2, sharey=True)
    named = {"": results} if isinstance(results, Result) else results
    require_type("results", named, Mapping, "a Result, or a mapping of names to Results")
    for name, result in named.items():
        require_type(f"results[{name!r}]", result, Result, "a Result")
        curve = _find(name, result, metric)
        over_rounds.plot([*curve], [*curve.values()], label=name)
        sent = _curves(result.train_metrics_clientapp).get("uplink-bytes", {})
        total = dict(zip(sent, accumulate(sent.values()), strict=True))
        both = [number for number in curve if number in total]
        over_bytes.plot([total[one] / 1e6 for one in both], [curve[one] for one in both])
    over_rounds.set(xlabel="round", ylabel=metric)
    over_rounds.locator_params(axis="x", integer=True)
    over_bytes.set(xlabel="MB that a client has sent, without headers")
    if any(named):
        over_rounds.legend()
    return figure


def _phases(result: Result) -> Iterator[tuple[str, Mapping[int, MetricRecord]]]:
    yield "evaluation by the server", result.evaluate_metrics_serverapp
    yield "evaluation by clients", result.evaluate_metrics_clientapp
    yield "training", result.train_metrics_clientapp


def _curves(by_round: Mapping[int, MetricRecord]) -> dict[str, Curve]:
    """Return the single numbers among metrics, each by round."""
    curves: dict[str, Curve] = {}
    for number, record in sorted(by_round.items()):
        for name, value in single_numbers(record).items():
            curves.setdefault(name, {})[number] = value
    return curves


def _find(name: str, result: Result, metric: str) -> Curve:
    curves: dict[str, Curve] = {}
    for _, by_round in _phases(result):
        curves = {**_curves(by_round), **curves}
    if metric not in curves:
        whose = f"those of results[{name!r}]" if name else "the result's"
        raise ValueError(f"metric must be one of {whose}, {sorted(curves)}, got {metric!r}")
    return curves[metric]


def _sparkline(values: Iterable[float]) -> str:
    """Return a curve as a small SVG; infinite values are left out."""
    points = [(at, value) for at, value in enumerate(values) if isfinite(value)]
    low = min((value for _, value in points), default=0.0)
    span = max((value for _, value in points), default=0.0) - low or 1.0
    last = points[-1][0] if points and points[-1][0] else 1
    path = " ".join(
        f"{at / last * _WIDTH:.1f},{(1 - (value - low) / span) * _HEIGHT:.1f}"
        for at, value in points
    )
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" viewBox="-2 -2 {_WIDTH + 4} {_HEIGHT + 4}">'
        f'<polyline points="{path}" fill="none" stroke="currentColor"/></svg>'
    )
