"""The contract of every server optimizer, and what each computes, beside naive ones and Flower's.

Every draw is seeded. A new optimizer is covered once an instance stands in `OPTIMIZERS`.
"""

from math import inf, nan, sqrt

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam

from fedmedian import Adam, Momentum, Optimizer
from fedmedian.clients import InProcessGrid

OPTIMIZERS = [Momentum(), Adam(), Adam(beta_1=0.0, beta_2=0.9, tau=0.1)]

each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)


def directions(rounds=20, dim=7, seed=0):
    """Directions of very different sizes, as float32."""
    draws = np.random.default_rng(seed).standard_normal((rounds, dim))
    return (draws * np.logspace(-3, 3, dim)).astype(np.float32)


def steps_of(optimizer, given):
    state = {}
    return np.array([optimizer.step(direction.copy(), state) for direction in given])


def naive_momentum(given, beta):
    mean, steps = 0.0, []
    for t, direction in enumerate(given.astype(np.float64), start=1):
        mean = beta * mean + (1 - beta) * direction
        steps.append(mean / (1 - beta**t))
    return np.array(steps)


def naive_adam(given, beta_1, beta_2, tau):
    first = second = 0.0
    steps = []
    for t, direction in enumerate(given.astype(np.float64), start=1):
        first = beta_1 * first + (1 - beta_1) * direction
        second = beta_2 * second + (1 - beta_2) * direction**2
        corrected, spread = first / (1 - beta_1**t), sqrt_of(second / (1 - beta_2**t))
        steps.append(corrected / (spread + tau))
    return np.array(steps)


def sqrt_of(values):
    return np.array([sqrt(value) for value in values])


@each_optimizer
def test_an_optimizer_is_a_value(optimizer):
    assert isinstance(optimizer, Optimizer)
    assert optimizer == type(optimizer)(**vars(optimizer))
    assert hash(optimizer) == hash(type(optimizer)(**vars(optimizer)))


@each_optimizer
def test_an_optimizers_steps_are_float32_vectors_of_the_directions_size(optimizer):
    for dim in (0, 1, 5):
        step = optimizer.step(np.ones(dim, np.float32), {})
        assert step.shape == (dim,)
        assert step.dtype == np.float32


@each_optimizer
def test_an_optimizer_remembers_vectors_of_float32_but_not_its_direction_or_its_step(
    optimizer,
):
    direction, state = np.ones(3, np.float32), {}
    step = optimizer.step(direction, state)
    assert direction.tolist() == [1, 1, 1]
    remembered = {name: array.copy() for name, array in state.items()}
    assert all(array.dtype == np.float32 for array in state.values() if array.size > 1)
    direction[:] = step[:] = 99
    assert all(np.array_equal(state[name], remembered[name]) for name in remembered)


@each_optimizer
def test_an_optimizer_that_is_stored_and_resumed_continues_as_if_it_had_not_been(optimizer):
    given, state = directions(), {}
    for direction in given[:8]:
        optimizer.step(direction, state)
    stored = {name: array.copy() for name, array in state.items()}
    resumed = [type(optimizer)(**vars(optimizer)).step(d, stored) for d in given[8:]]
    np.testing.assert_array_equal(resumed, steps_of(optimizer, given)[8:])


@each_optimizer
def test_an_optimizer_does_not_move_a_coordinate_that_never_had_a_direction(optimizer):
    given = directions()
    given[:, 2] = 0
    assert not steps_of(optimizer, given)[:, 2].any()


@each_optimizer
def test_an_optimizer_turns_around_with_its_directions(optimizer):
    given = directions()
    np.testing.assert_array_equal(steps_of(optimizer, -given), -steps_of(optimizer, given))


@each_optimizer
def test_an_optimizer_stays_correct_after_many_rounds(optimizer):
    steps = steps_of(optimizer, np.ones((2000, 1), np.float32))
    assert np.isfinite(steps).all()
    assert steps[-1] == pytest.approx(steps[-2], rel=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.99])
def test_momentum_is_the_corrected_exponential_average_of_the_directions(beta):
    given = directions()
    np.testing.assert_allclose(
        steps_of(Momentum(beta), given), naive_momentum(given, beta), rtol=1e-4, atol=1e-5
    )


def test_momentum_leaves_a_constant_direction_as_it_is_from_the_first_round_on():
    given = np.tile(np.float32([1.0, -3.0, 1e-4]), (50, 1))
    np.testing.assert_allclose(steps_of(Momentum(0.99), given), given, rtol=1e-4)


def test_momentum_divides_the_variance_of_noise_by_its_window():
    """By W = (1 + β)/(1 − β), once the average has run in."""
    n, beta, state = 40_000, 0.9, {}
    draws = np.random.default_rng(1)
    for _ in range(200):
        step = Momentum(beta).step(draws.standard_normal(n, dtype=np.float32), state)
    variance, expected = float(np.mean(np.square(step))), (1 - beta) / (1 + beta)
    # A mean of n squares of Gaussians has the relative standard error √(2/n).
    assert variance == pytest.approx(expected, rel=5 * sqrt(2 / n))


@pytest.mark.parametrize(
    "options", [{}, {"beta_1": 0.0}, {"beta_2": 0.0}, {"beta_1": 0.5, "tau": 10.0}], ids=str
)
def test_adam_is_the_corrected_average_over_the_corrected_root_mean_square(options):
    given, full = directions(), {"beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3, **options}
    np.testing.assert_allclose(
        steps_of(Adam(**options), given), naive_adam(given, **full), rtol=1e-4, atol=1e-5
    )


def test_adam_makes_steps_of_size_1_from_a_constant_direction_whatever_its_own():
    steps = steps_of(Adam(tau=1e-12), np.full((30, 3), [1e-3, -5.0, 1e4], np.float32))
    np.testing.assert_allclose(steps, np.tile([1.0, -1.0, 1.0], (30, 1)), rtol=1e-4)


def test_adam_makes_steps_of_half_that_size_from_a_direction_as_large_as_tau():
    np.testing.assert_allclose(steps_of(Adam(), np.full((30, 1), 1e-3, np.float32)), 0.5, rtol=1e-3)


def test_adam_does_not_blow_up_directions_much_smaller_than_tau():
    steps = steps_of(Adam(tau=1.0), np.full((30, 1), 1e-4, np.float32))
    np.testing.assert_allclose(steps, 1e-4, rtol=1e-3)


@pytest.mark.parametrize(("beta_1", "beta_2"), [(0.0, 0.5), (0.9, 0.99)])
def test_adam_goes_where_flowers_fedadam_goes(beta_1, beta_2):
    """But for Flower's bias corrections, which count one round more than there have been."""
    given, eta = directions(rounds=8), 0.1
    optimizer, state = Adam(beta_1, beta_2, tau=1e-12), {}
    path = flowers_path(given, eta, beta_1, beta_2)
    for t, direction in enumerate(given, start=1):
        step = optimizer.step(direction, state).astype(np.float64)
        uncorrected = step * (1 - beta_1**t) / sqrt(1 - beta_2**t)
        theirs = eta * sqrt(1 - beta_2 ** (t + 1)) / (1 - beta_1 ** (t + 1)) * uncorrected
        np.testing.assert_allclose(path[t - 1] - path[t], theirs, rtol=2e-3, atol=1e-6)


DECAYS = (-0.1, 1.0, 1.1, nan, inf)


@pytest.mark.parametrize(
    ("optimizer", "argument", "out_of_range"),
    [
        (Momentum, "beta_1", DECAYS),
        (Adam, "beta_1", DECAYS),
        (Adam, "beta_2", DECAYS),
        (Adam, "tau", (0.0, -1.0, nan, inf)),
    ],
)
def test_an_argument_that_an_optimizer_cannot_use_is_named(optimizer, argument, out_of_range):
    for value in out_of_range:
        with pytest.raises(ValueError, match=f"^{argument} must "):
            optimizer(**{argument: value})
    for value in ("0.9", None, True):
        with pytest.raises(TypeError, match=f"^{argument} must "):
            optimizer(**{argument: value})


def flowers_path(given, eta, beta_1, beta_2):
    """Where Flower's FedAdam goes from 0 if its clients' updates are `given`, in float64."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        update = given[message.content["config"]["server-round"] - 1].astype(np.float64)
        moved = message.content["arrays"]["x"].numpy() - update
        content = {
            "arrays": ArrayRecord({"x": Array(moved)}),
            "metrics": MetricRecord({"num-examples": 1}),
        }
        return Message(RecordDict(content), reply_to=message)

    strategy = FedAdam(
        eta=eta, beta_1=beta_1, beta_2=beta_2, tau=1e-12, min_train_nodes=1, min_available_nodes=1
    )
    grid, path = InProcessGrid(app, 1), [np.zeros(given.shape[1])]
    for number in range(1, len(given) + 1):
        record = ArrayRecord({"x": Array(path[-1])})
        messages = strategy.configure_train(number, record, ConfigRecord(), grid)
        arrays, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
        path.append(arrays["x"].numpy())
    return np.array(path)
