"""MNIST and CIFAR-10, read through Flower Datasets from the Hugging Face Hub or a copy of it.

The environment variables ``MNIST`` and ``CIFAR_10`` name folders with copies, as this makes one::

    hf download ylecun/mnist --repo-type dataset --local-dir mnist
"""

import os

import torch
from torch import Tensor

HUB = {"mnist": ("ylecun/mnist", "image"), "cifar-10": ("uoft-cs/cifar10", "img")}
"""Each data set's name on the Hub, and its column of images."""


def load_split(dataset: str, split: str, examples: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the images and labels of a data set's split.

    Parameters
    ----------
    dataset : str
        One of `HUB`.
    split : str
        "train" or "test".
    examples : int, optional
        The number of examples, the first; all if not given.

    Returns
    -------
    images : (n, channels, side, side) float32
        In [0, 1].
    labels : (n,) int64
        The classes.

    Raises
    ------
    SystemExit
        If the data set is not to be had; it says how to make a copy.
    """
    # Here, for it takes a second that studies on digits do without.
    from datasets import disable_progress_bars
    from flwr_datasets import FederatedDataset

    name, column = HUB[dataset]
    variable = dataset.upper().replace("-", "_")
    source = os.environ.get(variable, name)
    disable_progress_bars()
    try:
        rows = FederatedDataset(dataset=source, partitioners={}, shuffle=False).load_split(split)
        rows = rows.select(range(min(len(rows), examples or len(rows)))).with_format("numpy")[:]
        images, labels = (torch.from_numpy(rows[key]) for key in (column, "label"))
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise SystemExit(
            f"{dataset} is not in {source} ({reason}): where there is a network, hf download "
            f"{name} --repo-type dataset --local-dir FOLDER, and set {variable} to that folder"
        ) from error
    scaled = images.float() / 255
    return scaled.unsqueeze(1) if scaled.ndim == 3 else scaled.permute(0, 3, 1, 2), labels.long()
