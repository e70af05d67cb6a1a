"""The mod beside Flower's own: first of all, it works; anywhere else it says what is wrong."""

import re

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import (
    LocalDpMod,
    adaptiveclipping_mod,
    arrays_size_mod,
    fixedclipping_mod,
    message_size_mod,
)

from fedmedian import CodedSteps, Gaussian, Majority, SecureSum
from fedmedian.clients import InProcessGrid, perturb
from fedmedian.strategies import MedianSGD, SignSGD

CLIPPING_NORM = 0.5
ONE_EXAMPLE = MetricRecord({"num-examples": 1})
KEY = "clipping_norm"  # where Flower's strategies put it
MODEL = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float32)}
CHANGES_UPDATES = {
    "fixed clipping": fixedclipping_mod,
    "adaptive clipping": adaptiveclipping_mod,
    "local DP": LocalDpMod(CLIPPING_NORM, sensitivity=1e-9, epsilon=1.0, delta=0.1),
}

every_mod_that_changes_updates = pytest.mark.parametrize(
    "mod", CHANGES_UPDATES.values(), ids=CHANGES_UPDATES
)


@pytest.fixture
def run(make_app, as_record, as_arrays):
    def run(mods, strategy, model=MODEL):
        def train(model, _):
            return {name: array - 10 for name, array in model.items()}, {"num-examples": 1}

        config = ConfigRecord({KEY: CLIPPING_NORM})
        grid = InProcessGrid(make_app(train, mods), 3)
        result = strategy.start(grid, as_record(model), 1, train_config=config)
        return as_arrays(result.arrays), result.train_metrics_clientapp[1]

    return run


def blames_the_order(text):
    """The log says that `perturb` is to be the first of the mods."""
    return re.search(r"perturb .*first.* mods", text) is not None


@every_mod_that_changes_updates
def test_a_mod_after_perturb_changes_the_update_before_it_is_perturbed(run, mod):
    model, report = run([perturb, mod], MedianSGD(None))
    assert report["replies-accepted"] == 3
    moved = np.concatenate([array.ravel() for array in model.values()])
    # Local DP's noise has a scale of 2e-9: no chance of 10^-3 of the norm in 10^6 runs.
    assert np.linalg.norm(moved) == pytest.approx(CLIPPING_NORM, rel=1e-3)
    assert (moved < 0).all()


@every_mod_that_changes_updates
def test_a_mod_for_training_alone_leaves_evaluation_alone(mod, as_record):
    app = ClientApp(mods=[perturb])

    @app.train(mods=[mod])
    def train(message, context):
        arrays = {name: array.numpy() - 10 for name, array in message.content["arrays"].items()}
        metrics = MetricRecord({"num-examples": 1})
        return Message(
            RecordDict({"arrays": as_record(arrays), "metrics": metrics}), reply_to=message
        )

    @app.evaluate()
    def evaluate(message, context):
        metrics = MetricRecord({"num-examples": 1, "accuracy": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    config = ConfigRecord({KEY: CLIPPING_NORM})
    grid = InProcessGrid(app, 3)
    result = SignSGD().start(grid, as_record(MODEL), 1, train_config=config)
    assert result.train_metrics_clientapp[1]["replies-accepted"] == 3
    assert result.evaluate_metrics_clientapp[1]["accuracy"] == 0.5


@every_mod_that_changes_updates
def test_a_mod_before_perturb_that_changes_updates_is_refused_with_the_reason(run, caplog, mod):
    model, report = run([mod, perturb], SignSGD(Gaussian(0.1)))
    assert not model
    assert report["replies-rejected"] == 3
    assert blames_the_order(caplog.text)


@pytest.mark.parametrize("names", [["0"], ["0", "1"]])
def test_the_order_of_mods_is_blamed_whatever_the_models_arrays_are_called(run, caplog, names):
    model = {name: np.zeros(8, np.float32) for name in names}
    unmoved, _ = run([fixedclipping_mod, perturb], MedianSGD(Gaussian(0.1)), model)
    assert not unmoved
    assert blames_the_order(caplog.text)


def test_a_right_order_is_not_blamed_for_what_another_mod_misses(make_app, as_record, caplog):
    grid = InProcessGrid(make_app(lambda model, _: (model, {}), [perturb, fixedclipping_mod]), 3)
    SignSGD(max_failed_rounds=None).start(grid, as_record(MODEL), 1)  # without a clipping norm
    assert "requires the key 'clipping_norm'" in caplog.text
    assert not blames_the_order(caplog.text)


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_mods_that_only_look_may_stand_on_either_side_of_perturb(run, caplog, first):
    caplog.set_level("INFO")
    look = [message_size_mod, arrays_size_mod]
    mods = [*look, perturb] if first else [perturb, *look]
    _, report = run(mods, SignSGD(None, Majority(), 0.1))
    assert report["replies-accepted"] == 3
    # Before it the mod sees what is sent, two bytes of signs; after it what the app has trained.
    assert ("'elements': 2," in caplog.text) == first


def test_with_coded_steps_perturb_must_be_listed_for_evaluation_too(as_record, caplog):
    app = ClientApp()

    @app.train(mods=[perturb])
    def train(message, context):
        content = {"arrays": message.content["arrays"], "metrics": ONE_EXAMPLE}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        assert "a" in message.content["arrays"]
        return Message(RecordDict({"metrics": ONE_EXAMPLE}), reply_to=message)

    for downlink in (None, CodedSteps()):
        assert "list it in ClientApp(mods=[perturb])" not in caplog.text
        SignSGD(downlink=downlink).start(InProcessGrid(app, 3), as_record(MODEL), 2)
    assert caplog.text.count("list it in ClientApp(mods=[perturb])") == 1


@pytest.mark.parametrize(
    "options",
    [{"downlink": CodedSteps()}, {"secure": SecureSum(), "weighted": False}, {}],
    ids=["coded steps", "secure sums", "integers only"],
)
def test_mods_that_measure_messages_take_whatever_is_sent(options, make_app, as_record):
    """Flower's refuse empty bytes."""
    model = MODEL if options else {"0": np.arange(3)}
    app = make_app(lambda own, _: (own, {"num-examples": 1}), [message_size_mod, perturb])
    result = SignSGD(**options).start(InProcessGrid(app, 5), as_record(model), 3)
    reports = result.train_metrics_clientapp.values()
    assert [report["replies-accepted"] for report in reports] == [5, 5, 5]
    assert [*result.evaluate_metrics_clientapp] == [1, 2, 3]
