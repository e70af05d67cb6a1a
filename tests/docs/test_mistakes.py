"""docs/mistakes.md: what is typed is answered as the page says."""

import re

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.server import ServerAppComponents, ServerConfig
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping

from fedmedian import Adam, Gaussian, Majority
from fedmedian.clients import InProcessGrid, Policy, perturb, perturb_with
from fedmedian.strategies import MedianSGD, RunFailedError, SignSGD, legacy
from tests.tools.places import DOCS

PAGE = DOCS / "mistakes.md"
ROWS = re.findall(r"^\| (.*?) \| (\w+Error): (.*) \|$", PAGE.read_text(), re.MULTILINE)
TYPED = [row for row in ROWS if row[0].startswith("`")]
ENDS = {done: answer for done, error, answer in ROWS if error == "RunFailedError"}
ARRAYS = ArrayRecord({"x": Array(np.zeros(3, np.float32))})


def run_by_older_server(strategy):
    config = ServerConfig(num_rounds=1)
    server = ServerApp(
        server_fn=lambda context: ServerAppComponents(strategy=strategy, config=config)
    )
    server(InProcessGrid(ClientApp(), 3), Context(1, 1, {}, RecordDict(), {}))


NAMES = {
    "Adam": Adam,
    "ArrayRecord": ArrayRecord,
    "ClientApp": ClientApp,
    "DifferentialPrivacyServerSideFixedClipping": DifferentialPrivacyServerSideFixedClipping,
    "Gaussian": Gaussian,
    "Majority": Majority,
    "MedianSGD": MedianSGD,
    "SignSGD": SignSGD,
    "arrays": ARRAYS,
    "grid": InProcessGrid(ClientApp(), 3),
    "legacy": legacy,
    "model": {},
    "perturb": perturb,
    "run_by_older_server": run_by_older_server,
    "train": print,
}


def matches(answer, error):
    return re.fullmatch(re.escape(answer).replace("…", ".*"), str(error))


def test_the_page_has_mistakes():
    assert len(TYPED) == 30


@pytest.mark.parametrize(("typed", "error", "answer"), TYPED, ids=[typed for typed, _, _ in TYPED])
def test_what_is_typed_is_answered_as_the_page_says(typed, error, answer):
    (code,) = re.findall("^`(.*?)`", typed)
    with pytest.raises((TypeError, ValueError, AttributeError, ImportError)) as refused:
        exec(code, dict(NAMES))
    assert type(refused.value).__name__ == error
    assert matches(answer, refused.value)


WITHOUT_INSTRUCTION = (
    "clients without the mod, with `SignSGD()`, or a subclass that replaces the config of messages "
    "that `super().configure_train` returned"
)


def app_of(*mods, examples="num-examples"):
    app = ClientApp(mods=[*mods])

    @app.train()
    def train(message, context):
        metrics = MetricRecord({examples: 3})
        content = {"arrays": message.content["arrays"], "metrics": metrics}
        return Message(RecordDict(content), reply_to=message)

    return app


def app_without_return():
    app = ClientApp(mods=[perturb])
    app.train()(lambda message, context: None)
    return app


def newer_server(message, context, call_next):
    """Pass on the message that a server with a newer wire format would have sent."""
    message.content["config"]["fedmedian.instruction"] += 1
    return call_next(message, context)


@pytest.mark.parametrize(
    ("done", "app"),
    [
        (WITHOUT_INSTRUCTION, app_of()),
        ("clients whose function ends without `return Message(…)`", app_without_return()),
        (
            "clients with another release of fedmedian than the server's",
            app_of(newer_server, perturb),
        ),
        ("clients that all fail", ClientApp(mods=[perturb])),
        (
            "clients with `mods=[perturb, perturb_with(policy)]`",
            app_of(perturb, perturb_with(Policy(clip=1.0, noise_scale=1.0, rounds=3))),
        ),
        ("clients with `mods=[perturb_with]`", app_of(perturb_with)),
        ("clients with `mods=[perturb, secaggplus_mod]`", app_of(perturb, secaggplus_mod)),
        ("clients that report `num_examples`", app_of(perturb, examples="num_examples")),
        (
            'clients that read `message.content["arrays"]`, and `numpy_clients=True`',
            app_of(perturb),
        ),
    ],
)
def test_a_run_ends_with_the_answer_that_the_page_says(done, app):
    strategy = SignSGD(fraction_evaluate=0.0, numpy_clients="numpy_clients=True" in done)
    with pytest.raises(RunFailedError) as ended:
        strategy.start(InProcessGrid(app, 3), ARRAYS, 3)
    assert matches(ENDS[done], ended.value)


def test_so_does_one_whose_subclass_replaces_configs():
    class WithRates(SignSGD):
        def configure_train(self, *arguments):
            for message in super().configure_train(*arguments):
                message.content["config"] = ConfigRecord({"lr": 0.1})
                yield message

    strategy = WithRates(fraction_evaluate=0.0)
    with pytest.raises(RunFailedError) as ended:
        strategy.start(InProcessGrid(app_of(perturb), 3), ARRAYS, 3)
    assert matches(ENDS[WITHOUT_INSTRUCTION], ended.value)
