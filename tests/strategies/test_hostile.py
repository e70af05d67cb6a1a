"""Usable-looking replies of a few hostile clients, and the little that they can do to a run."""

from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest

from fedmedian import Adaptive, Counts, Gaussian, Layout, Momentum, Rotation, TopUp
from fedmedian.claims import PROPORTION
from fedmedian.instructions import perturb_update
from fedmedian.strategies.core import NoStepError, ServerStep
from fedmedian.strategies.median import MedianCore
from fedmedian.strategies.protocol import RoundProtocol, Said
from fedmedian.strategies.settings import Settings
from fedmedian.strategies.sign import SignCore

MODEL = {
    "frozen": np.linspace(-1, 1, 300, dtype=np.float32),
    "moving": np.zeros(400, dtype=np.float32),
    "norm.running_var": np.ones(4, dtype=np.float32),
    "steps": np.array(2**60 + 1),
}
MOVING = slice(300, 700)
LARGEST = float(np.finfo(np.float32).max)


def core(kind, noise=None, rotation=None, **options):
    settings = Settings(**{"seed": 1, "rotation": rotation, **options})
    if kind == "votes":
        return SignCore(
            noise=noise, decode=Counts(), learning_rate=1.0, weighted=True, settings=settings
        )
    return MedianCore(
        noise=noise,
        noise_at="client",
        learning_rate=1.0,
        estimator="median",
        settings=settings,
    )


def trained(client, model):
    """The model after a client's training: its second array a step towards 1."""
    step = np.float32(0.1) * np.random.default_rng(client).uniform(0.5, 1.5, 400)
    variances = np.random.default_rng(client).uniform(0.5, 2, 4).astype(np.float32)
    changed = {"moving": model["moving"] + step.astype(np.float32), "norm.running_var": variances}
    return {**model, **changed}


def no_lie(payload):
    return payload


def run(core, num_clients, rounds=1, lie=no_lie, liars=1, examples=None, lied=None):
    """Play rounds; the first `liars` clients change their payload, examples or training."""
    protocol, model, outcomes = RoundProtocol(core), dict(MODEL), []
    for number in range(1, rounds + 1):
        instruction = protocol.ask(number, model)
        layout = Layout.with_exact_positions(model, instruction.exact)
        replies = []
        for client in range(num_clients):
            hostile = client < liars
            after = trained(client, model)
            if hostile and lied is not None:
                after |= lied
            update, rng = layout.difference(model, after), np.random.default_rng((number, client))
            payload = perturb_update(instruction, layout, update, after, rng, {}, client)
            if hostile:
                payload = lie(payload)
            bodies, scalars = payload.encode()
            weight = examples if hostile and examples is not None else 100.0
            arrays = {str(index): body for index, body in enumerate(bodies)}
            replies.append((client, Said(arrays, scalars, weight, {}, None)))
        heard = protocol.hear(range(num_clients), replies, lambda said: said)
        outcomes.append(heard)
        model = model if heard.model is None else heard.model
    return model, outcomes


DEFAULT = (Gaussian(TopUp()), Rotation())
IN_PLACE = (Gaussian(Adaptive(3.0)), None)

on_both_bases = pytest.mark.parametrize(
    "noise_and_rotation", [DEFAULT, IN_PLACE], ids=["random basis", "parameters' basis"]
)
both_kinds = pytest.mark.parametrize("kind", ["votes", "vectors"])


def claim_size(value, block=0):
    """Claim another magnitude of a block, and noise of that size where it was one's own."""

    def lie(payload):
        magnitudes, scales = payload.magnitudes.copy(), payload.scales.copy()
        own = not scales[block]  # no noise: the first round, in which clients choose
        magnitudes[block] = value
        if own:
            scales[block] = value
        return replace(payload, magnitudes=magnitudes, scales=scales)

    return lie


class TestSizesThatOneClientClaims:
    @on_both_bases
    @both_kinds
    @pytest.mark.parametrize("clients", [2, 3, 10])
    @pytest.mark.parametrize("value", [LARGEST, 1e30, 1.0])
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
            model, _ = run(core(kind, *DEFAULT), clients, rounds=6, lie=claim_size(LARGEST, 1))
            assert model["moving"].mean() == pytest.approx(honest["moving"].mean(), rel=0.4)

    def test_a_client_whose_claims_are_out_of_proportion_is_counted(self):
        _, (heard,) = run(core("votes", *DEFAULT), 10, lie=claim_size(1e3, 1))
        assert heard.report["replies-out-of-proportion"] == 1
        _, (heard,) = run(core("votes", *DEFAULT), 10)
        assert heard.report["replies-out-of-proportion"] == 0


class TestExamplesThatOneClientClaims:
    def test_no_client_weighs_more_than_four_times_the_median_one(self):
        """All of the others vote +1 on coordinates far beyond their noise, the liar −1."""
        lied = {"moving": np.full(400, 1e3, np.float32)}
        one, _ = run(core("votes", Gaussian(0.02)), 10, lied=lied, examples=100.0)
        much, (heard,) = run(core("votes", Gaussian(0.02)), 10, lied=lied, examples=1e9)
        most = PROPORTION / (9 + PROPORTION) - 1 / 10
        reach = 0.02 * np.sqrt(np.pi / 2)
        assert np.abs(much["moving"] - one["moving"]).max() <= 2 * most * reach * (1 + 1e-5)
        assert heard.report["replies-out-of-proportion"] == 1


class TestExactArraysOfOneClient:
    @both_kinds
    @pytest.mark.parametrize("clients", [3, 5, 10])
    @pytest.mark.parametrize("claim", [-1e6, 1e6, -LARGEST, LARGEST])
    def test_a_running_variance_stays_positive_and_among_the_others(self, kind, clients, claim):
        lied = {"norm.running_var": np.full(4, claim, np.float32)}
        model, _ = run(core(kind, *DEFAULT), clients, lied=lied)
        # The others' are between .5 and 2.
        assert np.all(model["norm.running_var"] > 0)
        assert np.all(model["norm.running_var"] < 5)

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

    def test_five_of_six_hostile_replies_move_a_model_anywhere_but_to_nan(self):
        for noise_and_rotation in ((None, None), (None, Rotation()), DEFAULT, IN_PLACE):
            for size in (LARGEST, -LARGEST):
                lied = {"moving": np.full(400, size / 32, np.float32)}
                strategy = core("vectors", *noise_and_rotation, optimizer=Momentum(0.5))
                model, outcomes = run(strategy, 6, rounds=3, lied=lied, liars=5)
                assert len(outcomes) == 3
                assert all(np.isfinite(array).all() for array in model.values())
