"""What is left of a comparison: a table on the terminal, results.json and accuracy.png."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

# Okabe and Ito's palette: told apart by everybody, and in grey.
_COLOURS = ("#000000", "#E69F00", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9")
_STYLES = ("-", "--", ":", "-", "-.")


PROGRESS = "» "
"""What each line of progress starts with, to be told from a log's other lines."""


@dataclass(frozen=True)
class Run:
    """One strategy's run.

    Parameters
    ----------
    strategy : str
        Its name.
    accuracy : float
        Test accuracy after the last round.
    rounds : int
        The number of rounds.
    uplink_bytes : float
        Bytes per client and round, as sent, with all headers.
    seconds : float
        Wall time.
    history : list of float
        Test accuracy before the first round and after each.
    """

    strategy: str
    accuracy: float
    rounds: int
    uplink_bytes: float
    seconds: float
    history: list[float]


def print_progress(strategy: str, server_round: int, rounds: int, accuracy: float) -> None:
    """Print one line of progress."""
    print(
        f"{PROGRESS}{strategy:20} round {server_round:3}/{rounds}  accuracy {accuracy:.3f}",
        flush=True,
    )


def make_table(runs: Sequence[Run]) -> Table:
    """Return the comparison as a table; ratios are to FedAvg's uplink, if it is there."""
    reference = next((run.uplink_bytes for run in runs if run.strategy == "FedAvg"), None)
    table = Table(title="Test accuracy and uplink")
    table.add_column("strategy")
    for heading in ("accuracy", "rounds", "uplink bytes per client and round", "FedAvg's / its"):
        table.add_column(heading, justify="right")
    for run in runs:
        ratio = "" if reference is None else f"{reference / run.uplink_bytes:.1f}"
        table.add_row(
            run.strategy,
            f"{run.accuracy:.3f}",
            str(run.rounds),
            f"{run.uplink_bytes:,.0f}",
            ratio,
        )
    return table


def print_table(runs: Sequence[Run]) -> None:
    """Print the comparison."""
    Console(width=100).print(make_table(runs))


def plot_accuracy(runs: Sequence[Run], title: str) -> Figure:
    """Return a figure of accuracy over rounds, one labelled curve per strategy."""
    with mpl.rc_context({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for index, run in enumerate(runs):
            axes.plot(
                run.history,
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


def write_report(folder: Path, runs: Sequence[Run], config: dict[str, Any], title: str) -> None:
    """Write results.json and accuracy.png into a folder, which is made if need be.

    Parameters
    ----------
    folder : Path
        Where to.
    runs : sequence of Run
        What was measured.
    config : dict
        The run configuration, to be kept with it.
    title : str
        The figure's title.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = {"runs": [asdict(run) for run in runs], "config": config}
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    plot_accuracy(runs, title).savefig(folder / "accuracy.png", dpi=120)
