"""One small app for each framework, on the same clients: each file has what differs."""

from functools import cache
from typing import Any, Protocol

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.datasets import load_digits

from fedmedian.clients import perturb

FRAMEWORKS = {
    "torch": ("PyTorch", ["torch"]),
    "lightning": ("Lightning", ["lightning"]),
    "huggingface": ("Hugging Face transformers", ["transformers"]),
    "lora": ("Hugging Face peft (LoRA)", ["transformers", "peft"]),
    "jax": ("JAX and Flax", ["jax", "flax", "optax"]),
    "keras": ("TensorFlow and Keras", ["tensorflow", "keras"]),
    "sklearn": ("scikit-learn", ["sklearn"]),
}
"""The frameworks, and the packages that their apps need, by the names of the apps' modules."""

ALPHA = 1.0
"""How much alike the clients' classes are, as a Dirichlet distribution's parameter."""


class Framework(Protocol):
    """What an app's module has."""

    def create(self) -> Any:
        """Return the initial model."""

    def to_record(self, model: Any) -> ArrayRecord:
        """Return what is sent of a model."""

    def load(self, model: Any, record: ArrayRecord) -> Any:
        """Return the model with what was received."""

    def fit(self, model: Any, images: np.ndarray, labels: np.ndarray) -> Any:
        """Return the model after an epoch."""

    def predict(self, model: Any, images: np.ndarray) -> np.ndarray:
        """Return the labels of images."""


def make_client_app(framework: Framework) -> ClientApp:
    """Return the ClientApp of a framework's model, with the mod."""
    app, initial = ClientApp(mods=[perturb]), framework.create()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        images, labels, _, _ = load_data(*_place(context))
        model = framework.load(initial, message.content.array_records["arrays"])
        arrays = framework.to_record(framework.fit(model, images, labels))
        metrics = MetricRecord({"num-examples": len(labels)})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        _, _, images, labels = load_data(*_place(context))
        model = framework.load(initial, message.content.array_records["arrays"])
        accuracy = float((framework.predict(model, images) == labels).mean())
        metrics = MetricRecord({"num-examples": len(labels), "accuracy": accuracy})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def _place(context: Context) -> tuple[int, int]:
    return int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])


@cache
def load_data(
    partition: int, num_partitions: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return a client's share of scikit-learn's digits: images and labels to train, and to test.

    Images are 64 numbers of 0 to 16.
    """
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    mine = []
    for label in range(10):
        rows = rng.permutation(np.flatnonzero(labels == label))
        shares = np.cumsum(rng.dirichlet(np.full(num_partitions, ALPHA)))
        ends = np.rint(shares * len(rows)).astype(int)
        mine.append(rows[ends[partition - 1] if partition else 0 : ends[partition]])
    rows = rng.permutation(np.concatenate(mine))
    train, test = np.split(rows, [int(0.8 * len(rows))])
    images = images.astype(np.float32)
    return images[train], labels[train], images[test], labels[test]
