"""The network of PyTorch's app as a LightningModule, trained by a Trainer."""

import logging
import warnings

import lightning
import numpy as np
import torch
from torch.nn import functional as F

from experiments.apps.frameworks.torch import create as create_network
from experiments.apps.frameworks.torch import load, loader, predict, to_record

__all__ = ["create", "fit", "load", "predict", "to_record"]

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Classifier(lightning.LightningModule):
    """A classifier of digits."""

    def __init__(self) -> None:
        super().__init__()
        self.network = create_network()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.network(images)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.SGD(self.parameters(), lr=0.3)


def create() -> Classifier:
    """Return the initial model."""
    return Classifier()


def fit(model: Classifier, images: np.ndarray, labels: np.ndarray) -> Classifier:
    """Return the model after an epoch."""
    with warnings.catch_warnings(action="ignore"):  # of few workers and few batches
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, loader(images, labels))
    return model
