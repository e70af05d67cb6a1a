"""The growth of the cost of medians and votes with the clients and with the model."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.timing import peak_mebibytes
from fedmedian import coordinate_median, majority_vote

CLIENTS = (4, 10, 32, 100, 316)
DIMS = (10_000, 31_623, 100_000, 316_228, 1_000_000)
_FIXED_CLIENTS, _FIXED_DIM = 31, 100_000
_Cost = tuple[float, float]


def plot_growth(path: Path) -> dict[str, list[_Cost]]:
    """Measure time and memory over two decades of M and of d, and plot them.

    Parameters
    ----------
    path : Path
        Where the figure goes.

    Returns
    -------
    dict of str to list of (float, float)
        Milliseconds and MiB of each point, by method and what grows.
    """
    sweeps = {
        "clients M": [(clients, _FIXED_DIM) for clients in CLIENTS],
        "coordinates d": [(_FIXED_CLIENTS, dim) for dim in DIMS],
    }
    ticks = {"clients M": CLIENTS, "coordinates d": DIMS}
    costs: dict[str, list[_Cost]] = {}
    with mpl.rc_context({"axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(9, 6.5), layout="constrained")
        axes = figure.subplots(2, 2, sharex="col", sharey="row")
        for column, (label, sizes) in enumerate(sweeps.items()):
            for (method, make), style in zip(METHODS.items(), ("s--", "o-", "^-"), strict=True):
                points = [_cost(make(*size)) for size in sizes]
                costs[f"{method} over {label}"] = points
                for row in (0, 1):
                    values = [point[row] for point in points]
                    axes[row, column].plot(ticks[label], values, style, label=method)
            axes[1, column].set_xlabel(label)
            axes[0, column].set_title(
                f"d = {_FIXED_DIM:,}" if column == 0 else f"M = {_FIXED_CLIENTS}"
            )
            for row in (0, 1):
                axes[row, column].set(xscale="log", yscale="log")
        axes[0, 0].set_ylabel("time, ms")
        axes[1, 0].set_ylabel("peak memory beyond the input, MiB")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        figure.savefig(path, dpi=150)
    return costs


def _rows(clients: int, dim: int) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(dim, dtype=np.float32) for _ in range(clients)]


def _numpy_median(clients: int, dim: int) -> Callable[[], object]:
    rows = _rows(clients, dim)
    return lambda: np.median(np.stack(rows), axis=0)


def _coordinate_median(clients: int, dim: int) -> Callable[[], object]:
    rows = _rows(clients, dim)
    return lambda: coordinate_median(rows)


def _majority_vote(clients: int, dim: int) -> Callable[[], object]:
    shape = clients, -(-dim // 8)
    packed = list(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    return lambda: majority_vote(packed, dim)


METHODS = {
    "np.median of the stacked vectors": _numpy_median,
    "coordinate_median": _coordinate_median,
    "majority_vote": _majority_vote,
}


def _cost(run: Callable[[], object]) -> _Cost:
    run()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * median(times), peak_mebibytes(run)
