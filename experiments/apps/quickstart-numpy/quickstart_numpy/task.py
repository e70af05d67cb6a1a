"""quickstart_numpy: A Flower / NumPy app."""

from functools import cache

import numpy as np
from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner
from sklearn.datasets import load_digits

NUM_PIXELS, NUM_HIDDEN, NUM_CLASSES = 28 * 28, 64, 10


def create_model() -> list[np.ndarray]:
    """Return a network of one hidden layer: two weight matrices, each with its biases."""
    rng = np.random.default_rng(42)
    w1 = rng.normal(scale=np.sqrt(2 / NUM_PIXELS), size=(NUM_PIXELS, NUM_HIDDEN))
    w2 = rng.normal(scale=np.sqrt(2 / NUM_HIDDEN), size=(NUM_HIDDEN, NUM_CLASSES))
    arrays = w1, np.zeros(NUM_HIDDEN), w2, np.zeros(NUM_CLASSES)
    return [array.astype(np.float32) for array in arrays]


partitioner = None  # Made once


def load_partition(partition_id: int, num_partitions: int) -> Dataset:
    """Return one client's share of scikit-learn's digits, enlarged to 28x28 pixels."""
    global partitioner
    if partitioner is None:
        images, labels = load_digits(return_X_y=True)
        images = np.kron(images.reshape(-1, 8, 8), np.ones((3, 3))) / 16
        images = np.pad(images, ((0, 0), (2, 2), (2, 2))).reshape(-1, NUM_PIXELS)
        partitioner = DirichletPartitioner(num_partitions, partition_by="label", alpha=1.0)
        partitioner.dataset = Dataset.from_dict({"img": images.astype(np.float32), "label": labels})
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


def predict(model: list[np.ndarray], images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the hidden layer and the probabilities of the classes."""
    w1, b1, w2, b2 = model
    hidden = np.maximum(images @ w1 + b1, 0)
    logits = hidden @ w2 + b2
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return hidden, exponentials / exponentials.sum(axis=1, keepdims=True)


def train(
    model: list[np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    epochs: int,
    lr: float,
    batch_size: int,
) -> None:
    """Train the model in place by SGD."""
    rng = np.random.default_rng()
    w2 = model[2]
    for _ in range(epochs):
        order = rng.permutation(len(labels))
        for start in range(0, len(labels), batch_size):
            rows = order[start : start + batch_size]
            x, y = images[rows], labels[rows]
            hidden, delta = predict(model, x)
            delta[np.arange(len(y)), y] -= 1
            delta /= len(y)
            delta_hidden = (delta @ w2.T) * (hidden > 0)
            gradients = x.T @ delta_hidden, delta_hidden.sum(0), hidden.T @ delta, delta.sum(0)
            for array, gradient in zip(model, gradients, strict=True):
                array -= lr * gradient


def test(model: list[np.ndarray], images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the model's loss and accuracy."""
    _, probabilities = predict(model, images)
    loss = -np.log(probabilities[np.arange(len(labels)), labels] + 1e-12).mean()
    accuracy = (probabilities.argmax(axis=1) == labels).mean()
    return float(loss), float(accuracy)
