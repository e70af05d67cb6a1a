"""quickstart_torch: A Flower / PyTorch app."""

from functools import cache

import numpy as np
import torch
from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """A small CNN with batch normalization, for images of 28x28 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.bn2 = nn.BatchNorm2d(16)
        self.fc1 = nn.Linear(16 * 4 * 4, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of images."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.relu(self.fc1(x.flatten(start_dim=1)))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


partitioner = None  # Made once


def load_partition(partition_id: int, num_partitions: int) -> Dataset:
    """Return one client's share of scikit-learn's digits, enlarged to 28x28 pixels."""
    global partitioner
    if partitioner is None:
        images, labels = load_digits(return_X_y=True)
        images = np.kron(images.reshape(-1, 8, 8), np.ones((3, 3))) / 16
        images = np.pad(images, ((0, 0), (2, 2), (2, 2))).reshape(-1, 1, 28, 28)
        partitioner = DirichletPartitioner(num_partitions, partition_by="label", alpha=1.0)
        partitioner.dataset = Dataset.from_dict({"img": images.astype(np.float32), "label": labels})
    return partitioner.load_partition(partition_id)


@cache
def load_data(
    partition_id: int, num_partitions: int, batch_size: int
) -> tuple[DataLoader, DataLoader]:
    """Load one client's data: 80% to train on, 20% to test on."""
    partition = load_partition(partition_id, num_partitions)
    split = partition.train_test_split(test_size=0.2, seed=42).with_format("torch")
    trainset, testset = (TensorDataset(part["img"][:], part["label"][:]) for part in split.values())
    trainloader = DataLoader(trainset, batch_size=batch_size, shuffle=True)
    testloader = DataLoader(testset, batch_size=batch_size)
    return trainloader, testloader


def train(net: Net, trainloader: DataLoader, epochs: int, lr: float) -> float:
    """Train the model on the training set."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    running_loss = 0.0
    for _ in range(epochs):
        for images, labels in trainloader:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
    return running_loss / (epochs * len(trainloader))


def test(net: Net, testloader: DataLoader) -> tuple[float, float]:
    """Return the model's loss and accuracy on the test set."""
    net.eval()
    correct, loss = 0, 0.0
    with torch.no_grad():
        for images, labels in testloader:
            outputs = net(images)
            loss += F.cross_entropy(outputs, labels, reduction="sum").item()
            correct += (outputs.argmax(dim=1) == labels).sum().item()
    num_examples = len(testloader.dataset)
    return loss / num_examples, correct / num_examples
