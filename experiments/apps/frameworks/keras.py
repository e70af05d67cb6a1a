"""A network of Keras, on TensorFlow."""

import keras
import numpy as np
from flwr.app import ArrayRecord


def create() -> keras.Model:
    """Return the initial model."""
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(64, activation="relu")
    layers = [keras.Input((64,)), keras.layers.Rescaling(1 / 16), hidden, keras.layers.Dense(10)]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.SGD(0.3), loss=loss)
    return model


def to_record(model: keras.Model) -> ArrayRecord:
    """Return what is sent."""
    return ArrayRecord(model.get_weights())


def load(model: keras.Model, record: ArrayRecord) -> keras.Model:
    """Return the model with what was received."""
    model.set_weights(record.to_numpy_ndarrays())
    return model


def fit(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> keras.Model:
    """Return the model after an epoch."""
    model.fit(images, labels, batch_size=16, verbose=0)
    return model


def predict(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Return the labels of images."""
    return model.predict_on_batch(images).argmax(axis=1)
