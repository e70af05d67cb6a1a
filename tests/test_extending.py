"""Custom parts: a client step, a noise family, an aggregator and a cohort rule.

Each is a class or a function that stands here, outside of the package, and takes part in rounds
of both of Flower's APIs. An app has them in a module that server and clients both import.
"""

import logging
from dataclasses import dataclass
from math import gamma, pi, sqrt
from typing import ClassVar

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import Server, ServerConfig, SimpleClientManager
from flwr.server.compat import start_grid
from scipy.integrate import quad
from scipy.special import stdtr

from fedmedian import (
    Adaptive,
    Blocks,
    ClientMomentum,
    ClientStep,
    Clip,
    Counts,
    Gaussian,
    Majority,
    Noise,
    SmoothedMedian,
    Uniform,
    count_votes,
    mean_from_votes,
    register_client_step,
    register_noise,
    smoothed_median,
)
from fedmedian.clients import InProcessGrid, perturb
from fedmedian.kernels.encoding import pack_noisy_signs
from fedmedian.randomness import client_rng
from fedmedian.rules.noise import NOISE_FAMILIES
from fedmedian.steps.base import CLIENT_STEPS
from fedmedian.strategies import MedianSGD, SignSGD, legacy

# ----------------------------------------------------------------------------------------------
# Four custom parts
# ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Join(ClientStep):
    """All arrays as one block with one noise scale, padded with zeros to a multiple."""

    multiple: int = 64

    name: ClassVar[str] = "join"

    def apply(self, draft):
        joined = self.blocks(draft.blocks)
        draft.replace(np.pad(draft.vector, (0, joined.dim - draft.blocks.dim)), joined)

    def blocks(self, before):
        return Blocks((-(-before.dim // self.multiple) * self.multiple,))

    def undo(self, direction, before):
        return direction[: before.dim]


@dataclass(frozen=True)
class FlipSigns(ClientStep):
    """The signs of some coordinates flipped on the clients, and flipped back on the server."""

    seed: int

    name: ClassVar[str] = "flip-signs"

    def apply(self, draft):
        draft.vector[self._chosen(draft.vector.size)] *= -1

    def undo(self, direction, before):
        direction[self._chosen(direction.size)] *= -1
        return direction

    def _chosen(self, size):
        # Others for another size: only the opposite order of the steps undoes them.
        return np.random.default_rng([self.seed, size]).random(size) < 0.5


@dataclass(frozen=True)
class StudentT(Noise):
    """Student's t of variance 1, whose tails are as heavy as its degrees of freedom are few."""

    df: float = 5.0

    name: ClassVar[str] = "student-t"

    def cdf(self, x):
        return stdtr(self.df, np.asarray(x) / self._unit)

    def density(self, x):
        peak = gamma((self.df + 1) / 2) / gamma(self.df / 2) / sqrt(self.df * pi) / self._unit
        return peak * (1 + np.square(x) / (self.df - 2)) ** (-(self.df + 1) / 2)

    def sample(self, rng, size):
        return (self._unit * rng.standard_t(self.df, size)).astype(np.float32)

    @property
    def _unit(self):
        return sqrt((self.df - 2) / self.df)


@dataclass(frozen=True)
class CountsWithDeadZone(Counts):
    """Counts, but no step where the estimated mean update is small."""

    width: float = 0.0

    def decode(self, votes, ballot, rng):
        estimate = super().decode(votes, ballot, rng)
        estimate[np.abs(estimate) < self.width] = 0
        return estimate


def refuse_giants(cohort):
    """Refuse whoever claims more than ten times the median client's examples."""
    claims = [reply.num_examples for reply in cohort.replies]
    return {
        index: f"claims {claim} examples"
        for index, claim in enumerate(claims)
        if claim > 10 * np.median(claims)
    }


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Register what travels; an app writes ``@register_noise`` above the class instead.

    Here it is for the length of a test: others go through all families.
    """
    for registry in (CLIENT_STEPS, NOISE_FAMILIES):
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    for step in (Join, FlipSigns):
        register_client_step(step)
    register_noise(StudentT)


# ----------------------------------------------------------------------------------------------
# Rounds on both APIs
# ----------------------------------------------------------------------------------------------

NUM_CLIENTS = 5
MODEL = {
    "0": np.arange(90, dtype=np.float32).reshape(9, 10),
    "1": np.linspace(0, 1, 13),
    "2": np.zeros(2, np.float32),  # running statistics
    "3": np.array(3),  # a counter
}
EXACT = ("2", "3")
DIM = 90 + 13

_draws = np.random.default_rng(0)
# Each client's update, the same in every round, and in size between 1 and 2.
UPDATES = np.float32(
    _draws.uniform(1, 2, (NUM_CLIENTS, DIM)) * _draws.choice([-1, 1], (NUM_CLIENTS, DIM))
)
OTHER = 2  # a client that is not as the others


def train(model, partition):
    """Take the client's update off the model, and move its statistics and counter on."""
    weight, bias, statistics, steps = model
    update = UPDATES[partition]
    return [
        weight - update[:90].reshape(9, 10),
        bias - update[90:],
        statistics + np.float32(partition),
        steps + 1,
    ]


@dataclass
class Outcome:
    """The outcome of a run: the model's arrays, and each round's report."""

    model: list
    reports: list

    @property
    def moved(self):
        """The distance that the flat vector has gone downhill, (d,)."""
        first = list(MODEL.values())
        return np.concatenate([(first[i] - self.model[i]).ravel() for i in (0, 1)])

    @property
    def bits(self):
        """The model, bit for bit."""
        return [(array.dtype, array.shape, array.tobytes()) for array in self.model]


def numpy_client(context, strategy, num_examples):
    """Make a NumPyClient, which is all the older API needs beside the mod."""
    partition = context.node_config["partition-id"]

    class Client(NumPyClient):
        def fit(self, parameters, config):
            return train(parameters, partition), num_examples[partition], {}

    return Client()


def torch_client(context, strategy, num_examples):
    """Make a client for torch, whose model has the client's update as its gradient."""
    import torch

    from fedmedian.clients import GradientClient, SignClient

    partition = context.node_config["partition-id"]
    weight, bias = (torch.tensor(update) for update in np.split(UPDATES[partition], [90]))

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            tensors = [torch.tensor(array) for array in MODEL.values()]
            self.weight, self.bias = map(torch.nn.Parameter, tensors[:2])
            self.register_buffer("statistics", tensors[2])
            self.register_buffer("steps", tensors[3])

        def forward(self, inputs):
            self.statistics += partition
            self.steps += 1
            return (self.weight.ravel() * weight).sum() + (self.bias * bias).sum()

    examples = torch.utils.data.TensorDataset(*torch.zeros(2, num_examples[partition], 1))
    batches = torch.utils.data.DataLoader(examples, batch_size=num_examples[partition])
    kind = SignClient if strategy is SignSGD else GradientClient
    return kind(context, Model(), batches, loss=lambda outputs, targets: outputs)


def run_message_api(strategy, app, rounds, participation, options):
    """Run a strategy of the Message API."""
    made = strategy(fraction_train=participation, fraction_evaluate=0.0, **options)
    initial = ArrayRecord({name: Array(array) for name, array in MODEL.items()})
    result = made.start(InProcessGrid(app, NUM_CLIENTS), initial, rounds)
    model = [array.numpy() for array in (result.arrays or initial).values()]
    return Outcome(model, [dict(r) for r in result.train_metrics_clientapp.values()])


def run_older_api(strategy, app, rounds, participation, options):
    """Run a strategy's namesake of the older API."""
    made = getattr(legacy, strategy.__name__)(
        fraction_fit=participation,
        fraction_evaluate=0.0,
        initial_parameters=ndarrays_to_parameters(MODEL.values()),
        **options,
    )
    server = Server(client_manager=SimpleClientManager(), strategy=made)
    config = ServerConfig(num_rounds=rounds)
    history = start_grid(grid=InProcessGrid(app, NUM_CLIENTS), server=server, config=config)
    reports = [{} for _ in range(rounds)]
    for name, values in history.metrics_distributed_fit.items():
        for number, value in values:
            reports[number - 1][name] = value
    for number, lists in made.metrics_per_block.items():
        reports[number - 1] |= lists
    return Outcome(parameters_to_ndarrays(server.parameters), reports)


@pytest.fixture(params=["Message API", "older API", "torch clients"])
def run(request, make_app):
    """Runs a strategy on each API, with clients of the Message API, NumPyClients or torch's.

    `mods` are those of the clients that train themselves; torch's need none.
    """
    if request.param == "torch clients":
        pytest.importorskip("torch")

    def run(strategy, rounds=1, participation=1.0, mods=(perturb,), examples=None, **options):
        # Of TopUp, which needs a rotation, nothing is to be seen in the parameters' own basis.
        options = {"seed": 1, "exact": EXACT, "rotation": None, "noise": Gaussian(), **options}
        examples = examples or [1] * NUM_CLIENTS
        if request.param == "Message API":

            def train_named(model, partition):
                trained = train(model.values(), partition)
                return dict(zip(model, trained, strict=True)), {"num-examples": examples[partition]}

            app = make_app(train_named, mods)
            return run_message_api(strategy, app, rounds, participation, options)
        if request.param == "older API":

            def client_fn(context):
                return numpy_client(context, strategy, examples).to_client()

            app = ClientApp(client_fn=client_fn, mods=list(mods))
            return run_older_api(strategy, app, rounds, participation, options)

        def client_fn(context):
            return torch_client(context, strategy, examples).to_client()

        others = [mod for mod in mods if mod is not perturb]
        app = ClientApp(client_fn=client_fn, mods=others)
        options["numpy_clients"] = True
        return run_message_api(strategy, app, rounds, participation, options)

    run.api = request.param
    return run


def without(registry, part):
    """Return a mod for clients of which one does not know a part that the server has."""

    def mod(message, context, call_next):
        with pytest.MonkeyPatch.context() as patch:
            if context.node_config["partition-id"] == OTHER:
                patch.delitem(registry._classes, part.name)
            return call_next(message, context)

    return mod


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def counts_of(report):
    """The numbers of replies accepted, rejected and missing."""
    return [report[f"replies-{what}"] for what in ("accepted", "rejected", "missing")]


# ----------------------------------------------------------------------------------------------
# They take part in rounds
# ----------------------------------------------------------------------------------------------

STEPS = [Join(), FlipSigns(seed=7)]
# Flower's older API does not tell whose an error is: such a client is missing.
ONE_ERROR = {"Message API": [4, 1, 0], "older API": [4, 0, 1], "torch clients": [4, 1, 0]}
SOME = {"rounds": 3, "participation": 0.6}


class TestClientStep:
    """Blocks that are not the model's arrays, padding, and something to undo."""

    def test_steps_that_are_undone_leave_a_plain_median_bit_for_bit_as_it_is(self, run):
        with_steps = run(MedianSGD, noise=None, client_steps=STEPS, **SOME)
        assert with_steps.bits == run(MedianSGD, noise=None, **SOME).bits
        assert (np.abs(with_steps.moved) > 1e-3).all()
        assert with_steps.model[3] == 3 + SOME["rounds"]
        assert [counts_of(report) for report in with_steps.reports] == [[3, 0, 0]] * 3

    @pytest.mark.parametrize(
        ("strategy", "options"),
        [
            (SignSGD, {"aggregator": Counts()}),
            (SignSGD, {"aggregator": Majority(calibrated=True)}),
            (MedianSGD, {}),
        ],
        ids=["counts", "majority", "median"],
    )
    def test_one_joined_block_of_a_fixed_scale_is_as_good_as_one_per_array(
        self, strategy, options, run
    ):
        options = {"noise": Gaussian(1.0), **options, **SOME}
        joined = run(strategy, client_steps=[Join()], **options)
        assert joined.bits == run(strategy, **options).bits
        assert [len(report["noise-scale"]) for report in joined.reports] == [1, 1, 1]

    @pytest.mark.parametrize("rule", [Counts(), Majority(calibrated=True)], ids=repr)
    def test_signs_that_noise_cannot_change_are_undone_before_the_model_moves(self, rule, run):
        # Uniform noise of scale 1/2 is below 0.87, updates are above 1: no vote is by chance.
        options = {"noise": Uniform(0.5), "aggregator": rule, **SOME}
        with_steps = run(SignSGD, client_steps=STEPS, **options)
        np.testing.assert_allclose(with_steps.moved, run(SignSGD, **options).moved, rtol=1e-5)
        assert (np.abs(with_steps.moved) > 0.1).all()

    @pytest.mark.parametrize(
        ("noise_at", "mods"), [("client", [perturb]), ("server", [])], ids=["client", "server"]
    )
    def test_a_noisy_median_moves_as_the_plain_one_but_for_the_noise(self, noise_at, mods, run):
        scale = 0.05
        noise = {"noise": Uniform(scale), "noise_at": noise_at, "mods": mods}
        noisy = run(MedianSGD, client_steps=STEPS, **noise, **SOME)
        off = np.abs(noisy.moved - run(MedianSGD, noise=None, **SOME).moved)
        # No median of numbers moves by more than the numbers do, which is √3·b a round.
        assert 0.1 * scale < off.max() <= SOME["rounds"] * sqrt(3) * scale + 1e-5

    def test_a_smoothed_median_of_unmodified_clients_is_that_without_the_steps(self, run):
        options = {"noise": Gaussian(1.0), "aggregator": SmoothedMedian(), "mods": [], **SOME}
        with_steps = run(MedianSGD, client_steps=STEPS, **options)
        np.testing.assert_allclose(
            with_steps.moved, run(MedianSGD, **options).moved, rtol=1e-4, atol=1e-5
        )

    @pytest.mark.parametrize(
        ("strategy", "scale_from"), [(SignSGD, "client"), (MedianSGD, "server")]
    )
    def test_an_adaptive_scale_is_that_of_the_joined_and_padded_block(
        self, strategy, scale_from, run
    ):
        noise = Gaussian(Adaptive(2.0))
        outcome = run(strategy, rounds=3, noise=noise, client_steps=STEPS, scale_from=scale_from)
        padded = Join().blocks(Blocks((DIM,))).dim
        rms = np.sqrt(np.square(UPDATES).sum(axis=1) / padded)
        scales = [report["noise-scale"] for report in outcome.reports]
        np.testing.assert_allclose(scales, [[2 * np.median(rms)]] * 3, rtol=1e-5)

    def test_steps_are_taken_in_the_order_of_their_list_and_undone_in_the_opposite(self, run):
        ours = [ClientMomentum(0.5), Clip(3.0)]
        plain = run(MedianSGD, rounds=3, noise=None, client_steps=ours)
        for steps in (
            [*STEPS, *ours],
            [Join(), ours[0], FlipSigns(seed=7), ours[1]],
            [FlipSigns(seed=7), ours[0], ours[1], Join()],
        ):
            other = run(MedianSGD, rounds=3, noise=None, client_steps=steps)
            np.testing.assert_allclose(other.moved, plain.moved, rtol=1e-5)

    def test_a_client_that_does_not_know_a_step_refuses_by_its_name(self, run, caplog):
        mods = [without(CLIENT_STEPS, FlipSigns), perturb]
        outcome = run(MedianSGD, noise=None, client_steps=STEPS, mods=mods)
        assert counts_of(outcome.reports[0]) == ONE_ERROR[run.api]
        assert any(FlipSigns.name in line for line in warnings(caplog))
        others = np.delete(UPDATES, OTHER, axis=0)
        np.testing.assert_allclose(outcome.moved, np.median(others, axis=0), atol=1e-5)


class TestNoiseFamily:
    """A family with a parameter, which clients are told."""

    FAMILY = StudentT(0.5, df=3.0)

    def test_a_noise_family_has_variance_one_and_a_density_that_belongs_to_its_cdf(self):
        law = self.FAMILY
        variance, _ = quad(lambda x: x**2 * law.density(x), -np.inf, np.inf)
        within, _ = quad(law.density, -0.5, 2)
        assert variance == pytest.approx(1)
        assert within == pytest.approx(law.cdf(2.0) - law.cdf(-0.5))

    def test_clients_draw_noise_of_a_family_with_the_parameters_they_are_told(self, run):
        noisy = [
            update + np.float32(0.5) * self.FAMILY.sample(client_rng(1, partition, 1), DIM)
            for partition, update in enumerate(UPDATES)
        ]
        outcome = run(MedianSGD, noise=self.FAMILY)
        np.testing.assert_allclose(outcome.moved, np.median(noisy, axis=0), atol=1e-5)

    def test_votes_follow_a_familys_own_law_and_are_decoded_by_it(self, run):
        scales = np.array([0.5], np.float32)
        votes = [
            pack_noisy_signs([update], DIM, self.FAMILY, scales, client_rng(1, partition, 1))
            for partition, update in enumerate(UPDATES)
        ]
        mean = mean_from_votes(count_votes(votes, DIM), NUM_CLIENTS, self.FAMILY, 0.5)
        outcome = run(SignSGD, noise=self.FAMILY)
        np.testing.assert_allclose(outcome.moved, mean, rtol=1e-4, atol=1e-5)

    def test_a_median_is_smoothed_by_a_family_of_ones_own(self, run):
        outcome = run(MedianSGD, noise=self.FAMILY, aggregator=SmoothedMedian(), mods=[])
        smoothed = smoothed_median(UPDATES, self.FAMILY, 0.5)
        np.testing.assert_allclose(outcome.moved, smoothed, rtol=1e-4, atol=1e-5)

    def test_a_client_that_does_not_know_a_noise_family_refuses_by_its_name(self, run, caplog):
        outcome = run(SignSGD, noise=self.FAMILY, mods=[without(NOISE_FAMILIES, StudentT), perturb])
        assert counts_of(outcome.reports[0]) == ONE_ERROR[run.api]
        assert any(StudentT.name in line for line in warnings(caplog))


class TestAggregator:
    def test_votes_within_a_rules_dead_zone_do_not_move_the_model(self, run):
        # Uniform noise of scale 1/2 is below 0.87, updates are above 1: no vote is by chance.
        estimate = 0.5 * sqrt(3) * np.sign(UPDATES).mean(axis=0)
        outcome = run(SignSGD, noise=Uniform(0.5), aggregator=CountsWithDeadZone(0.3))
        small = np.abs(estimate) < 0.3
        assert 0 < small.sum() < DIM
        np.testing.assert_allclose(outcome.moved, np.where(small, 0, estimate), atol=1e-5)


class TestCohortRule:
    @pytest.mark.parametrize("strategy", [SignSGD, MedianSGD])
    def test_answers_that_a_cohort_rule_refuses_are_logged_counted_and_left_out(
        self, strategy, run, caplog
    ):
        examples = [1000 if i == OTHER else 1 for i in range(NUM_CLIENTS)]
        noise = Uniform(0.5) if strategy is SignSGD else None
        outcome = run(strategy, noise=noise, cohort_rules=[refuse_giants], examples=examples)
        assert counts_of(outcome.reports[0]) == [4, 1, 0]
        (line,) = [line for line in warnings(caplog) if "claims" in line]
        assert f"partition {OTHER}" in line
        assert "1000" in line
        others = np.delete(UPDATES, OTHER, axis=0)
        expected = (
            0.5 * sqrt(3) * np.sign(others).mean(axis=0)
            if strategy is SignSGD
            else np.median(others, axis=0)
        )
        np.testing.assert_allclose(outcome.moved, expected, atol=1e-5)


class TestRegistration:
    """A part that clients cannot know is refused before the first round."""

    def test_a_client_step_that_is_not_registered_is_refused_by_its_class(self, monkeypatch):
        monkeypatch.delitem(CLIENT_STEPS._classes, Join.name)
        with pytest.raises(ValueError, match=r"^client_steps\[0\] .*Join"):
            SignSGD(client_steps=[Join()])

    def test_a_noise_family_that_is_not_registered_serves_servers_that_add_noise(self, monkeypatch):
        monkeypatch.delitem(NOISE_FAMILIES._classes, StudentT.name)
        with pytest.raises(ValueError, match=r"^noise .*StudentT"):
            MedianSGD(StudentT())
        assert MedianSGD(StudentT(), noise_at="server").noise == StudentT()
