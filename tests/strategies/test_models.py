"""The models that can be trained: those that cannot are refused by name, before they are sent."""

from functools import partial

import numpy as np
import pytest
from flwr.clientapp import ClientApp

from fedmedian import Gaussian
from fedmedian.clients import InProcessGrid

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
        with pytest.raises(ValueError, match="cannot be trained") as refused:
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


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("SignSGD", {}),
        ("SignSGD", {"noise": Gaussian(0.5), "rotation": None}),
        ("MedianSGD", {}),
        ("MedianSGD", {"noise_at": "server"}),
        ("MedianSGD", {"noise": None, "rotation": None}),
    ],
    ids=["signs", "signs of parameters", "median", "noise at the server", "median of parameters"],
)
def test_a_model_of_half_precision_is_trained(strategy, options, any_client, run):
    def train(model, partition):
        trained = {name: array - (array - 1) / 2 for name, array in model.items()}
        return trained, {"num-examples": 1}

    start = {"0": np.zeros((40, 50), np.float16), "1": np.full(300, 2, np.float16)}
    outcome = run(any_client.make(strategy, **options), train, start, NUM_CLIENTS, 5)
    assert [outcome.reports[n]["replies-accepted"] for n in range(1, 6)] == [NUM_CLIENTS] * 5
    for name, array in outcome.model.items():
        assert array.dtype == np.float16
        assert array.shape == start[name].shape
        assert np.isfinite(array).all()
        # Every round halves the distance to 1, the noise aside.
        assert np.abs(array.mean(dtype=np.float64) - 1) < 0.25
