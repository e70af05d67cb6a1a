"""Federations to study: a data set, its split, a network, local training, and hostile clients.

Fashion-MNIST is read from Debian's package ``dataset-fashion-mnist``, or from the folder that the
environment variable ``FASHION_MNIST`` names; digits are scikit-learn's; for MNIST and CIFAR-10 see
`experiments.studies.hub`.
"""

import gzip
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from experiments.apps.heterogeneous.fedmedian_heterogeneous import task
from experiments.studies.harness import App, StudyGrid, Tell, run
from experiments.studies.hub import HUB, load_split
from experiments.studies.jobs import Result
from fedmedian.clients.attacks import (
    ALittleIsEnough,
    ClaimExamples,
    Collusion,
    Drift,
    FoolKrum,
    GaussianNoise,
    HalfMimic,
    Hostile,
    InnerProduct,
    Mimic,
    MinMax,
    MinMaxAngle,
    MinSum,
    MinSumAngle,
    SignFlip,
    TwoCamps,
    flip_labels,
)
from fedmedian.model.layout import Arrays
from fedmedian.records import to_arrays, to_record
from fedmedian.strategies import RunFailedError
from fedmedian.wire.npy import bfloat16, is_floating

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
"""The attacks that all studies know, in the words of the literature.

The first three are `InnerProduct` of another length; see `fedmedian.clients.attacks` for all.
"""

CLAIMED = 1000
"""The examples that each hostile client claims under any attack, where the others claim one."""

MORE_ATTACKS = ("sign flip", "gaussian", "min-max", "min-sum", "opt")
"""Attacks that only the study of robustness knows."""

ADAPTIVE = ("half-mimic", "drift", "two camps", "min-max angle", "min-sum angle")
"""Attacks that are made against rules that compare clients' directions."""

_OMNISCIENT = {
    "minus the mean": InnerProduct(1.0),
    "minus ten times the mean": InnerProduct(10.0),
    "minus half the mean": InnerProduct(0.5),
    "a little is enough": ALittleIsEnough(1.5),
    "inner product": InnerProduct(0.1),
    "mimic": Mimic(),
    "min-max": MinMax(),
    "min-sum": MinSum(),
    "half-mimic": HalfMimic(2.0),
    "drift": Drift(0.1),
    "two camps": TwoCamps(2.0),
    "min-max angle": MinMaxAngle(),
    "min-sum angle": MinSumAngle(),
}

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Setting:
    """A federation, and how it is trained.

    Parameters
    ----------
    dataset : str
        "fashion-mnist", "digits", "mnist" or "cifar-10".
    examples : int
        The number of training examples, the first of the data set's; digits are always all.
    network : str
        "linear", "mlp", "mlp of the paper", "mlp with tied layers", "cnn", "cnn with batchnorm",
        "lenet", "transformer", "resnet-20" or "narrow resnet-20"; of CIFAR-10 a linear
        one, an MLP, a LeNet or a ResNet.
    partition : str
        "classes" (one each), "two classes" (each, and each class at two clients), "dirichlet",
        "iid", "lone class" and "shared class": iid, but that the last client alone, or the last
        two, hold the last class, or "sorted": each honest client holds a shard of the examples in
        the order of their labels, and hostile ones hold them all.
    alpha : float
        The concentration of a Dirichlet partition.
    num_clients : int
        The number of clients.
    fraction : float
        The share of them that trains in a round.
    rounds, local_epochs, batch_size : int
        The numbers of rounds, of each client's epochs in a round, and of examples in its batches.
    local_steps : int
        The number of batches that are used of an epoch, or 0 for all.
    learning_rate, momentum : float
        Those of the clients' SGD.
    optimizer : str
        "sgd", or "adam" for the clients' Adam in its place.
    client_momentum : float
        The decay β of each client's average over rounds, m ← β·m + (1 − β)·u, which it sends in
        place of its update u.
    private_head : bool
        Whether each client keeps a private last layer, and sends it all the same.
    dtype : str
        The dtype in which the model travels, of "float32", "float16" and "bfloat16".
    attack : str
        One of `ATTACKS`, `MORE_ATTACKS` or `ADAPTIVE`, or "" without an attack.
    num_hostile : int
        The number of hostile clients.
    tested : int
        The number of last rounds after which the model is tested; 0 for all rounds.
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
    local_steps: int = 0
    learning_rate: float = 0.05
    momentum: float = 0.0
    optimizer: str = "sgd"
    client_momentum: float = 0.0
    private_head: bool = False
    dtype: str = "float32"
    attack: str = ""
    num_hostile: int = 0
    tested: int = 0

    def __str__(self) -> str:
        """Return the fields that are not the defaults, for tables and the names of jobs."""
        own = [(field.name, getattr(self, field.name), field.default) for field in fields(self)]
        return ", ".join(f"{name} {value}" for name, value, usual in own if value != usual)


@cache
def load(dataset: str, examples: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images, (n, channels, side, side), and labels for training, then those for testing."""
    if dataset == "digits":
        train_x, test_x, train_y, test_y = task.load_split()
        images = [torch.from_numpy(x).reshape(-1, 1, 8, 8) for x in (train_x, test_x)]
        return images[0], torch.from_numpy(train_y), images[1], torch.from_numpy(test_y)
    if dataset in HUB:
        return *load_split(dataset, "train", examples), *load_split(dataset, "test")
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
_SHAPES = {"digits": (1, 8), "cifar-10": (3, 32)}
"""The channels and the side of images, where they are not 1 and 28."""

_CLASSES = {"two classes": ("classes", 2)}
_HOLDERS = {"lone class": 1, "shared class": 2}
"""The number of clients that hold the last class, where not all may."""


@cache
def split(setting: Setting, seed: int) -> list[NDArray[np.int64]]:
    """Return the rows of the training examples that each client holds."""
    labels = load(setting.dataset, setting.examples)[1].numpy()
    if setting.partition == "sorted":
        rows = np.argsort(labels, kind="stable")
        shards = np.array_split(rows, setting.num_clients - setting.num_hostile)
        return [*shards, *([rows] * setting.num_hostile)]
    if setting.partition not in _HOLDERS:
        kind, classes = _CLASSES.get(setting.partition, (setting.partition, 1))
        return task.split_rows(labels, kind, setting.num_clients, classes, setting.alpha, seed)
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    is_last = labels[shuffled] == NUM_CLASSES - 1
    known, lone = shuffled[~is_last], shuffled[is_last]
    holders = _HOLDERS[setting.partition]
    parts = np.array_split(known, setting.num_clients)
    ends = [
        np.concatenate(pair)
        for pair in zip(parts[-holders:], np.array_split(lone, holders), strict=True)
    ]
    return [*parts[:-holders], *ends]


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


class _Tied(nn.Module):
    """Two layers that are one: its weights have two names."""

    def __init__(self, side: int, width: int = 128) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(side**2, width), nn.Linear(width, NUM_CLASSES)
        self.second, self.third = nn.Linear(width, width), nn.Linear(width, width)
        self.third.weight = self.second.weight

    def forward(self, images: Tensor) -> Tensor:
        hidden = functional.relu(self.first(images.flatten(1)))
        hidden = functional.relu(self.third(functional.relu(self.second(hidden))))
        return cast(Tensor, self.head(hidden))


class _Residual(nn.Module):
    """Two convolutions and a shortcut without parameters."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride = outputs // inputs
        self.first = nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        past = images[:, :, :: self.stride, :: self.stride]
        past = functional.pad(past, (0, 0, 0, 0, 0, self.second.out_channels - past.shape[1]))
        return functional.relu(past + self.second(functional.relu(self.first(images))))


def _resnet_20(channels: int, width: int, stride: int) -> nn.Module:
    """Return He et al.'s ResNet-20 for CIFAR-10 (arXiv 1512.03385), each BatchNorm removed."""
    widths = [width] * 4 + [2 * width] * 3 + [4 * width] * 3
    network = nn.Sequential(
        *(nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.ReLU()),
        *(_Residual(*pair) for pair in pairwise(widths)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, NUM_CLASSES)),
    )
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    return network


def _two_layers(inputs: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, NUM_CLASSES)
    )


def _with_truncated_normals(network: nn.Sequential) -> nn.Module:
    """Initialize a network as Chen et al. do: normals within two deviations, 1/√(fan-in)."""
    for layer in network:
        if isinstance(layer, nn.Linear):
            deviation = layer.in_features**-0.5
            nn.init.trunc_normal_(layer.weight, 0.0, deviation, -2 * deviation, 2 * deviation)
            nn.init.zeros_(layer.bias)
    return network


def make_network(name: str, dataset: str, seed: int) -> nn.Module:
    """Return a network, initialized from a seed."""
    torch.manual_seed(seed)
    channels, side = _SHAPES.get(dataset, (1, 28))
    size = channels * side**2
    if name == "linear":
        return nn.Sequential(nn.Flatten(), nn.Linear(size, NUM_CLASSES))
    if name == "mlp":
        return _two_layers(size, 1400 if dataset == "digits" else 128)
    if name == "mlp of the paper":
        return _with_truncated_normals(_two_layers(size, 128))
    if name == "resnet-20":
        return _resnet_20(channels, 16, 1)
    if name == "narrow resnet-20":
        return _resnet_20(channels, 4, 2 if side > 14 else 1)
    if name == "mlp with tied layers":
        return _Tied(side)
    if name == "transformer":
        return _Rows(side)
    if name == "lenet":  # of Acar et al., ICLR 2021 (arXiv 2111.04263)
        pooled = ((side - 4) // 2 - 4) // 2
        return nn.Sequential(
            *(nn.Conv2d(channels, 64, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 64, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(64 * pooled**2, 384), nn.ReLU(), nn.Linear(384, 192), nn.ReLU()),
            nn.Linear(192, NUM_CLASSES),
        )
    # Flower's own, of its quickstart for PyTorch, for one channel.
    norms = [nn.BatchNorm2d(6), nn.BatchNorm2d(16)] if "batchnorm" in name else [nn.Identity()] * 2
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), norms[0], nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), norms[1], nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    """Return arrays as tensors; torch has no arrays of bfloat16 to read."""
    wide = {
        name: array.astype(np.float32) if is_floating(array.dtype) else array
        for name, array in arrays.items()
    }
    return {name: torch.tensor(array) for name, array in wide.items()}


def _train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    rows: Tensor,
    setting: Setting,
    rng: np.random.Generator,
) -> None:
    parameters, rate = model.parameters(), setting.learning_rate
    optimizer = (
        torch.optim.Adam(parameters, lr=rate, fused=True)
        if setting.optimizer == "adam"
        else torch.optim.SGD(parameters, lr=rate, momentum=setting.momentum)
    )
    for _ in range(setting.local_epochs):
        order = rows[torch.from_numpy(rng.permutation(len(rows)))]
        for batch in torch.split(order, setting.batch_size)[: setting.local_steps or None]:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


class Clients:
    """A federation's clients, in the order of their partitions; hostile ones are the last.

    These know what the honest ones send, as the literature's attackers do, and claim `CLAIMED`
    examples besides. All others claim one example, so that means and medians of them aim at the
    same model.

    Parameters
    ----------
    setting : Setting
        The federation.
    seed : int
        The seed of the split and of the order of examples.
    """

    def __init__(self, setting: Setting, seed: int) -> None:
        self._setting, self._seed = setting, seed
        self._hostile = range(setting.num_clients - setting.num_hostile, setting.num_clients)
        self._attack = self._make_attack()
        self._model = make_network(setting.network, setting.dataset, 0)  # all clients train it
        self._heads: dict[int, dict[str, NDArray[Any]]] = {}
        self._momenta = defaultdict[tuple[int, str], Vector](lambda: np.zeros(1, dtype=np.float32))

    def train(self, message: Message, context: Context) -> Message:
        """Train the server's model on a client's own data, or attack it."""
        if not self._setting.attack:
            return self._train(message, context)
        claim = Hostile(ClaimExamples(CLAIMED), self._hostile)
        return claim(message, context, self._attacked)

    def _attacked(self, message: Message, context: Context) -> Message:
        if self._attack is None:
            return self._train(message, context)
        return self._attack(message, context, self._train)

    def _make_attack(self) -> Mod | None:
        match self._setting.attack:
            case "" | "label flip":
                return None
            case "sign flip":
                return Hostile(SignFlip(), self._hostile)
            case "gaussian":
                return Hostile(GaussianNoise(10.0, self._seed), self._hostile)
            case "opt":
                return Collusion(FoolKrum(self._setting.num_hostile), self._hostile)
            case attack:
                return Collusion(_OMNISCIENT[attack], self._hostile)

    def _train(self, message: Message, context: Context) -> Message:
        setting, partition = self._setting, int(context.node_config["partition-id"])
        server_round = cast(int, message.content.config_records["config"]["server-round"])
        before = to_arrays(message.content.array_records["arrays"])
        rows = torch.from_numpy(split(setting, self._seed)[partition])
        images, labels = load(setting.dataset, setting.examples)[:2]
        if partition in self._hostile and setting.attack == "label flip":
            labels = torch.from_numpy(flip_labels(labels.numpy(), NUM_CLASSES))
        model = self._model
        own = {**before, **self._heads.get(partition, {})}
        model.load_state_dict(_tensors(own))
        rng = np.random.default_rng((self._seed, partition, server_round))
        _train(model, images, labels, rows, setting, rng)
        after = {
            name: value.numpy().astype(before[name].dtype)
            for name, value in model.state_dict().items()
        }
        if setting.private_head:
            self._heads[partition] = {name: after[name] for name in list(after)[-2:]}
        if setting.client_momentum:
            for name, start in before.items():
                if after[name].dtype == np.float32:
                    after[name] = start - self._average((partition, name), start - after[name])
        metrics = MetricRecord({"num-examples": 1})
        content = RecordDict({"arrays": to_record(after), "metrics": metrics})
        return Message(content, reply_to=message)

    def _average(self, key: tuple[int, str], update: Vector) -> Vector:
        """Return a client's average over rounds of its update of an array."""
        decay = np.float32(self._setting.client_momentum)
        self._momenta[key] = decay * self._momenta[key] + (1 - decay) * update
        return self._momenta[key]


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
        ``accuracy`` on the test set after each tested round, ``recall`` of its last class,
        ``uplink`` and ``downlink``, the mean bytes of a training reply and of what asks for it, as
        sent, and ``sent``, the bytes of all of them in each round.
    """
    clients = ClientApp(mods=list(mods))
    clients.train()(Clients(setting, seed).train)
    images, labels = load(setting.dataset, setting.examples)[2:]
    lone = labels == NUM_CLASSES - 1
    model = make_network(setting.network, setting.dataset, seed)
    recalls, reached = [], list[int]()

    def serve(config: UserConfig, grid: StudyGrid, tell: Tell) -> None:
        def test(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            reached.append(server_round)
            if setting.tested and 0 < server_round <= setting.rounds - setting.tested:
                return MetricRecord({})
            model.load_state_dict(_tensors(to_arrays(arrays)))
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
        dtype = bfloat16() if setting.dtype == "bfloat16" else np.dtype(setting.dtype)
        initial = {
            name: np.array(array, dtype if is_floating(array.dtype) else array.dtype)
            for name, array in ((key, one.numpy()) for key, one in model.state_dict().items())
        }
        try:
            strategy.start(
                grid=grid,
                initial_arrays=to_record(initial),
                num_rounds=setting.rounds,
                evaluate_fn=test,
            )
        except RunFailedError as failed:
            # All clients have diverged. What is left to FedAvg is a model of NaN; here it stays.
            for server_round in range(reached[-1] + 1, setting.rounds + 1):
                test(server_round, to_record(failed.arrays))

    app = App(clients, serve)
    (result,) = run("", app, {"num-clients": setting.num_clients}, [seed])
    return {
        "accuracy": [accuracy for _, accuracy in result.history[1:]],
        "recall": recalls[1:],
        "uplink": result.uplink_bytes,
        "downlink": result.downlink_bytes,
        "sent": result.sent,
    }
