"""quickstart_sklearn: A Flower / scikit-learn app."""

from functools import cache

import numpy as np
from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

NUM_FEATURES = 28 * 28
LABELS = np.arange(10)


def create_model(local_epochs: int) -> LogisticRegression:
    """Return a model whose parameters are zeros; fit() continues from their current values."""
    model = LogisticRegression(solver="saga", max_iter=local_epochs, warm_start=True)
    model.classes_ = LABELS
    model.coef_ = np.zeros((len(LABELS), NUM_FEATURES))
    model.intercept_ = np.zeros(len(LABELS))
    return model


def get_model_params(model: LogisticRegression) -> list[np.ndarray]:
    """Return the parameters of a model."""
    return [model.coef_, model.intercept_]


def set_model_params(model: LogisticRegression, params: list[np.ndarray]) -> None:
    """Set the parameters of a model."""
    model.coef_, model.intercept_ = params


partitioner = None  # Made once


def load_partition(partition_id: int, num_partitions: int) -> Dataset:
    """Return one client's share of scikit-learn's digits, enlarged to 28x28 pixels."""
    global partitioner
    if partitioner is None:
        images, labels = load_digits(return_X_y=True)
        images = np.kron(images.reshape(-1, 8, 8), np.ones((3, 3))) / 16
        images = np.pad(images, ((0, 0), (2, 2), (2, 2))).reshape(-1, NUM_FEATURES)
        partitioner = DirichletPartitioner(num_partitions, partition_by="label", alpha=1.0)
        partitioner.dataset = Dataset.from_dict({"img": images, "label": labels})
    return partitioner.load_partition(partition_id)


@cache
def load_data(
    partition_id: int, num_partitions: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Load one client's data: 80% to train on, 20% to test on."""
    partition = load_partition(partition_id, num_partitions)
    split = partition.train_test_split(test_size=0.2, seed=42).with_format("numpy")
    train, test = split["train"][:], split["test"][:]
    return train["img"], train["label"], test["img"], test["label"]


def fit(model: LogisticRegression, images: np.ndarray, labels: np.ndarray) -> None:
    """Train the model in place, also where some labels are missing."""
    # One example of each label, of no weight, lets fit() know all labels
    all_images = np.concatenate([images, np.zeros((len(LABELS), NUM_FEATURES))])
    all_labels = np.concatenate([labels, LABELS])
    weights = np.concatenate([np.ones(len(labels)), np.zeros(len(LABELS))])
    model.fit(all_images, all_labels, sample_weight=weights)
