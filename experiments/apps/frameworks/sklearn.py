"""A linear classifier of scikit-learn."""

import numpy as np
from flwr.app import ArrayRecord
from sklearn.linear_model import SGDClassifier

CLASSES = np.arange(10)


def create() -> SGDClassifier:
    """Return the initial model."""
    model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.1, random_state=0)
    model.classes_, model.coef_, model.intercept_ = CLASSES, np.zeros((10, 64)), np.zeros(10)
    return model


def to_record(model: SGDClassifier) -> ArrayRecord:
    """Return what is sent."""
    return ArrayRecord([model.coef_, model.intercept_])


def load(model: SGDClassifier, record: ArrayRecord) -> SGDClassifier:
    """Return the model with what was received."""
    model.coef_, model.intercept_ = record.to_numpy_ndarrays()
    return model


def fit(model: SGDClassifier, images: np.ndarray, labels: np.ndarray) -> SGDClassifier:
    """Return the model after an epoch."""
    return model.partial_fit(images.astype(float) / 16, labels, classes=CLASSES)


def predict(model: SGDClassifier, images: np.ndarray) -> np.ndarray:
    """Return the labels of images."""
    return model.predict(images / 16)
