"""Usable-looking replies of a few hostile clients, and the little that they can do to a run."""

from dataclasses import dataclass, replace
from math import inf, nan

import numpy as np
import pytest

from fedmedian import (
    Adam,
    Adaptive,
    Counts,
    Gaussian,
    Layout,
    Majority,
    Median,
    Momentum,
    Rotation,
    SmoothedMedian,
    TopUp,
)
from fedmedian.model.layout import first_spoiled
from fedmedian.rounds.options import RunOptions
from fedmedian.rounds.protocol import RoundProtocol
from fedmedian.rounds.recipe import Recipe
from fedmedian.rounds.screening import Said
from fedmedian.rules.trust import num_tolerated
from fedmedian.steps.instruction import perturb_update
from fedmedian.wire import scalars

MODEL = {
    "frozen": np.linspace(-1, 1, 300, dtype=np.float32),
    "moving": np.zeros(400, dtype=np.float32),
    "norm.running_var": np.ones(4, dtype=np.float32),
    "steps": np.array(2**60 + 1),
}
MOVING = slice(300, 700)
LARGEST = float(np.finfo(np.float32).max)


USUAL = {"votes": Counts(), "vectors": Median()}


def recipe(kind, noise=None, rotation=None, aggregator=None, **options):
    return Recipe(
        aggregator or USUAL[kind],
        noise,
        weighted=kind == "votes",
        rotation=rotation,
        **{"seed": 1, "learning_rate": 1.0, **options},
    )


def trained(client, model):
    """The model after a client's training: its second array a step towards 1."""
    step = np.float32(0.1) * np.random.default_rng(client).uniform(0.5, 1.5, 400)
    variances = np.random.default_rng(client).uniform(0.5, 2, 4).astype(np.float32)
    changed = {"moving": model["moving"] + step.astype(np.float32), "norm.running_var": variances}
    return {**model, **changed}


def no_lie(payload, scales):
    return payload


def run(
    recipe,
    num_clients,
    rounds=1,
    lie=no_lie,
    liars=1,
    examples=None,
    lied=None,
    stages=None,
    path=None,
):
    """Play rounds; the first `liars` clients change their payload, examples or training.

    `stages` changes what all clients train, by the round; `path` is given each round's model.
    """
    protocol, model, outcomes = RoundProtocol(recipe, RunOptions()), dict(MODEL), []
    for number in range(1, rounds + 1):
        question = protocol.ask(number, model)
        instruction, layout = question.instruction, question.layout
        replies = []
        for client in range(num_clients):
            hostile = client < liars
            after = trained(client, model)
            if stages is not None:
                stages(after, number)
            if hostile and lied is not None:
                after |= lied
            update, rng = layout.difference(model, after), np.random.default_rng((number, client))
            payload = perturb_update(instruction, layout, update, after, rng, {}, client)
            if hostile:
                payload = lie(payload, instruction.sizes_of(payload, question.blocks)[0])
            bodies, scalars = payload.encode()
            weight = examples if hostile and examples is not None else 100.0
            arrays = {str(index): body for index, body in enumerate(bodies)}
            replies.append((client, Said(arrays, scalars, weight, {"round": number}, None)))
        heard = protocol.hear(question, range(num_clients), replies, question.answer)
        outcomes.append(heard)
        model = model if heard.model is None else heard.model
        if path is not None:
            path.append(model)
    return model, outcomes


DEFAULT = (Gaussian(TopUp()), Rotation())
IN_PLACE = (Gaussian(Adaptive(3.0)), None)

on_both_bases = pytest.mark.parametrize(
    "noise_and_rotation", [DEFAULT, IN_PLACE], ids=["random basis", "parameters' basis"]
)
both_kinds = pytest.mark.parametrize("kind", ["votes", "vectors"])


def claim_size(value, block=0):
    """Claim another magnitude of a block, and noise of that size where it was one's own."""

    def lie(payload, scales):
        reports = {step: values.copy() for step, values in payload.reports.items()}
        for step, values in reports.items():
            if step == "measure" or not values[block]:
                values[block] = value
        return replace(payload, reports=reports)

    return lie


class TestSizesThatOneClientClaims:
    @on_both_bases
    @both_kinds
    @pytest.mark.parametrize("clients", [2, 3, 10])
    @pytest.mark.parametrize("value", [scalars.LARGEST, 1e6, 1.0])
    def test_a_frozen_array_stays_frozen_and_no_reply_is_lost(
        self, kind, noise_and_rotation, clients, value
    ):
        lie = claim_size(value)
        model, outcomes = run(recipe(kind, *noise_and_rotation), clients, rounds=4, lie=lie)
        # In round 1 each client chooses its scale, so that the lie is a scale of its own as well.
        accepted = [heard.report["replies-accepted"] for heard in outcomes]
        assert accepted == [clients] * 4 or accepted == [clients, *[clients - 1] * 3]
        np.testing.assert_array_equal(model["frozen"], MODEL["frozen"])
        assert all(np.isfinite(array).all() for array in model.values())

    @both_kinds
    def test_a_moving_array_moves_on_as_far_as_without_the_lie(self, kind):
        for clients in (3, 10):
            honest, _ = run(recipe(kind, *DEFAULT), clients, rounds=6)
            lie = claim_size(scalars.LARGEST, 1)
            model, _ = run(recipe(kind, *DEFAULT), clients, rounds=6, lie=lie)
            assert model["moving"].mean() == pytest.approx(honest["moving"].mean(), rel=0.4)

    def test_a_client_whose_claims_are_out_of_proportion_is_counted(self):
        _, (heard,) = run(recipe("votes", *DEFAULT), 10, lie=claim_size(1e3, 1))
        assert heard.report["replies-out-of-proportion"] == 1
        _, (heard,) = run(recipe("votes", *DEFAULT), 10)
        assert heard.report["replies-out-of-proportion"] == 0

    @pytest.mark.parametrize("value", [0.0, 1e-45, 1e-40, 1e-30])
    def test_whatever_one_of_two_claims_all_that_is_reported_is_finite(self, value):
        def lie(payload, scales):
            reports = {step: np.full_like(own, value) for step, own in payload.reports.items()}
            return replace(payload, reports=reports)

        _, outcomes = run(recipe("votes", *DEFAULT), 2, 3, lie=lie)
        for heard in outcomes:
            values = np.concatenate([np.ravel(value) for value in heard.report.values()])
            assert np.isfinite(values).all()


class TestExamplesThatClientsClaim:
    @pytest.mark.parametrize("clients", [2, 3, 5, 10, 25])
    def test_among_clients_of_as_many_examples_a_claim_of_more_changes_nothing(self, clients):
        lied, liars = {"moving": np.full(400, 1e3, np.float32)}, num_tolerated(clients)
        told = {"lied": lied, "liars": liars}
        honest, _ = run(recipe("votes", *DEFAULT), clients, 3, **told)
        for examples in (400.0, 1e12, 1.7e308):
            model, (heard, *_) = run(
                recipe("votes", *DEFAULT), clients, 3, examples=examples, **told
            )
            # The order in which answers are added up depends on their examples.
            np.testing.assert_allclose(model["moving"], honest["moving"], atol=1e-5)
            assert heard.report["replies-out-of-proportion"] == liars

    @pytest.mark.parametrize(("rounds", "scale_from"), [(1, "server"), (4, "client")])
    def test_examples_and_scale_together_count_for_no_more_than_the_scale_alone(
        self, rounds, scale_from
    ):
        lied = {"moving": np.full(400, -0.1, np.float32)}

        def lie(payload, scales):
            louder = {"top-up": payload.reports["top-up"] * np.float32(100)}
            return replace(payload, reports={**payload.reports, **louder})

        def moved(examples):
            strategy = recipe("votes", *DEFAULT, scale_from=scale_from)
            model, _ = run(strategy, 10, rounds, lie=lie, liars=2, examples=examples, lied=lied)
            return model["moving"].mean()

        assert moved(1e9) == pytest.approx(moved(100.0), rel=1e-4)
        # Two of ten turn no step around, though they count for twice the others.
        assert moved(1e9) > 0


ANY_AGGREGATOR = {
    "counts": lambda: recipe("votes", *DEFAULT),
    "counts in place": lambda: recipe("votes", *IN_PLACE),
    "majority": lambda: recipe("votes", *IN_PLACE, aggregator=Majority(calibrated=True)),
    "median": lambda: recipe("vectors", *DEFAULT),
    "median in place": lambda: recipe("vectors", *IN_PLACE),
    "noise at the server": lambda: recipe("vectors", *DEFAULT, noise_at="server"),
    "smoothed": lambda: recipe("vectors", *DEFAULT, aggregator=SmoothedMedian()),
}


class TestArraysThatStopMoving:
    """An array that clients train and then freeze, as in fine-tuning by stages."""

    @pytest.mark.parametrize("make", ANY_AGGREGATOR.values(), ids=ANY_AGGREGATOR)
    @pytest.mark.parametrize("clients", [2, 5, 10])
    @pytest.mark.parametrize("hostile", [False, True])
    def test_stay_where_they_are_whatever_t_clients_claim(self, make, clients, hostile):
        frozen_at = 3

        def lie(payload, scales):
            magnitudes = np.maximum(payload.reports.get("measure", 0), scales)
            reports = {
                step: magnitudes if step == "measure" else values
                for step, values in payload.reports.items()
            }
            is_vector = payload.encoding == "vector"
            body = payload.body + np.float32(1) if is_vector else ~payload.body
            return replace(payload, reports=reports, body=body)

        def stages(model, number):
            if number <= frozen_at:
                model["frozen"] = model["frozen"] + np.float32(0.1)

        liars = num_tolerated(clients) if hostile else 0
        with_history, path = make(), []
        run(with_history, clients, 7, lie=lie, liars=liars, stages=stages, path=path)
        moving, still = path[:frozen_at], path[frozen_at - 1 :]
        assert all(np.any(one["frozen"] != MODEL["frozen"]) for one in moving[1:])
        for one in still:
            np.testing.assert_array_equal(one["frozen"], still[0]["frozen"])


class TestValuesThatAreFarOut:
    @both_kinds
    def test_a_size_or_entry_above_the_largest_that_is_accepted_costs_that_reply_alone(self, kind):
        above = np.nextafter(np.float32(scalars.LARGEST), np.float32(np.inf))
        _, (heard,) = run(recipe(kind, *DEFAULT), 5, lie=claim_size(above, 1))
        assert heard.report["replies-accepted"] == 4
        assert f"must be from 0 to {scalars.LARGEST:.3g}" in str(heard.reasons[0])
        lied = {"moving": np.full(400, 1e25, np.float32)}
        _, (heard,) = run(recipe("vectors"), 5, lied=lied)
        assert heard.report["replies-accepted"] == 4
        assert "an entry above 1e+12" in str(heard.reasons[0])

    @pytest.mark.parametrize(("clients", "liars"), [(2, 1), (3, 2), (10, 5), (6, 5)])
    @pytest.mark.parametrize("optimizer", [None, Momentum(), Adam()], ids=["none", "m", "adam"])
    @pytest.mark.parametrize("value", [3e38, 1e25, scalars.LARGEST])
    def test_whoever_sends_them_no_round_fails(self, clients, liars, optimizer, value):
        def lie(payload, scales):
            return replace(payload, body=np.full_like(payload.body, value))

        for noise_and_rotation in ((None, None), DEFAULT, IN_PLACE):
            strategy = recipe("vectors", *noise_and_rotation, optimizer=optimizer)
            model, outcomes = run(strategy, clients, 3, lie=lie, liars=liars)
            assert [heard.no_step for heard in outcomes] == [""] * 3
            assert all(np.isfinite(array).all() for array in model.values())

    def test_neither_of_two_clients_counts_for_more_than_four_times_the_other(self):
        honest, _ = run(recipe("vectors", *DEFAULT), 2)
        length = np.linalg.norm(honest["moving"])
        for value in (10.0, 1e6, scalars.LARGEST):

            def lie(payload, scales, value=value):
                return replace(payload, body=np.full_like(payload.body, value))

            model, _ = run(recipe("vectors", *DEFAULT), 2, lie=lie)
            assert np.linalg.norm(model["moving"]) < 5 * length


class TestExactArraysOfOneClient:
    @both_kinds
    @pytest.mark.parametrize("clients", [2, 3, 5, 10])
    @pytest.mark.parametrize("claim", [-scalars.LARGEST, -1e6, 1e6, scalars.LARGEST])
    def test_a_running_variance_stays_positive_and_among_the_others(self, kind, clients, claim):
        lied = {"norm.running_var": np.full(4, claim, np.float32)}
        model, (heard,) = run(recipe(kind, *DEFAULT), clients, lied=lied)
        assert heard.report["replies-accepted"] == clients
        # The others' are between .5 and 2.
        assert np.all(model["norm.running_var"] > 0)
        assert np.all(model["norm.running_var"] < 5)

    @both_kinds
    def test_an_entry_above_the_largest_costs_that_reply_alone_unless_the_model_has_it(self, kind):
        lied = {"norm.running_var": np.full(4, -LARGEST, np.float32)}
        model, (heard,) = run(recipe(kind, *DEFAULT), 5, lied=lied)
        assert heard.report["replies-accepted"] == 4
        assert "an entry above 1e+12" in str(heard.reasons[0])
        assert np.all(model["norm.running_var"] > 0)
        # A mask of the lowest number that float32 has is no lie.
        layout = Layout.of_model({"mask": np.full(3, -LARGEST, np.float32)}, ["mask"])
        kept = {"mask": np.full(3, -LARGEST, np.float32)}
        assert first_spoiled(kept, kept, scalars.LARGEST) is None
        assert layout.exact_bytes == 12

    @both_kinds
    def test_a_large_counter_stays_exact_whatever_one_client_counts(self, kind):
        for lied in ({}, {"steps": np.array(-(2**63))}, {"steps": np.array(2**63 - 1)}):
            model, _ = run(recipe(kind, *DEFAULT), 10, lied=lied)
            assert model["steps"] == 2**60 + 1


@dataclass(frozen=True)
class HugeInThird(Median):
    """A custom rule whose direction in round 3 has a square that overflows."""

    def direction(self, answers, rng):
        direction = super().direction(answers, rng)
        if answers.metrics[0]["round"] == 3:
            direction[MOVING] = LARGEST
        return direction


@dataclass(frozen=True)
class Spoiled(Median):
    """A custom rule with one coordinate of its own."""

    value: float = 0.0

    def direction(self, answers, rng):
        direction = super().direction(answers, rng)
        direction[5] = self.value
        return direction


class TestStepsThatAreNotFinite:
    @pytest.mark.parametrize("value", [nan, inf, LARGEST])
    def test_a_step_that_would_spoil_the_model_is_refused_by_the_array(self, value):
        strategy = recipe("vectors", None, None, aggregator=Spoiled(value), learning_rate=2.0)
        _, (heard,) = run(strategy, 3, rounds=1)
        assert heard.model is None
        assert "its step would make array 'frozen' NaN" in heard.no_step

    @pytest.mark.parametrize(
        ("change", "optimizer", "reason"),
        [
            (
                {"learning_rate": lambda number: 1e300 if number == 3 else 1.0},
                Momentum(0.5),
                "array 'frozen' NaN",
            ),
            ({"aggregator": HugeInThird()}, Adam(), "'v' of the optimizer NaN or infinite"),
        ],
        ids=["model", "optimizer"],
    )
    def test_the_model_and_all_that_is_remembered_stay_and_the_reason_is_said(
        self, change, optimizer, reason
    ):
        path = []
        strategy = recipe("vectors", *IN_PLACE, optimizer=optimizer, **change)
        _, outcomes = run(strategy, 3, rounds=4, path=path)
        assert [heard.model is None for heard in outcomes] == [False, False, True, False]
        assert reason in outcomes[2].no_step
        before, after = (outcomes[number].question for number in (2, 3))
        assert before.state.arrays["moving"].optimizer
        assert after.state is before.state
        assert path[2] is path[1]

    def test_five_of_six_hostile_replies_move_a_model_anywhere_but_to_nan(self):
        for noise_and_rotation in ((None, None), (None, Rotation()), DEFAULT, IN_PLACE):
            for size in (LARGEST, -LARGEST):
                lied = {"moving": np.full(400, size / 32, np.float32)}
                strategy = recipe("vectors", *noise_and_rotation, optimizer=Momentum(0.5))
                model, outcomes = run(strategy, 6, rounds=3, lied=lied, liars=5)
                assert len(outcomes) == 3
                assert all(np.isfinite(array).all() for array in model.values())
