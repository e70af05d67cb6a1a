"""A network of Flax, trained by optax."""

from typing import Any

import jax
import numpy as np
import optax
from flax import linen
from flwr.app import Array, ArrayRecord

NETWORK = linen.Sequential([linen.Dense(64), linen.relu, linen.Dense(10)])
OPTIMIZER = optax.sgd(0.3)


def create() -> Any:
    """Return the initial parameters."""
    return NETWORK.init(jax.random.key(0), np.zeros((1, 64), np.float32))


def to_record(params: Any) -> ArrayRecord:
    """Return what is sent."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return ArrayRecord({jax.tree_util.keystr(at): Array(np.asarray(leaf)) for at, leaf in leaves})


def load(params: Any, record: ArrayRecord) -> Any:
    """Return the parameters that were received."""
    return jax.tree_util.tree_map_with_path(
        lambda at, leaf: jax.numpy.asarray(record[jax.tree_util.keystr(at)].numpy()), params
    )


@jax.jit
def step(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any]:
    """Return parameters and optimizer state after a batch."""

    def loss(params: Any) -> jax.Array:
        logits = NETWORK.apply(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, state = OPTIMIZER.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, updates), state


def fit(params: Any, images: np.ndarray, labels: np.ndarray) -> Any:
    """Return the parameters after an epoch."""
    state = OPTIMIZER.init(params)
    order = np.random.default_rng().permutation(len(labels))
    for rows in np.array_split(order, max(1, len(labels) // 16)):
        params, state = step(params, state, images[rows] / 16, labels[rows])
    return params


def predict(params: Any, images: np.ndarray) -> np.ndarray:
    """Return the labels of images."""
    return np.asarray(NETWORK.apply(params, images / 16).argmax(axis=1))
