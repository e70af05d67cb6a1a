"""``python -m benchmarks [NAME ...]``: all of them, or those named, as a table and as JSON."""

import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import holding, imports, sums
from benchmarks.growth import plot_growth
from benchmarks.kernels import CASES
from benchmarks.memory import client_peaks, estimator_peaks, round_peaks
from benchmarks.rounds import grid_timings, round_cases
from benchmarks.scale import (
    COST_COLUMNS,
    MESSAGE_COLUMNS,
    billion_costs,
    cost_rows,
    message_costs,
    message_rows,
    plot_round_costs,
    round_costs,
)
from benchmarks.timing import Timing, compare, read_bandwidth
from experiments.studies.nmse import error_table, measure
from experiments.studies.progress import say, tracked
from experiments.studies.tables import make_table

RESULTS = Path(__file__).parent / "results"
TABLES: dict[str, tuple[Callable[[], list[Any]], Any]] = {
    "holding": (holding.holdings, holding),
    "sums": (sums.sum_costs, sums),
    "imports": (imports.parts, imports),
}
USUAL = (*CASES, "rounds", "memory", "grid", "growth", "scale", *TABLES, "nmse")
NAMES = (*USUAL, "billion")
"""The last one takes minutes and 9 GiB, and is run by its name only."""


def main(names: list[str]) -> None:
    """Run the benchmarks named, or all."""
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    chosen = names or list(USUAL)
    RESULTS.mkdir(exist_ok=True)
    bandwidth = read_bandwidth()
    machine = f"{os.cpu_count()} cores, {platform.machine()}, NumPy {np.__version__}"
    print(f"{machine}; one core reads {bandwidth / 1e9:.1f} GB/s")
    results: dict[str, Any] = {"machine": machine, "read_bandwidth": bandwidth}
    for name in tracked(chosen, "benchmark"):
        if name == "memory":
            peaks = [*round_peaks(), *estimator_peaks(), *client_peaks()]
            results[name] = [asdict(peak) for peak in peaks]
            rows = [[peak.work, peak.by, f"{peak.mebibytes:.0f}"] for peak in peaks]
            say(make_table(["work", "by", "peak MiB beyond the replies"], rows))
        elif name == "nmse":
            results[name] = measure()
            say(error_table(results[name]))
        elif name in TABLES:
            measure_all, module = TABLES[name]
            found = measure_all()
            results[name] = [asdict(one) for one in found]
            say(make_table(module.COLUMNS, module.rows(found)))
        elif name == "growth":
            results[name] = plot_growth(RESULTS / "growth.png")
            say(f"Written: {RESULTS / 'growth.png'}")
        elif name == "billion":
            billions, messages = billion_costs(), message_costs()
            results[name] = [*map(asdict, billions), *map(asdict, messages)]
            say(make_table(COST_COLUMNS, cost_rows(billions)))
            say(make_table(MESSAGE_COLUMNS, message_rows(messages)))
        elif name == "scale":
            costs = round_costs()
            results[name] = [asdict(cost) for cost in costs]
            say(make_table(COST_COLUMNS, cost_rows(costs)))
            plot_round_costs(costs, RESULTS / "scale.png")
            say(f"Written: {RESULTS / 'scale.png'}")
        else:
            if name == "grid":
                timings = grid_timings()
            else:
                cases = round_cases() if name == "rounds" else CASES[name]()
                timings = [timing for case in cases for timing in compare(case, bandwidth)]
            results[name] = [asdict(timing) for timing in timings]
            say(timing_table(timings))
        path = RESULTS / f"{name}.json"
        path.write_text(json.dumps(results, indent=1) + "\n")
        del results[name]


def timing_table(timings: list[Timing]) -> str:
    """Return timings as a table, without a ratio where the results differ."""
    rows = []
    for timing in timings:
        ratio = "" if timing.ours_is_faster is None else f"{timing.ours_is_faster:.2f}"
        rows.append(
            [
                timing.case,
                timing.contender,
                f"{1e3 * timing.seconds:.2f}",
                str(timing.runs),
                ratio if timing.agrees else "results differ",
                f"{100 * timing.of_bandwidth:.1f}" if timing.of_bandwidth else "",
            ]
        )
    return make_table(["work", "by", "ms", "runs", "× ours", "% of read bandwidth"], rows)


if __name__ == "__main__":
    main(sys.argv[1:])
