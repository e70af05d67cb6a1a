"""Each app as it stands, and with SignSGD in FedAvg's place."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from rich.table import Table

from experiments.quickstarts.plugging import plug_in
from experiments.quickstarts.running import NUM_CLIENTS, Outcome, loaded, run
from fedmedian.layout import Layout
from fedmedian.wire import read_npy

_FOLDER = Path(__file__).resolve().parent

APPS = tuple(_FOLDER / f"quickstart-{name}" for name in ("torch", "sklearn", "numpy"))
"""The apps' folders."""


@dataclass(frozen=True)
class Outcomes:
    """What an app with one strategy came to, once per repetition."""

    runs: Sequence[Outcome]

    @property
    def accuracy(self) -> float:
        """The mean accuracy."""
        return fmean(run.accuracy for run in self.runs)

    @property
    def uplink_bytes(self) -> float:
        """The mean of a training reply's bytes."""
        return fmean(run.uplink_bytes for run in self.runs)


@dataclass(frozen=True)
class Pair:
    """What an app came to with each of the two strategies.

    Parameters
    ----------
    app : str
        Its name.
    rounds : int
        The number of rounds.
    fedavg, sign : Outcomes
        As it stands, and with the change.
    """

    app: str
    rounds: int
    fedavg: Outcomes
    sign: Outcomes

    @property
    def num_parameters(self) -> int:
        """The number of the model's parameters, running statistics not among them."""
        record = self.fedavg.runs[0].arrays
        return Layout.of({name: read_npy(array.data) for name, array in record.items()}).dim

    @property
    def ratio(self) -> float:
        """How many times FedAvg's uplink is SignSGD's."""
        return self.fedavg.uplink_bytes / self.sign.uplink_bytes


def compare(folder: Path, repetitions: int) -> Pair:
    """Run an app as it stands and with the change, each from the same starts.

    Parameters
    ----------
    folder : Path
        The app's folder.
    repetitions : int
        How often, >= 1.

    Returns
    -------
    Pair
        What came of it.
    """
    with TemporaryDirectory() as temporary:
        changed = Path(temporary) / folder.name
        plug_in(folder, changed)
        with loaded(folder) as app:
            fedavg = Outcomes([run(app, seed) for seed in range(repetitions)])
            rounds = int(app.run_config["num-server-rounds"])
        with loaded(changed) as app:
            sign = Outcomes([run(app, seed) for seed in range(repetitions)])
    return Pair(folder.name, rounds, fedavg, sign)


def make_table(pairs: Sequence[Pair]) -> Table:
    """Return the comparison as a table."""
    table = Table(
        title=f"{NUM_CLIENTS} clients; bytes per client and round of training replies, as sent"
    )
    table.add_column("app", no_wrap=True)
    for heading in (
        *("parameters", "rounds", "accuracy\nFedAvg", "accuracy\nSignSGD"),
        *("uplink bytes\nFedAvg", "uplink bytes\nSignSGD", "ratio"),
    ):
        table.add_column(heading, justify="right")
    for pair in pairs:
        table.add_row(
            pair.app,
            f"{pair.num_parameters:,}",
            str(pair.rounds),
            f"{pair.fedavg.accuracy:.3f}",
            f"{pair.sign.accuracy:.3f}",
            f"{pair.fedavg.uplink_bytes:,.0f}",
            f"{pair.sign.uplink_bytes:,.0f}",
            f"{pair.ratio:.1f}",
        )
    return table
