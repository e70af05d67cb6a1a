"""A client's memory between rounds, in its context's state."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict

from fedmedian.clients.memory import recall, remember

TEXT = np.frombuffer(b"seen", dtype=np.uint8)
BEYOND_FLOAT32 = 2**24 + 1


@pytest.fixture
def context():
    return Context(1, 11, {"partition-id": 3}, RecordDict(), {})


def test_a_client_remembers_nothing_at_first_and_keeps_no_empty_memory(context):
    assert recall(context) == {}
    remember(context, {})
    assert list(context.state) == []


def test_memory_comes_back_by_step_and_name_each_array_in_its_own_dtype(context):
    memory = {
        "momentum": {
            "m": np.array([[1.5, -2.0]], np.float32),
            "last-question": np.array([BEYOND_FLOAT32], np.int64),
        },
        "of-ones-own": {"text": TEXT, "sum": np.array(1 + 1e-15)},
    }
    remember(context, memory)
    recalled = recall(context)
    assert {step: list(arrays) for step, arrays in recalled.items()} == {
        "momentum": ["m", "last-question"],
        "of-ones-own": ["text", "sum"],
    }
    for step, arrays in memory.items():
        for name, array in arrays.items():
            assert recalled[step][name].dtype == array.dtype
            np.testing.assert_array_equal(recalled[step][name], array, strict=True)


def test_a_recalled_array_may_be_written_to_without_changing_the_memory(context):
    remember(context, {"momentum": {"m": np.ones(2, np.float32)}})
    recall(context)["momentum"]["m"][:] = 7
    assert recall(context)["momentum"]["m"].tolist() == [1, 1]


def test_a_step_remembers_what_it_kept_last_and_nothing_older(context):
    remember(context, {"momentum": {"m": np.zeros(2), "old": np.ones(1)}, "other": {"x": TEXT}})
    remember(context, {"momentum": {"m": np.ones(2)}})
    recalled = recall(context)
    assert {name: array.tolist() for name, array in recalled["momentum"].items()} == {"m": [1, 1]}
    assert recalled["other"]["x"].tobytes() == b"seen"


def test_the_apps_own_state_is_left_alone_and_is_no_memory(context):
    context.state["visits"] = ConfigRecord({"count": 1})
    context.state["best"] = ArrayRecord({"m": Array(np.full(2, 9.0))})
    remember(context, {"momentum": {"m": np.ones(2)}})
    assert dict(context.state["visits"]) == {"count": 1}
    assert context.state["best"]["m"].numpy().tolist() == [9, 9]
    assert [arrays["m"].tolist() for arrays in recall(context).values()] == [[1, 1]]
