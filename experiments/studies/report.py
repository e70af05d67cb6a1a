"""The report on runs of the app in experiments/apps/heterogeneous: a table and accuracy.png."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from flwr.app import UserConfig
from matplotlib.figure import Figure

from experiments.studies.runs import Run
from experiments.studies.tables import make_table

# Okabe and Ito's palette: told apart by everybody, and in gray.
_COLORS = ("#000000", "#E69F00", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9")
_STYLES = ("-", "--", ":", "-", "-.")


def compare_bytes(runs: Sequence[Run]) -> str:
    """Return a table of runs; ratios are to FedAvg's bytes, if it is there."""
    reference = next((run for run in runs if run.strategy == "FedAvg"), None)

    def ratio(run: Run, *ways: str) -> str:
        if reference is None:
            return ""
        usual, own = (sum(getattr(one, way) for way in ways) for one in (reference, run))
        return f"{usual / own:.1f}"

    return make_table(
        [
            *("strategy", "accuracy", "rounds", "bytes up per client and round", "bytes down"),
            *("times fewer bytes, up", "times fewer bytes, both ways"),
        ],
        [
            [
                run.strategy,
                f"{run.accuracy:.3f}",
                str(run.rounds),
                f"{run.uplink_bytes:,.0f}",
                f"{run.downlink_bytes:,.0f}",
                ratio(run, "uplink_bytes"),
                ratio(run, "uplink_bytes", "downlink_bytes"),
            ]
            for run in runs
        ],
    )


def plot_accuracy(runs: Sequence[Run], title: str) -> Figure:
    """Return a figure of accuracy over rounds, one labeled curve per strategy."""
    with mpl.rc_context({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for index, run in enumerate(runs):
            axes.plot(
                *zip(*run.history, strict=True),
                color=_COLORS[index % len(_COLORS)],
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


def describe(config: UserConfig) -> str:
    """Return the clients and their data in words."""
    classes = int(config["classes-per-client"])
    kinds = {
        "classes": f"{classes} {'class' if classes == 1 else 'classes'} each",
        "dirichlet": f"Dirichlet({config['alpha']})",
        "iid": "iid",
    }
    return f"Digits, {config['num-clients']} clients, {kinds[str(config['partition'])]}"


def report(folder: Path) -> None:
    """Print the table of the runs that the app wrote into a folder, and draw accuracy.png there."""
    runs = read_runs(folder)
    print(compare_bytes(runs), flush=True)
    config = json.loads((folder / "results.json").read_text())["config"]
    plot_accuracy(runs, describe(config)).savefig(folder / "accuracy.png", dpi=120)


def read_runs(folder: Path) -> list[Run]:
    """Return the runs that the app wrote into a folder."""
    return as_runs(json.loads((folder / "results.json").read_text())["runs"])


def as_runs(found: Iterable[Mapping[str, Any]]) -> list[Run]:
    """Return what the app measured as runs."""
    return [Run(**{**run, "history": [tuple(pair) for pair in run["history"]]}) for run in found]
