"""Federations to study: a data set, its split, a network, local training, and hostile clients.

Fashion-MNIST is read from Debian's package ``dataset-fashion-mnist``, or from the folder that the
environment variable ``FASHION_MNIST`` names; digits are scikit-learn's.
"""

import gzip
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from experiments.apps.heterogeneous.fedmedian_heterogeneous import task
from experiments.apps.heterogeneous.fedmedian_heterogeneous.measuring import Tell
from experiments.studies.harness import App, StudyGrid, run
from experiments.studies.jobs import Result

NUM_CLASSES = 10

ATTACKS = (
    "minus the mean",
    "minus ten times the mean",
    "minus half the mean",
    "a little is enough",
    "inner product",
    "label flip",
    "mimic",
)
"""The attacks that hostile clients know, in the words of the literature.

The first three send a multiple of the honest clients' mean update, "inner product" (Xie et al.,
arXiv 1903.03936) minus a tenth of it, "a little is enough" (Baruch et al., arXiv 1902.06156) the
mean minus 1.5 standard deviations of each coordinate, "mimic" (Karimireddy et al.,
arXiv 2006.09365) the update of one honest client.
"""

_MULTIPLES = {
    "minus the mean": -1.0,
    "minus ten times the mean": -10.0,
    "minus half the mean": -0.5,
    "inner product": -0.1,
}

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Setting:
    """A federation, and how it is trained.

    Parameters
    ----------
    dataset : str
        "fashion-mnist" or "digits".
    examples : int
        The number of training examples, the first of Fashion-MNIST's.
    network : str
        "mlp", "cnn", "cnn with batchnorm" or "transformer".
    partition : str
        "classes" (one each), "dirichlet", "iid", or "lone class": iid, but that the last client
        alone holds the last class.
    alpha : float
        The concentration of a Dirichlet partition.
    num_clients : int
        The number of clients.
    fraction : float
        The share of them that trains in a round.
    rounds, local_epochs, batch_size : int
        The numbers of rounds, of each client's epochs in a round, and of examples in its batches.
    learning_rate, momentum : float
        Those of the clients' SGD.
    attack : str
        One of `ATTACKS`, or "" if nobody attacks.
    num_hostile : int
        The number of hostile clients.
    """

    dataset: str = "fashion-mnist"
    examples: int = 12_000
    network: str = "mlp"
    partition: str = "dirichlet"
    alpha: float = 0.3
    num_clients: int = 10
    fraction: float = 1.0
    rounds: int = 30
    local_epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 0.05
    momentum: float = 0.0
    attack: str = ""
    num_hostile: int = 0

    def __str__(self) -> str:
        """Return what is not as usual, for tables and the names of jobs."""
        own = [(field.name, getattr(self, field.name), field.default) for field in fields(self)]
        return ", ".join(f"{name} {value}" for name, value, usual in own if value != usual)


@cache
def load(dataset: str, examples: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images, (n, 1, side, side), and labels for training, then those for testing."""
    if dataset == "digits":
        train_x, test_x, train_y, test_y = task.load_split()
        images = [torch.from_numpy(x).reshape(-1, 1, 8, 8) for x in (train_x, test_x)]
        return images[0], torch.from_numpy(train_y), images[1], torch.from_numpy(test_y)
    folder = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
    if not folder.is_dir():
        raise SystemExit(
            f"Fashion-MNIST is not in {folder}: apt-get install dataset-fashion-mnist, or set "
            "FASHION_MNIST to a folder with its four .gz files"
        )
    parts = []
    for part, size in (("train", examples), ("t10k", 10_000)):
        images_file, labels_file = (folder / f"{part}-{kind}-ubyte.gz" for kind in _IDX)
        pixels = np.frombuffer(gzip.decompress(images_file.read_bytes()), np.uint8, offset=16)
        labels = np.frombuffer(gzip.decompress(labels_file.read_bytes()), np.uint8, offset=8)
        scaled = pixels.reshape(-1, 1, 28, 28)[:size].astype(np.float32) / 255
        parts += [torch.from_numpy(scaled), torch.from_numpy(labels[:size].astype(np.int64))]
    return parts[0], parts[1], parts[2], parts[3]


_IDX = ("images-idx3", "labels-idx1")


@cache
def split(setting: Setting, seed: int) -> list[NDArray[np.int64]]:
    """Return the rows of the training examples that each client holds."""
    labels = load(setting.dataset, setting.examples)[1].numpy()
    if setting.partition != "lone class":
        return task.split_rows(
            labels, setting.partition, setting.num_clients, 1, setting.alpha, seed
        )
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    known, lone = (
        shuffled[chosen] for chosen in (labels[shuffled] < 9, labels[shuffled] == NUM_CLASSES - 1)
    )
    *others, last = np.array_split(known, setting.num_clients)
    return [*others, np.concatenate([last, lone])]


class _Rows(nn.Module):
    """A small transformer that reads an image row by row."""

    def __init__(self, side: int, width: int = 32) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(side, width), nn.Embedding(side, width)
        self.layer = nn.TransformerEncoderLayer(width, 2, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.embed(images.squeeze(1)) + self.place.weight
        return cast(Tensor, self.head(self.layer(rows).mean(dim=1)))


def make_network(name: str, dataset: str, seed: int) -> nn.Module:
    """Return a network, initialised from a seed."""
    torch.manual_seed(seed)
    side = 8 if dataset == "digits" else 28
    if name == "mlp":
        hidden = 1400 if dataset == "digits" else 128
        return nn.Sequential(
            nn.Flatten(), nn.Linear(side**2, hidden), nn.ReLU(), nn.Linear(hidden, NUM_CLASSES)
        )
    if name == "transformer":
        return _Rows(side)
    # Flower's own, of its quickstart for PyTorch, for one channel.
    norms = [nn.BatchNorm2d(6), nn.BatchNorm2d(16)] if "batchnorm" in name else [nn.Identity()] * 2
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), norms[0], nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), norms[1], nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def _train(
    model: nn.Module, images: Tensor, labels: Tensor, setting: Setting, rng: np.random.Generator
) -> None:
    optimizer = torch.optim.SGD(
        model.parameters(), lr=setting.learning_rate, momentum=setting.momentum
    )
    for _ in range(setting.local_epochs):
        for batch in torch.split(
            torch.from_numpy(rng.permutation(len(labels))), setting.batch_size
        ):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


class Clients:
    """A federation's clients, in the order of their partitions; hostile ones are the last.

    These know what the honest ones send, as the literature's attackers do. All clients claim one
    example, so that means and medians of them aim at the same model.

    Parameters
    ----------
    setting : Setting
        The federation.
    seed : int
        The seed of the split and of the order of examples.
    """

    def __init__(self, setting: Setting, seed: int) -> None:
        self._setting, self._seed = setting, seed
        self._round, self._honest = 0, list[list[Vector]]()

    def train(self, message: Message, context: Context) -> Message:
        """Train the server's model on a client's own data, or attack it."""
        setting, partition = self._setting, int(context.node_config["partition-id"])
        server_round = cast(int, message.content.config_records["config"]["server-round"])
        before = message.content.array_records["arrays"]
        rows = torch.from_numpy(split(setting, self._seed)[partition])
        images, labels = (values[rows] for values in load(setting.dataset, setting.examples)[:2])
        hostile = partition >= setting.num_clients - setting.num_hostile
        if hostile and setting.attack == "label flip":
            labels = NUM_CLASSES - 1 - labels
        model = make_network(setting.network, setting.dataset, 0)
        model.load_state_dict(before.to_torch_state_dict())
        rng = np.random.default_rng((self._seed, partition, server_round))
        _train(model, images, labels, setting, rng)
        after = {name: value.numpy() for name, value in model.state_dict().items()}
        start = {name: array.numpy() for name, array in before.items()}
        moving = [name for name, value in after.items() if value.dtype == np.float32]
        if server_round != self._round:
            self._round, self._honest = server_round, []
        if not hostile:
            self._honest.append([start[name] - after[name] for name in moving])
        elif setting.attack != "label flip":
            for index, name in enumerate(moving):
                after[name] = start[name] - self._attack([one[index] for one in self._honest])
        content = RecordDict(
            {
                "arrays": ArrayRecord({name: Array(array) for name, array in after.items()}),
                "metrics": MetricRecord({"num-examples": 1}),
            }
        )
        return Message(content, reply_to=message)

    def _attack(self, honest: list[Vector]) -> Vector:
        """Return what a hostile client sends in place of its update of an array."""
        if self._setting.attack == "mimic":
            return honest[0]
        stacked = np.stack(honest)
        mean = np.asarray(stacked.mean(axis=0))
        if self._setting.attack == "a little is enough":
            return np.asarray(mean - np.float32(1.5) * stacked.std(axis=0))
        return np.asarray(np.float32(_MULTIPLES[self._setting.attack]) * mean)


def simulate(
    make_strategy: Callable[..., Strategy], setting: Setting, seed: int, mods: Sequence[Mod]
) -> Result:
    """Train a federation.

    Parameters
    ----------
    make_strategy : callable
        Makes the strategy of ``seed`` and of FedAvg's options.
    setting : Setting
        The federation.
    seed : int
        The seed.
    mods : sequence of mods
        The mods of its ClientApp.

    Returns
    -------
    dict
        ``accuracy`` on the test set after each round, ``recall`` of its last class, and
        ``uplink``, the bytes of a training reply as sent.
    """
    clients = ClientApp(mods=list(mods))
    clients.train()(Clients(setting, seed).train)
    images, labels = load(setting.dataset, setting.examples)[2:]
    lone = labels == NUM_CLASSES - 1
    model = make_network(setting.network, setting.dataset, seed)
    recalls = []

    def serve(config: UserConfig, grid: StudyGrid, tell: Tell) -> None:
        def test(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            model.load_state_dict(arrays.to_torch_state_dict())
            with torch.no_grad():
                right = model.eval()(images).argmax(dim=1) == labels
            tell(server_round, float(right.float().mean()))
            recalls.append(float(right[lone].float().mean()))
            return MetricRecord({})

        asked = round(setting.fraction * setting.num_clients)
        strategy = make_strategy(
            seed=seed,
            fraction_train=setting.fraction,
            fraction_evaluate=0.0,
            min_train_nodes=asked,
            min_available_nodes=setting.num_clients,
        )
        initial = {name: value.clone() for name, value in model.state_dict().items()}
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(initial),
            num_rounds=setting.rounds,
            evaluate_fn=test,
        )

    app = App(clients, serve)
    (result,) = run("", app, {"num-clients": setting.num_clients}, [seed])
    return {
        "accuracy": [accuracy for _, accuracy in result.history[1:]],
        "recall": recalls[1:],
        "uplink": result.uplink_bytes,
    }
