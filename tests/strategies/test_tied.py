"""Tied weights: two arrays that are one in the clients' model stay equal bit for bit."""

import numpy as np
import pytest

from fedmedian import Adam, Majority
from fedmedian.clients import perturb
from fedmedian.model.blocks import Blocks
from fedmedian.model.layout import Layout
from fedmedian.rounds.state import RunState
from fedmedian.rules.trust import num_tolerated
from fedmedian.steps.encodings import Vector
from fedmedian.steps.instruction import Instruction, perturb_update
from fedmedian.steps.payload import Payload
from fedmedian.steps.tied import Tied, average
from fedmedian.strategies import SignSGD
from fedmedian.wire.scalars import PREFIX, WireError

RNG = np.random.default_rng(0)
EMBEDDING = RNG.normal(size=(30, 20)).astype(np.float32)
MODEL = {
    "0": EMBEDDING,
    "1": RNG.normal(size=(20, 20)).astype(np.float32),
    "2": EMBEDDING.copy(),
    "3": np.zeros(20, np.float32),
    "4": np.zeros(20, np.float32),
}
NUM_CLIENTS = 5


def updates_of(partition, tied):
    rng = np.random.default_rng(partition)
    updates = {name: rng.normal(1, 0.1, array.shape) for name, array in MODEL.items()}
    return {**updates, "2": updates["0"]} if tied else updates


def trainer(untied=()):
    def train(model, partition):
        updates = updates_of(partition, partition not in untied)
        after = {name: (model[name] + updates[name]).astype(np.float32) for name in model}
        return after, {"num-examples": 1}

    return train


def run_tied(run, strategy, **options):
    return run(strategy, trainer(**options), MODEL, NUM_CLIENTS, 3, evaluate_config=None).model


@pytest.mark.parametrize(
    ("make", "options"),
    [
        ("SignSGD", {}),
        ("SignSGD", {"aggregator": Majority(), "learning_rate": 0.1}),
        ("SignSGD", {"optimizer": Adam()}),
        ("MedianSGD", {}),
        ("MedianSGD", {"noise_at": "server"}),
    ],
    ids=["counts", "majority", "counts with Adam", "median", "median with noise at the server"],
)
def test_tied_arrays_stay_tied(make, options, any_client, run):
    model = run_tied(run, any_client.make(make, **options))
    np.testing.assert_array_equal(model["0"], model["2"])
    assert not np.array_equal(model["0"], MODEL["0"])


def test_arrays_that_are_only_born_equal_go_their_own_ways(api, run):
    model = run_tied(run, api.make("MedianSGD", noise=None), untied=range(NUM_CLIENTS))
    for name in ("0", "2"):
        by = np.median([updates_of(i, False)[name] for i in range(NUM_CLIENTS)], axis=0)
        # The rotation draws the median towards the mean.
        assert np.abs(model[name] - MODEL[name] - 3 * by).mean() < 0.1
    assert not np.array_equal(model["0"], model["2"])


def test_one_client_of_five_cannot_part_what_is_tied(api, run):
    model = run_tied(run, api.make("SignSGD"), untied=[2])
    np.testing.assert_array_equal(model["0"], model["2"])


def test_two_clients_of_five_can(api, run):
    model = run_tied(run, api.make("SignSGD"), untied=[2, 3])
    assert not np.array_equal(model["0"], model["2"])


@pytest.mark.parametrize("clients", [2, 3, 4, 5, 6, 10])
def test_no_t_clients_tie_what_the_others_train_apart(clients, message_api, run, spoiling):
    def claim_all(content):
        content["fedmedian"][PREFIX + "reports.tied"] = np.float32([1]).tobytes()

    mods = [spoiling(claim_all, i, only=None) for i in range(num_tolerated(clients))]
    strategy = message_api.make("SignSGD", min_train_nodes=1, min_available_nodes=1)
    everyone = trainer(untied=range(clients))
    model = run(strategy, everyone, MODEL, clients, 3, mods=[*mods, perturb]).model
    assert not np.array_equal(model["0"], model["2"])


class TestWhatMayBeTied:
    def test_arrays_that_are_equal_bit_for_bit_are_found_in_groups(self):
        layout = Layout.of_model({**MODEL, "5": EMBEDDING, "steps": np.array(3)})
        assert layout.tied({**MODEL, "5": EMBEDDING}) == ((0, 2, 5),)

    def test_arrays_of_one_value_each_or_of_another_shape_are_not(self):
        model = {
            "ones": np.ones(9),
            "more ones": np.ones(9),
            "flat": EMBEDDING.ravel(),
            "square": EMBEDDING,
            "half": EMBEDDING.astype(np.float16),
            "empty": np.zeros((0, 3)),
            "another": np.zeros((0, 3)),
        }
        assert Layout.of_model(model).tied(model) == ()

    def test_arrays_that_begin_alike_and_differ_later_are_not(self):
        other = EMBEDDING.copy()
        other[-1, -1] += 1
        model = {"a": EMBEDDING, "b": other}
        assert Layout.of_model(model).tied(model) == ()

    def test_the_mean_of_a_groups_directions_is_each_ones(self):
        model = {"a": EMBEDDING, "b": np.ones(3), "c": EMBEDDING}
        direction = np.arange(1203, dtype=np.float32)
        average(Layout.of_model(model).blocks.split(direction), [(0, 2)])
        np.testing.assert_array_equal(direction[:600], np.arange(600) + 603 / 2)
        np.testing.assert_array_equal(direction[603:], np.arange(600) + 603 / 2)
        np.testing.assert_array_equal(direction[600:603], [600, 601, 602])


class TestOnTheWire:
    def test_groups_travel_to_clients_and_what_is_still_tied_travels_back(self):
        asked = Instruction((Tied(((0, 2), (1, 3))), Vector()), 1, None, ())
        read = Instruction.decode(asked.encode())
        assert read.steps == asked.steps
        layout, rng = Layout.of_model(dict.fromkeys("abcd", np.zeros(2))), np.random.default_rng(0)
        payload = perturb_update(read, layout, np.float32([1, 2, 3, 4, 1, 2, 3, 5]), {}, rng)
        answer = Payload.decode(*payload.encode())
        asked.require_answer(answer, layout)
        assert answer.reports["tied"].tolist() == [1, 0]

    @pytest.mark.parametrize(
        ("reported", "named"),
        [
            (None, "missing"),
            (np.float32([1]), r"\(2,\)"),
            (np.float32([1, np.nan]), "0 or 1"),
            (np.float32([0.5, 1]), "0 or 1"),
        ],
    )
    def test_a_malformed_report_is_refused(self, reported, named):
        with pytest.raises(WireError, match=f"tied arrays .*{named}"):
            Tied(((0, 1), (2, 3))).check(reported, Blocks((1, 1, 1, 1)))

    def test_a_model_without_tied_arrays_is_not_asked(self):
        model = {"0": EMBEDDING, "1": np.ones(3)}
        question = SignSGD().recipe.ask(RunState(), 1, model)
        assert question.instruction.find(Tied) is None

    @pytest.mark.parametrize("text", ["3", "[3]", "[[]]", "[[-1, 2]]", "[[true, 2]]", "[[", "{}"])
    def test_a_malformed_group_is_refused(self, text):
        asked = Instruction((Tied(((0, 1),)), Vector()), 1, None, ())
        with pytest.raises(WireError, match=r"'tied'.*groups must be"):
            Instruction.decode({**asked.encode(), PREFIX + "tied.groups": text})

    def test_groups_of_arrays_that_the_model_has_not_are_refused(self):
        with pytest.raises(WireError, match="groups must be arrays of the model"):
            Tied(((0, 3),)).blocks(Blocks((1, 1)))
