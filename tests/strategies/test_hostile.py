"""Usable-looking replies of a few hostile clients, and the little that they can do to a run."""

from dataclasses import replace
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
    Momentum,
    Rotation,
    TopUp,
)
from fedmedian.model.layout import first_spoiled
from fedmedian.rounds.core import NoStepError, ServerStep
from fedmedian.rounds.protocol import RoundProtocol, Said
from fedmedian.rounds.settings import Settings
from fedmedian.rules.trust import num_tolerated
from fedmedian.steps.instruction import perturb_update
from fedmedian.strategies.median import MedianCore
from fedmedian.strategies.sign import SignCore
from fedmedian.wire import scalars

MODEL = {
    "frozen": np.linspace(-1, 1, 300, dtype=np.float32),
    "moving": np.zeros(400, dtype=np.float32),
    "norm.running_var": np.ones(4, dtype=np.float32),
    "steps": np.array(2**60 + 1),
}
MOVING = slice(300, 700)
LARGEST = float(np.finfo(np.float32).max)


def core(
    kind,
    noise=None,
    rotation=None,
    decode=None,
    noise_at="client",
    estimator="median",
    **options,
):
    settings = Settings(**{"seed": 1, "rotation": rotation, **options})
    if kind == "votes":
        return SignCore(
            noise=noise,
            decode=decode or Counts(),
            learning_rate=1.0,
            weighted=True,
            settings=settings,
        )
    return MedianCore(
        noise=noise,
        noise_at=noise_at,
        learning_rate=1.0,
        estimator=estimator,
        settings=settings,
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
    core,
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
    protocol, model, outcomes = RoundProtocol(core), dict(MODEL), []
    for number in range(1, rounds + 1):
        instruction = protocol.ask(number, model)
        layout = Layout.with_exact_positions(model, instruction.exact)
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
                scales = instruction.scales_of(payload, instruction.blocks(layout))
                payload = lie(payload, scales)
            bodies, scalars = payload.encode()
            weight = examples if hostile and examples is not None else 100.0
            arrays = {str(index): body for index, body in enumerate(bodies)}
            replies.append((client, Said(arrays, scalars, weight, {}, None)))
        heard = protocol.hear(range(num_clients), replies, lambda said: said)
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
        model, outcomes = run(core(kind, *noise_and_rotation), clients, rounds=6, lie=lie)
        # In round 1 each client chooses its scale, so that the lie is a scale of its own as well.
        accepted = [heard.report["replies-accepted"] for heard in outcomes]
        assert accepted == [clients] * 6 or accepted == [clients, *[clients - 1] * 5]
        np.testing.assert_array_equal(model["frozen"], MODEL["frozen"])
        assert all(np.isfinite(array).all() for array in model.values())

    @both_kinds
    def test_a_moving_array_moves_on_as_far_as_without_the_lie(self, kind):
        for clients in (3, 10):
            honest, _ = run(core(kind, *DEFAULT), clients, rounds=6)
            lie = claim_size(scalars.LARGEST, 1)
            model, _ = run(core(kind, *DEFAULT), clients, rounds=6, lie=lie)
            assert model["moving"].mean() == pytest.approx(honest["moving"].mean(), rel=0.4)

    def test_a_client_whose_claims_are_out_of_proportion_is_counted(self):
        _, (heard,) = run(core("votes", *DEFAULT), 10, lie=claim_size(1e3, 1))
        assert heard.report["replies-out-of-proportion"] == 1
        _, (heard,) = run(core("votes", *DEFAULT), 10)
        assert heard.report["replies-out-of-proportion"] == 0


class TestExamplesThatClientsClaim:
    @pytest.mark.parametrize("clients", [2, 3, 5, 10, 25])
    def test_among_clients_of_as_many_examples_a_claim_of_more_changes_nothing(self, clients):
        lied, liars = {"moving": np.full(400, 1e3, np.float32)}, num_tolerated(clients)
        told = {"lied": lied, "liars": liars}
        honest, _ = run(core("votes", *DEFAULT), clients, 3, **told)
        for examples in (400.0, 1e12, 1.7e308):
            model, (heard, *_) = run(core("votes", *DEFAULT), clients, 3, examples=examples, **told)
            # The order in which answers are added up depends on their examples.
            np.testing.assert_allclose(model["moving"], honest["moving"], atol=1e-5)
            assert heard.report["replies-out-of-proportion"] == liars

    @pytest.mark.parametrize(("rounds", "scale_from"), [(1, "server"), (4, "client")])
    def test_examples_and_scale_together_count_for_no_more_than_the_scale_alone(
        self, rounds, scale_from
    ):
        lied = {"moving": np.full(400, -0.1, np.float32)}

        def lie(payload, scales):
            reports = {
                step: values if step == "measure" else values * np.float32(100)
                for step, values in payload.reports.items()
            }
            return replace(payload, reports=reports)

        def moved(examples):
            strategy = core("votes", *DEFAULT, scale_from=scale_from)
            model, _ = run(strategy, 10, rounds, lie=lie, liars=2, examples=examples, lied=lied)
            return model["moving"].mean()

        assert moved(1e9) == pytest.approx(moved(100.0), rel=1e-4)
        # Two of ten turn no step around, though they count for twice the others.
        assert moved(1e9) > 0


ANY_ESTIMATOR = {
    "counts": lambda: core("votes", *DEFAULT),
    "counts in place": lambda: core("votes", *IN_PLACE),
    "majority": lambda: core("votes", *IN_PLACE, decode=Majority(calibrated=True)),
    "median": lambda: core("vectors", *DEFAULT),
    "median in place": lambda: core("vectors", *IN_PLACE),
    "noise at the server": lambda: core("vectors", *DEFAULT, noise_at="server"),
    "smoothed": lambda: core("vectors", *DEFAULT, estimator="smoothed"),
}


class TestArraysThatStopMoving:
    """An array that clients train and then freeze, as in fine-tuning by stages."""

    @pytest.mark.parametrize("make", ANY_ESTIMATOR.values(), ids=ANY_ESTIMATOR)
    @pytest.mark.parametrize("clients", [2, 5, 10])
    @pytest.mark.parametrize("hostile", [False, True])
    def test_stay_where_they_are_whatever_t_clients_claim(self, make, clients, hostile):
        frozen_at = 4

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
        run(with_history, clients, 10, lie=lie, liars=liars, stages=stages, path=path)
        moving, still = path[:frozen_at], path[frozen_at - 1 :]
        assert all(np.any(one["frozen"] != MODEL["frozen"]) for one in moving[1:])
        for one in still:
            np.testing.assert_array_equal(one["frozen"], still[0]["frozen"])


class TestValuesThatAreFarOut:
    @both_kinds
    def test_a_size_or_entry_above_the_largest_that_is_accepted_costs_that_reply_alone(self, kind):
        above = np.nextafter(np.float32(scalars.LARGEST), np.float32(np.inf))
        _, (heard,) = run(core(kind, *DEFAULT), 5, lie=claim_size(above, 1))
        assert heard.report["replies-accepted"] == 4
        assert f"must be from 0 to {scalars.LARGEST:.3g}" in str(heard.reasons[0])
        lied = {"moving": np.full(400, 1e25, np.float32)}
        _, (heard,) = run(core("vectors"), 5, lied=lied)
        assert heard.report["replies-accepted"] == 4
        assert "an entry above 1e+12" in str(heard.reasons[0])

    @pytest.mark.parametrize(("clients", "liars"), [(2, 1), (3, 2), (10, 5), (6, 5)])
    @pytest.mark.parametrize("optimizer", [None, Momentum(), Adam()], ids=["none", "m", "adam"])
    @pytest.mark.parametrize("value", [3e38, 1e25, scalars.LARGEST])
    def test_whoever_sends_them_no_round_fails(self, clients, liars, optimizer, value):
        def lie(payload, scales):
            return replace(payload, body=np.full_like(payload.body, value))

        for noise_and_rotation in ((None, None), DEFAULT, IN_PLACE):
            strategy = core("vectors", *noise_and_rotation, optimizer=optimizer)
            model, outcomes = run(strategy, clients, 5, lie=lie, liars=liars)
            assert [heard.no_step for heard in outcomes] == [""] * 5
            assert all(np.isfinite(array).all() for array in model.values())

    def test_neither_of_two_clients_counts_for_more_than_four_times_the_other(self):
        honest, _ = run(core("vectors", *DEFAULT), 2)
        length = np.linalg.norm(honest["moving"])
        for value in (10.0, 1e6, scalars.LARGEST):

            def lie(payload, scales, value=value):
                return replace(payload, body=np.full_like(payload.body, value))

            model, _ = run(core("vectors", *DEFAULT), 2, lie=lie)
            assert np.linalg.norm(model["moving"]) < 5 * length


class TestExactArraysOfOneClient:
    @both_kinds
    @pytest.mark.parametrize("clients", [2, 3, 5, 10])
    @pytest.mark.parametrize("claim", [-scalars.LARGEST, -1e6, 1e6, scalars.LARGEST])
    def test_a_running_variance_stays_positive_and_among_the_others(self, kind, clients, claim):
        lied = {"norm.running_var": np.full(4, claim, np.float32)}
        model, (heard,) = run(core(kind, *DEFAULT), clients, lied=lied)
        assert heard.report["replies-accepted"] == clients
        # The others' are between .5 and 2.
        assert np.all(model["norm.running_var"] > 0)
        assert np.all(model["norm.running_var"] < 5)

    @both_kinds
    def test_an_entry_above_the_largest_costs_that_reply_alone_unless_the_model_has_it(self, kind):
        lied = {"norm.running_var": np.full(4, -LARGEST, np.float32)}
        model, (heard,) = run(core(kind, *DEFAULT), 5, lied=lied)
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
            model, _ = run(core(kind, *DEFAULT), 10, lied=lied)
            assert model["steps"] == 2**60 + 1


class TestStepsThatAreNotFinite:
    @pytest.mark.parametrize("value", [nan, inf, LARGEST])
    def test_the_model_and_all_that_is_remembered_stay_and_the_reason_is_said(self, value):
        strategy = core("vectors", *IN_PLACE, optimizer=Momentum(0.5), average_decay=0.5)
        run(strategy, 3)
        before, direction = strategy.state, np.zeros(700, np.float32)
        direction[5] = value
        exact = {"norm.running_var": MODEL["norm.running_var"], "steps": MODEL["steps"]}
        with pytest.raises(NoStepError, match="its step would make array 'frozen' NaN"):
            strategy.move(ServerStep(direction, 2.0, exact))
        for group, arrays in before.items():
            for name, array in arrays.items():
                np.testing.assert_array_equal(strategy.state[group][name], array)

    def test_nor_does_an_optimizer_remember_what_is_not(self):
        strategy = core("vectors", optimizer=Adam())
        run(strategy, 3)
        before = strategy.state["optimizer"]
        step = ServerStep(np.zeros(700, np.float32), 1.0, MODEL, None, {"v": np.float32([inf])})
        with pytest.raises(NoStepError, match="'v' of the optimizer NaN or infinite"):
            strategy.move(step)
        assert strategy.state["optimizer"] is before

    def test_five_of_six_hostile_replies_move_a_model_anywhere_but_to_nan(self):
        for noise_and_rotation in ((None, None), (None, Rotation()), DEFAULT, IN_PLACE):
            for size in (LARGEST, -LARGEST):
                lied = {"moving": np.full(400, size / 32, np.float32)}
                strategy = core("vectors", *noise_and_rotation, optimizer=Momentum(0.5))
                model, outcomes = run(strategy, 6, rounds=3, lied=lied, liars=5)
                assert len(outcomes) == 3
                assert all(np.isfinite(array).all() for array in model.values())
