"""The task: scikit-learn's digits, split over clients, and a network of 105,010 parameters."""

from functools import cache, lru_cache

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from flwr.app import UserConfig
from flwr_datasets.partitioner import (
    DirichletPartitioner,
    IidPartitioner,
    Partitioner,
    PathologicalPartitioner,
)
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

NUM_CLASSES = 10

# The clients share the machine's cores with each other.
torch.set_num_threads(1)


def make_network(seed: int | None = None) -> nn.Module:
    """Return the network, 64-1400-10 with ReLU, initialized from a seed if one is given."""
    if seed is not None:
        torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 1400), nn.ReLU(), nn.Linear(1400, NUM_CLASSES))


@lru_cache
def load_split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return train and test images, (n, 64) float32 in [0, 1], and their labels: 1437 and 360."""
    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        (images / 16).astype(np.float32), labels, test_size=0.2, random_state=0, stratify=labels
    )
    return train_x, test_x, train_y, test_y


def load_test_set() -> tuple[Tensor, Tensor]:
    """Return the test images and labels, which no client holds."""
    _, images, _, labels = load_split()
    return torch.from_numpy(images), torch.from_numpy(labels)


def split_rows(
    labels: np.ndarray, kind: str, num_clients: int, classes: int, alpha: float, seed: int
) -> list[np.ndarray]:
    """Return the rows of a data set that each client holds.

    Parameters
    ----------
    labels : (n,) int
        The labels of the data set.
    kind : str
        "classes", "dirichlet" or "iid".
    num_clients : int
        The number of clients.
    classes : int
        The number of classes that each holds, of kind "classes".
    alpha : float
        The concentration of kind "dirichlet".
    seed : int
        The seed of the split.

    Returns
    -------
    list of arrays of int
        The rows, client by client.
    """
    if kind == "classes":
        partitioner: Partitioner = PathologicalPartitioner(
            num_clients, "label", classes, "deterministic", seed=seed
        )
    elif kind == "dirichlet":
        partitioner = DirichletPartitioner(num_clients, "label", alpha, seed=seed)
    elif kind == "iid":
        partitioner = IidPartitioner(num_clients)
    else:
        raise ValueError(f"partition must be 'classes', 'dirichlet' or 'iid', got {kind!r}")
    disable_progress_bars()
    partitioner.dataset = Dataset.from_dict({"row": np.arange(len(labels)), "label": labels})
    return [np.array(partitioner.load_partition(one)["row"]) for one in range(num_clients)]


@cache  # a partition is asked for in every round
def _rows(kind: str, num_clients: int, classes: int, alpha: float, seed: int) -> list[np.ndarray]:
    _, _, labels, _ = load_split()
    return split_rows(labels, kind, num_clients, classes, alpha, seed)


def load_partition(partition: int, num_clients: int, config: UserConfig) -> tuple[Tensor, Tensor]:
    """Return the training images and labels of one client."""
    rows = _rows(
        str(config["partition"]),
        num_clients,
        int(config["classes-per-client"]),
        float(config["alpha"]),
        int(config["seed"]),
    )[partition]
    images, _, labels, _ = load_split()
    return torch.from_numpy(images[rows]), torch.from_numpy(labels[rows])


def train(
    model: nn.Module, images: Tensor, labels: Tensor, config: UserConfig, seed: tuple[int, ...]
) -> float:
    """Train a model in place by SGD, and return the mean loss of its last epoch."""
    shuffling = np.random.default_rng(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=float(config["learning-rate"]))
    size, total = int(config["batch-size"]), 0.0
    for _ in range(int(config["local-epochs"])):
        order, total = torch.from_numpy(shuffling.permutation(len(labels))), 0.0
        for batch in torch.split(order, size):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += float(loss.detach()) * len(batch)
    return total / len(labels)


def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return a model's accuracy, in [0, 1]."""
    with torch.no_grad():
        return int((model(images).argmax(dim=1) == labels).sum()) / len(labels)
