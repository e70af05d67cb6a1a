"""The report of a comparison: lines of progress, a table, results.json and accuracy.png."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib as mpl
from flwr.app import UserConfig
from matplotlib.figure import Figure

from .measuring import Run
from .tables import make_table

# Okabe and Ito's palette: told apart by everybody, and in grey.
_COLOURS = ("#000000", "#E69F00", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9")
_STYLES = ("-", "--", ":", "-", "-.")


PROGRESS = "» "
"""The beginning of each line of progress, which tells it from a log's other lines."""


def print_progress(strategy: str, server_round: int, rounds: int, accuracy: float) -> None:
    """Print one line of progress."""
    print(
        f"{PROGRESS}{strategy:20} round {server_round:3}/{rounds}  accuracy {accuracy:.3f}",
        flush=True,
    )


def compare_uplinks(runs: Sequence[Run]) -> str:
    """Return a table of runs; ratios are to FedAvg's uplink, if it is there."""
    reference = next((run.uplink_bytes for run in runs if run.strategy == "FedAvg"), None)
    return make_table(
        ["strategy", "accuracy", "rounds", "uplink bytes per client and round", "FedAvg's / its"],
        [
            [
                run.strategy,
                f"{run.accuracy:.3f}",
                str(run.rounds),
                f"{run.uplink_bytes:,.0f}",
                "" if reference is None else f"{reference / run.uplink_bytes:.1f}",
            ]
            for run in runs
        ],
    )


def plot_accuracy(runs: Sequence[Run], title: str) -> Figure:
    """Return a figure of accuracy over rounds, one labelled curve per strategy."""
    with mpl.rc_context({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for index, run in enumerate(runs):
            axes.plot(
                *zip(*run.history, strict=True),
                color=_COLOURS[index % len(_COLOURS)],
                linestyle=_STYLES[index % len(_STYLES)],
                linewidth=2,
                label=f"{run.strategy}: {run.accuracy:.2f}",
            )
        axes.set(xlabel="round", ylabel="test accuracy", title=title, ylim=(0, 1), xlim=(0, None))
        axes.grid(alpha=0.3)
        figure.legend(
            title="after the last round", loc="outside right upper", frameon=False, alignment="left"
        )
    return figure


def write_report(folder: Path, runs: Sequence[Run], config: UserConfig, title: str) -> None:
    """Write results.json and accuracy.png into a folder, which is made if need be.

    Parameters
    ----------
    folder : Path
        The folder.
    runs : sequence of Run
        The runs.
    config : dict
        The run configuration, to be kept with it.
    title : str
        The figure's title.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = {"runs": [asdict(run) for run in runs], "config": config}
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    plot_accuracy(runs, title).savefig(folder / "accuracy.png", dpi=120)


def read_runs(folder: Path) -> list[Run]:
    """Return the runs whose report is in a folder."""
    runs = json.loads((folder / "results.json").read_text())["runs"]
    return [Run(**{**run, "history": [tuple(pair) for pair in run["history"]]}) for run in runs]
