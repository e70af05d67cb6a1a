"""The models that can be trained: those that cannot are refused by name, before they are sent."""

import sys
from functools import partial

import numpy as np
import pytest
from flwr.clientapp import ClientApp

from fedmedian import CodedSteps, Gaussian, Momentum
from fedmedian.clients import InProcessGrid
from fedmedian.strategies import Checkpoint
from fedmedian.wire.npy import as_numbers

NUM_CLIENTS = 3

UNTRAINABLE = {
    "strings": np.array(["a", "b"]),
    "bytes": np.array([b"a", b"b"]),
    "structured": np.zeros(2, "f4,i4"),
    "dates": np.zeros(2, "M8[s]"),
    "durations": np.zeros(2, "m8[s]"),
    "complex": np.zeros(2, np.complex64),
    "raw bytes": np.zeros(2, "V3"),
}


@pytest.fixture
def begin(run, as_record):
    """Begins a run on a model that is refused; returns the reason, and the bytes sent till then."""

    def begin(strategy, model):
        grid = InProcessGrid(ClientApp(), NUM_CLIENTS)
        start = (
            partial(strategy.start, grid, as_record(model), 1)
            if hasattr(strategy, "start")
            else partial(run, strategy, ClientApp(), model, NUM_CLIENTS, grid=lambda *_: grid)
        )
        with pytest.raises(ValueError, match=r"^array '[01]' ") as refused:
            start()
        return str(refused.value), grid.bytes_down

    return begin


@pytest.mark.parametrize("array", UNTRAINABLE.values(), ids=UNTRAINABLE)
def test_a_model_that_cannot_be_trained_is_refused_by_name_before_it_is_sent(
    array, any_client, begin
):
    model = {"0": np.zeros(3, np.float32), "1": array}
    reason, bytes_down = begin(any_client.make("SignSGD"), model)
    assert "'1'" in reason
    assert str(array.dtype) in reason
    assert bytes_down == 0


@pytest.fixture(scope="module", params=["float16", "bfloat16"])
def half(request):
    """Each dtype of half precision."""
    if request.param == "float16":
        return np.dtype(np.float16)
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)


@pytest.fixture(scope="module")
def train_half(run, half):
    """Trains a model of half precision that each client moves halfway to 1."""

    def train_half(strategy, num_rounds, **options):
        def train(model, partition):
            wide = {name: as_numbers(array).astype(np.float32) for name, array in model.items()}
            trained = {name: (array - (array - 1) / 2).astype(half) for name, array in wide.items()}
            return trained, {"num-examples": 1}

        start = {"0": np.zeros((40, 50), half), "1": np.full(300, 2, half)}
        outcome = run(strategy, train, start, NUM_CLIENTS, num_rounds, **options)
        return {name: as_numbers(array) for name, array in outcome.model.items()}, outcome

    return train_half


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("SignSGD", {}),
        ("SignSGD", {"noise": Gaussian(0.5), "rotation": None}),
        ("SignSGD", {"exact": ("1",)}),
        ("SignSGD", {"optimizer": Momentum(0.5)}),
        ("SignSGD", {"downlink": CodedSteps()}),
        ("MedianSGD", {}),
        ("MedianSGD", {"noise_at": "server"}),
        ("MedianSGD", {"noise": None, "rotation": None}),
    ],
    ids=[
        "signs",
        "signs of parameters",
        "an exact array",
        "momentum",
        "coded steps",
        "median",
        "noise at the server",
        "median of parameters",
    ],
)
def test_a_model_of_half_precision_is_trained(strategy, options, api, half, train_half):
    model, outcome = train_half(api.make(strategy, **options), 5)
    assert [outcome.reports[n]["replies-accepted"] for n in range(1, 6)] == [NUM_CLIENTS] * 5
    assert [array.shape for array in model.values()] == [(40, 50), (300,)]
    for array in model.values():
        assert array.dtype == half
        assert np.isfinite(array).all()
        # Every round halves the distance to 1, the noise aside.
        assert np.abs(array.astype(np.float64).mean() - 1) < 0.25


def test_a_model_of_half_precision_resumes_from_a_checkpoint(
    any_client, half, train_half, tmp_path
):
    def make(folder):
        checkpoint = Checkpoint(tmp_path / folder)
        return any_client.make("SignSGD", optimizer=Momentum(0.5), checkpoint=checkpoint)

    train_half(make("killed"), 2)
    resumed, _ = train_half(make("killed"), 4)
    expected, _ = train_half(make("whole"), 4)
    for name, array in resumed.items():
        assert array.dtype == half
        assert array.tobytes() == expected[name].tobytes()


def test_bfloat16_without_its_library_is_refused_with_the_remedy(any_client, begin, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    reason, bytes_down = begin(any_client.make("SignSGD"), {"0": np.zeros(3, "V2")})
    assert reason == (
        "array '0' is bfloat16, which needs ml_dtypes: pip install ml_dtypes, or cast to float32"
    )
    assert bytes_down == 0


@pytest.mark.parametrize("make", ["SignSGD", "MedianSGD"])
def test_entries_that_no_client_trains_drift_less_far_if_clients_reset_them(make, message_api, run):
    """Such as pruned weights, in an array that is trained."""
    trained, pruned = slice(0, 20), slice(20, None)
    model = {"0": np.zeros((40, 30), np.float32)}
    model["0"][trained] = 1

    def drift(resets):
        def train(model, partition):
            array = model["0"].copy()
            if resets:
                array[pruned] = 0
            array[trained] *= 0.7 + 0.02 * partition
            return {"0": array}, {"num-examples": 1}

        strategy = message_api.make_trainer(make)
        return np.abs(run(strategy, train, model, 5, 12).model["0"][pruned]).mean()

    assert 0 < drift(resets=True) < 0.5 * drift(resets=False)
