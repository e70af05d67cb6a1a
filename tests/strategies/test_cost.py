"""What a client sends costs the server what an honest reply costs, and its own bytes once."""

import gc
import tracemalloc

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord
from flwr.common import Code
from flwr.common.constant import ErrorCode

from fedmedian import Clip, Gaussian, records
from fedmedian.clients import perturb
from fedmedian.privacy import PrivacyBudget
from fedmedian.steps.payload import Payload
from fedmedian.wire.scalars import PREFIX

MODEL = {str(number): np.linspace(-1, 1, 50, dtype=np.float32) + number for number in range(4)}
NUM_CLIENTS = 4
BAD = 1
SIZE = 800_000
MARGIN = 200_000


def train(model, partition):
    trained = {name: array + np.float32(partition) for name, array in model.items()}
    return trained, {"num-examples": 1, "loss": 1.0}


def evaluate(model, partition):
    return {"num-examples": 1, "loss": 1.0}


def scalar(key, value):
    """Put another value in the place of one of a payload's scalars."""

    def change(reply):
        for record in reply.content.config_records.values():
            if Payload.is_in(record):
                record[f"{PREFIX}{key}"] = value

    return change


def metrics(**entries):
    def change(reply):
        for name, record in reply.content.items():
            if name.endswith("metrics"):
                for key, value in entries.items():
                    record[key] = value

    return change


def arrays(number, name="{}", data=None):
    """Send many arrays, or arrays of long names, or of junk."""

    def change(reply):
        (record,) = reply.content.array_records.values()
        first = next(iter(record.values()))
        data_of_each = first.data if data is None else data
        record.clear()
        for index in range(number):
            record[name.format(index)] = Array(first.dtype, first.shape, first.stype, data_of_each)

    return change


def status(message):
    def change(reply):
        for name in reply.content:
            if name.endswith("status"):
                failed = Code.FIT_NOT_IMPLEMENTED.value
                reply.content[name] = ConfigRecord({"code": failed, "message": message})

    return change


def error(reason):
    def change(reply):
        code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        reply.__dict__["_error"] = Error(code, reason)
        reply.__dict__["_content"] = None

    return change


def records_of(kind, number, **entries):
    def change(reply):
        for index in range(number):
            reply.content[f"r{index}"] = kind(entries)

    return change


EMOJI = "\U0001f600" * (SIZE // 4)
SURROGATES = "\ud800" * (SIZE // 2)
EMPTY = np.zeros(0, np.float32)

HOSTILE = {
    "an error of a long reason": error("x" * SIZE),
    "an error of a long reason of wide letters": error(EMOJI),
    "a status of a long text": status("x" * SIZE),
    "a status of a text that cannot be encoded": status(SURROGATES),
    **{
        f"{what} as {key}": scalar(key, value)
        for key in ("encoding", "reports.measure", "round")
        for what, value in {
            "a long text": "x" * SIZE,
            "a text that cannot be encoded": SURROGATES,
            "long bytes": b"\0" * SIZE,
            "a long list": [1.5] * (SIZE // 8),
        }.items()
    },
    "a report of a step of a long name": scalar("reports." + "x" * SIZE, b""),
    "a long unknown key": scalar("x" * SIZE, 1),
    "many unknown keys": lambda reply: [scalar(f"{i:08}", 1)(reply) for i in range(SIZE // 80)],
    "many arrays": arrays(SIZE // 400),
    "an array of a long name": arrays(1, "x" * SIZE, b"junk"),
    "arrays of the model's number and long names": arrays(4, "{}" + "x" * (SIZE // 4)),
    "an array of junk": arrays(1, data=b"\x93NUMPY" + b"(" * SIZE),
    "a metric of a long name": metrics(**{"x" * SIZE: 2.0}),
    "a metric of a long name that cannot be printed": metrics(**{"\x01" * SIZE: 2.0}),
    "a metric of a long list": metrics(loss=[1.0] * (SIZE // 8)),
    "many metrics": metrics(**{f"m{i}": 2.0 for i in range(SIZE // 80)}),
    "examples of a long list": metrics(
        **dict.fromkeys(("num-examples", "num_examples"), [1.0] * (SIZE // 8))
    ),
    "many metric records": records_of(MetricRecord, SIZE // 800, loss=1.0),
    "many config records": records_of(ConfigRecord, SIZE // 800, text="x"),
    "many array records": lambda reply: [
        reply.content.__setitem__(f"r{i}", ArrayRecord()) for i in range(SIZE // 800)
    ],
}


@pytest.fixture(scope="module")
def what_is_there_stays():
    """Let the garbage collector leave alone what other modules and tests hold: it is a lot."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def cost(run, what_is_there_stays):
    """Plays a round; returns the most memory that hearing it took, and the arrays it read."""
    known = {}

    def cost(api, name=None, message_type="train", **options):
        key = api.name, name, message_type, *options
        if key not in known:
            known[key] = measure(api, HOSTILE.get(name), message_type, options)
        return known[key]

    def measure(api, change, message_type, options):
        peaks, read, parse = [], [], records.read_npy

        def count(data):
            read.append(len(data))
            return parse(data)

        def spoil(message, context, call_next):
            reply = call_next(message, context)
            own = context.node_config["partition-id"] == BAD
            if change and own and message.metadata.message_type == message_type:
                change(reply)
            return reply

        def measured(*arguments):
            gc.collect()
            read.clear()
            tracemalloc.start()
            try:
                return method(*arguments)
            finally:
                peaks.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()

        strategy = api.make("SignSGD", **options)
        phase = "fit" if message_type == "train" and api.name == "older API" else message_type
        method = getattr(strategy, f"aggregate_{phase}")
        setattr(strategy, f"aggregate_{phase}", measured)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(records, "read_npy", count)
            mods = (spoil, perturb)
            outcome = run(strategy, train, MODEL, NUM_CLIENTS, evaluate=evaluate, mods=mods)
        assert outcome.reports[1]["replies-accepted"] >= NUM_CLIENTS - 1
        return max(peaks), len(read)

    return cost


def training():
    """Yield who can send what: only NumPyClients have a status, and arrays of their own form."""
    for name in HOSTILE:
        if "status" not in name:
            yield "message_api", name
        if "status" in name or "array" in name:
            yield "numpy_clients", name
        yield "older_api", name


@pytest.mark.parametrize(("client", "name"), [*training()])
def test_a_hostile_reply_to_training_costs_its_bytes_once(client, name, request, cost):
    api = request.getfixturevalue(client)
    (honest, parsed), (hostile, also_parsed) = cost(api), cost(api, name)
    assert hostile < honest + 1.2 * SIZE + MARGIN
    assert also_parsed <= parsed + len(MODEL)


@pytest.mark.parametrize("name", [name for name in HOSTILE if "metric" in name])
def test_metrics_cost_their_bytes_once_where_a_budget_warns_of_them(name, api, cost):
    options = {
        "noise": Gaussian(50.0),
        "client_steps": [Clip(1.0)],
        "weighted": False,
        "fraction_evaluate": 0.0,
        "privacy_budget": PrivacyBudget(epsilon=8.0, delta=1e-6),
        "seed": None,
    }
    (honest, _), (hostile, _) = (cost(api, one, **options) for one in (None, name))
    assert hostile < honest + 1.2 * SIZE + MARGIN


@pytest.mark.parametrize("name", [name for name in HOSTILE if name.split()[-2] == "long"])
def test_a_hostile_reply_to_evaluation_costs_its_bytes_once(name, api, cost):
    (honest, _), (hostile, _) = (cost(api, one, "evaluate") for one in (None, name))
    assert hostile < honest + 1.2 * SIZE + MARGIN
