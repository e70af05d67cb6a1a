"""MNIST and CIFAR-10 from copies as the Hugging Face Hub's, which these tests write."""

import contextlib

import numpy as np
import pytest
import torch

from experiments.claims import __main__ as command
from experiments.studies.federation import Setting, load, make_network, split
from experiments.studies.hub import load_split


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """Write to no cache but the test's, and send Flower no telemetry."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("flwr_datasets.federated_dataset.event", lambda *_: None)
    load.cache_clear()
    split.cache_clear()
    yield
    load.cache_clear()
    split.cache_clear()


def write(folder, column, **splits):
    """Write a copy, a Parquet file for each split's images and labels."""
    from datasets import ClassLabel, Dataset, Features, Image

    features = Features({column: Image(), "label": ClassLabel(num_classes=10)})
    for name, (images, labels) in splits.items():
        rows = Dataset.from_dict({column: list(images), "label": labels}, features=features)
        (folder / "data").mkdir(parents=True, exist_ok=True)
        rows.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")


def random_images(seed, *shape):
    images = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return images, [row % 10 for row in range(len(images))]


class TestReading:
    def test_mnist_is_grey_images_of_28_by_28(self, tmp_path, monkeypatch):
        train, test = random_images(0, 30, 28, 28), random_images(1, 10, 28, 28)
        write(tmp_path / "mnist", "image", train=train, test=test)
        monkeypatch.setenv("MNIST", str(tmp_path / "mnist"))
        images, labels, test_images, test_labels = load("mnist", 20)
        np.testing.assert_allclose(images.numpy(), train[0][:20, None] / 255, rtol=1e-6)
        np.testing.assert_allclose(test_images.numpy(), test[0][:, None] / 255, rtol=1e-6)
        assert labels.tolist() == train[1][:20]
        assert test_labels.tolist() == test[1]

    def test_cifar_10_is_colors_of_32_by_32(self, tmp_path, monkeypatch):
        both = random_images(0, 20, 32, 32, 3)
        write(tmp_path / "cifar", "img", train=both, test=both)
        monkeypatch.setenv("CIFAR_10", str(tmp_path / "cifar"))
        images, labels = load_split("cifar-10", "train")
        assert images.dtype == torch.float32
        assert images.shape == (20, 3, 32, 32)
        np.testing.assert_allclose(images[:, 1].numpy(), both[0][..., 1] / 255, rtol=1e-6)
        assert labels.tolist() == both[1]
        assert make_network("resnet-20", "cifar-10", 0)(images).shape == (20, 10)

    def test_its_clients_hold_the_classes_of_their_setting(self, tmp_path, monkeypatch):
        both = random_images(0, 40, 28, 28)
        write(tmp_path / "mnist", "image", train=both, test=both)
        monkeypatch.setenv("MNIST", str(tmp_path / "mnist"))
        rows = split(Setting("mnist", 40, partition="two classes"), 0)
        assert [len({row % 10 for row in mine}) for mine in rows] == [2] * 10


class TestWhatIsNotToBeHad:
    """One line that says what to do."""

    def test_without_a_network(self, monkeypatch):
        monkeypatch.delenv("MNIST", raising=False)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        with pytest.raises(SystemExit) as caught:
            load("mnist", 10)
        line = str(caught.value)
        assert line.startswith("mnist is not in ylecun/mnist (Couldn't reach")
        assert line.endswith("--repo-type dataset --local-dir FOLDER, and set MNIST to that folder")
        assert "\n" not in line

    def test_without_the_folder_that_was_named(self, tmp_path, monkeypatch):
        monkeypatch.setenv("CIFAR_10", str(tmp_path / "none"))
        with pytest.raises(SystemExit, match=r"hf download uoft-cs/cifar10 .* set CIFAR_10 to"):
            load("cifar-10", 10)

    def test_with_a_copy_of_another_data_set(self, tmp_path, monkeypatch):
        both = random_images(0, 10, 8, 8)
        write(tmp_path / "other", "picture", train=both, test=both)
        monkeypatch.setenv("MNIST", str(tmp_path / "other"))
        with pytest.raises(SystemExit, match=r"^mnist is not in .*other \('image'\)"):
            load("mnist", 10)


@pytest.mark.slow
@pytest.mark.usefixtures("jobs_in_this_process")
@pytest.mark.parametrize(
    ("page", "name", "column", "variable", "side"),
    [
        ("paper", "figure2-mnist", "image", "MNIST", 28),
        ("paper", "figure3-cifar-10", "img", "CIFAR_10", 32),
        ("bits", "hole-cifar-10", "img", "CIFAR_10", 32),
    ],
)
def test_a_claim_on_such_data_is_tried_if_it_is_named(
    page, name, column, variable, side, tmp_path, monkeypatch
):
    """On digits, enlarged, where it need not hold and is written down all the same."""
    images, labels, test_images, test_labels = load("digits", 0)

    def enlarged(images):
        large = images[:, 0].kron(torch.full((1, 3, 3), 255.0)).to(torch.uint8)
        margin = (side - 24) // 2
        large = torch.nn.functional.pad(large, (margin,) * 4)
        return (large if side == 28 else large.unsqueeze(3).expand(-1, -1, -1, 3)).numpy()

    write(
        tmp_path / "copy",
        column,
        train=(enlarged(images[:100]), labels[:100].tolist()),
        test=(enlarged(test_images[:50]), test_labels[:50].tolist()),
    )
    monkeypatch.setenv(variable, str(tmp_path / "copy"))
    with contextlib.suppress(SystemExit):
        command.main([name, "--quick", "--into", str(tmp_path)])
    assert (tmp_path / page / f"{name}.png").exists()
    assert f"| `make figures ARGS={name}` " in (tmp_path / f"{page}.md").read_text()
