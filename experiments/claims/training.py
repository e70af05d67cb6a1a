"""The paper's algorithms on networks: a gradient per client and round, as in Figures 2 and 3."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, UserConfig
from flwr.client import Client
from flwr.clientapp import ClientApp
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from experiments.claims.claim import Findings
from experiments.studies.federation import Setting, load, make_network, split
from experiments.studies.figures import STYLES
from experiments.studies.harness import App, StudyGrid, Tell, run
from experiments.studies.jobs import Job, Result, run_jobs
from experiments.studies.tables import make_table
from fedmedian import Majority, Noise
from fedmedian.clients import FullBatchGradient, GradientClient, MiniBatchGradient, SignClient
from fedmedian.rules.schedules import Schedule
from fedmedian.strategies import MedianSGD, SignSGD

RESULTS = Path(__file__).resolve().parents[1] / "results" / "paper"

NONE = "none"
"""The noise of runs without."""

_CHUNK = 500
"""The number of examples that go through a network at once."""


@dataclass(frozen=True)
class Descent:
    """One of the paper's algorithms on a federation.

    Parameters
    ----------
    setting : Setting
        The federation. Of its training only `rounds` and `batch_size` count, 0 for full batches.
    noise : Noise or None
        What each client adds to its gradient.
    rate : float or Schedule
        The server's step δ.
    algorithm : str
        "signs" (Algorithms 1 and 3) or "median" (2 and 4).
    looks : int
        The number of times that the model is looked at, the start not counted.
    """

    setting: Setting
    noise: Noise | None
    rate: float | Schedule
    algorithm: str = "signs"
    looks: int = 50

    def __str__(self) -> str:
        """Return what names its job."""
        return (
            f"{self.algorithm} | {self.noise or NONE} | rate {self.rate} | {self.setting} | "
            f"{self.looks} looks"
        )

    def strategy(self, seed: int) -> SignSGD | MedianSGD:
        """Make the strategy; a tie of votes moves nothing, as sign(0) = 0."""
        options: Any = {
            "rotation": None,
            "diagnostics": False,
            "numpy_clients": True,
            "seed": seed,
            "fraction_evaluate": 0.0,
        }
        if self.algorithm == "median":
            return MedianSGD(self.noise, learning_rate=self.rate, **options)
        majority = Majority(ties="unchanged")
        return SignSGD(self.noise, majority, self.rate, weighted=False, **options)


def descend(descent: Descent, seed: int) -> Result:
    """Train a federation.

    Parameters
    ----------
    descent : Descent
        The algorithm and the federation.
    seed : int
        The seed of the network, the split, the batches and the noise.

    Returns
    -------
    dict
        ``rounds``, and after each of them the test ``accuracy``, the training ``loss`` and the L2
        norm of its ``gradient``; the last two are means over clients, of all of their examples.
    """
    setting = descent.setting
    images, labels = load(setting.dataset, setting.examples)[:2]
    held = [TensorDataset(images[rows], labels[rows]) for rows in split(setting, seed)]
    model = make_network(setting.network, setting.dataset, seed)
    kind = GradientClient if descent.algorithm == "median" else SignClient
    work = MiniBatchGradient() if setting.batch_size else FullBatchGradient()
    batches = [_batches(examples, setting.batch_size) for examples in held]

    def make_client(context: Context) -> Client:
        mine = batches[int(context.node_config["partition-id"])]
        return kind(context, model, mine, work=work).to_client()

    found: Result = {"rounds": [], "accuracy": [], "loss": [], "gradient": []}
    every = max(setting.rounds // descent.looks, 1)

    def serve(config: UserConfig, grid: StudyGrid, tell: Tell) -> None:
        def look(server_round: int, arrays: ArrayRecord) -> None:
            if server_round % every:
                return
            model.load_state_dict(arrays.to_torch_state_dict())
            loss, gradient = loss_and_gradient(model, held)
            found["rounds"].append(server_round)
            found["accuracy"].append(accuracy(model, *load(setting.dataset, setting.examples)[2:]))
            found["loss"].append(loss)
            found["gradient"].append(gradient)
            tell(server_round, found["accuracy"][-1])

        initial = ArrayRecord({name: one.clone() for name, one in model.state_dict().items()})
        descent.strategy(seed).start(grid, initial, setting.rounds, evaluate_fn=look)

    app = App(ClientApp(client_fn=make_client), serve)
    run("", app, {"num-clients": setting.num_clients}, [seed])
    return found


def loss_and_gradient(model: nn.Module, held: list[TensorDataset]) -> tuple[float, float]:
    """Return f = (1/M) Σ f_i of all clients' examples, and ‖∇f‖."""
    model.zero_grad()
    total = 0.0
    for examples in held:
        for inputs, targets in _batches(examples, 0):
            share = len(targets) / len(examples) / len(held)
            loss = cross_entropy(model(inputs), targets) * share
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
    gradients = [one.grad.norm() for one in model.parameters() if one.grad is not None]
    return total, float(torch.stack(gradients).norm())


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images whose class a model knows."""
    with torch.no_grad():
        parts = zip(torch.split(images, _CHUNK), torch.split(labels, _CHUNK), strict=True)
        right = [int((model(inputs).argmax(dim=1) == targets).sum()) for inputs, targets in parts]
    return sum(right) / len(labels)


def _batches(examples: TensorDataset, size: int) -> DataLoader[Any]:
    """Return a client's examples in random batches of a size, or in order if that is 0."""
    order = RandomSampler(examples) if size else SequentialSampler(examples)
    batches = BatchSampler(order, size or _CHUNK, drop_last=False)
    return DataLoader(examples, batch_size=None, sampler=batches)  # all of a batch in one look-up


Groups = Mapping[str, Mapping[str, Descent]]
"""Runs by their noise, in groups by their clients."""


def descend_all(groups: Groups, *, quick: bool) -> Findings:
    """Train federations from seed 0, in parallel processes and kept unless it is to be quick.

    Parameters
    ----------
    groups : Groups
        The runs.
    quick : bool
        Whether they take seconds.

    Returns
    -------
    dict
        ``runs``, the results of `descend` likewise.
    """
    jobs: dict[tuple[str, str], Job] = {
        (group, noise): (f"{one}, seed 0", partial(descend, one, 0))
        for group, runs in groups.items()
        for noise, one in runs.items()
    }
    found = {key: job() for key, (_, job) in jobs.items()} if quick else run_jobs(jobs, RESULTS)
    return {
        "runs": {
            group: {noise: found[group, noise] for noise in runs} for group, runs in groups.items()
        }
    }


def end(result: Result, quantity: str) -> float:
    """Return the mean over the last fifth of the looks."""
    values = result[quantity]
    return fmean(values[-max(len(values) // 5, 1) :])


def lacks_gain(found: Findings, group: str, noise: str, gain: float) -> list[str]:
    """Return what is wrong if noise does not end at a test accuracy higher by `gain` at least."""
    runs = found["runs"][group]
    without, with_it = (end(runs[one], "accuracy") for one in (NONE, noise))
    if with_it >= without + gain:
        return []
    return [f"{group}: {noise} ends at {with_it:.3f}, without noise at {without:.3f}"]


def draw(found: Findings) -> Figure:
    """Draw accuracy, loss and gradient norm over rounds, a row for each group of runs."""
    groups = found["runs"]
    figure = Figure(figsize=(12, 2.9 * len(groups)), layout="constrained")
    rows: list[list[Axes]] = figure.subplots(len(groups), 3, squeeze=False).tolist()
    for (group, runs), axes in zip(groups.items(), rows, strict=True):
        for one, quantity in zip(axes, ("accuracy", "loss", "gradient"), strict=True):
            for style, (noise, result) in zip(STYLES, runs.items(), strict=False):
                one.plot(result["rounds"], result[quantity], style, label=noise)
            one.grid(alpha=0.3)
        axes[0].set(title=group, ylabel="test accuracy", ylim=(0, 1))
        # A start far above all that follows would flatten it.
        top = max(loss for result in runs.values() for loss in result["loss"][1:])
        axes[1].set(ylabel="training loss", ylim=(0, 1.1 * top))
        axes[2].set(ylabel="norm of the gradient", yscale="log")
        axes[2].legend(fontsize="small")
    for one in rows[-1]:
        one.set_xlabel("round")
    return figure


def tabulate(found: Findings) -> str:
    """Return a table of the ends of all runs."""
    rows = [
        [group, noise, *(f"{end(result, key):{form}}" for key, form in _FORMS.items())]
        for group, runs in found["runs"].items()
        for noise, result in runs.items()
    ]
    table = make_table(["clients", "noise", "accuracy", "loss", "norm of the gradient"], rows)
    return f"{table}\n\nMeans over the last fifth of the rounds."


_FORMS = {"accuracy": ".3f", "loss": ".3f", "gradient": ".3g"}
