"""What all tests share: a quiet Flower, small apps, the same examples in every run."""

import gc
import logging

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import settings

from fedmedian.clients import perturb
from fedmedian.rules.noise import NOISE_FAMILIES
from fedmedian.steps.base import CLIENT_STEPS

settings.register_profile("fedmedian", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("fedmedian")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Let the garbage collector leave alone what is collected, a million objects that stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def quiet_flower():
    """Keep all of Flower's log for caplog, and off the terminal."""
    logger = logging.getLogger("flwr")
    handlers, logger.handlers = logger.handlers, []
    level = logger.level
    logger.setLevel(logging.DEBUG)  # studies leave it higher
    yield
    logger.handlers = handlers
    logger.setLevel(level)


@pytest.fixture(scope="module")
def registries():
    """Forget the client steps and noise families that a module registers once it is done."""
    with pytest.MonkeyPatch.context() as patch:
        for registry in (CLIENT_STEPS, NOISE_FAMILIES):
            patch.setattr(registry, "_classes", dict(registry._classes))
        yield


@pytest.fixture(scope="module")
def one_thread():
    """Let torch use one thread: small models only wait for each other's."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def to_record(arrays):
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def to_arrays(record):
    return {name: array.numpy() for name, array in record.items()}


@pytest.fixture(scope="session")
def as_record():
    """Turns named numpy arrays into an ArrayRecord."""
    return to_record


@pytest.fixture(scope="session")
def as_arrays():
    """Turns an ArrayRecord into named numpy arrays."""
    return to_arrays


@pytest.fixture(scope="session")
def make_app():
    """Makes a ClientApp of two functions of (model, partition).

    Training returns the trained model and metrics, evaluation metrics.
    """

    def evaluate_by_partition(model, partition):
        return {"num-examples": 2, "loss": float(partition)}

    def make(train, mods=(perturb,), evaluate=evaluate_by_partition):
        app = ClientApp(mods=list(mods))

        @app.train()
        def _train(message, context):
            (record,) = message.content.array_records.values()
            trained, metrics = train(to_arrays(record), context.node_config["partition-id"])
            content = {"arrays": to_record(trained), "metrics": MetricRecord(metrics)}
            return Message(RecordDict(content), reply_to=message)

        @app.evaluate()
        def _evaluate(message, context):
            (record,) = message.content.array_records.values()
            metrics = evaluate(to_arrays(record), context.node_config["partition-id"])
            return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

        return app

    return make
