"""What a client remembers between rounds, and who it is."""

from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedmedian import Payload
from fedmedian.clients import GradientClient, InProcessGrid, LocalEpochs, perturb
from fedmedian.clients.state import partition_of, recall, remember
from fedmedian.strategies import MedianSGD, SignSGD

ALONE = {"fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1}


@pytest.fixture
def context():
    return Context(1, 11, {"partition-id": 3}, RecordDict(), {})


class TestIdentity:
    def test_is_the_partition(self, context):
        assert partition_of(context) == 3

    def test_without_one_it_is_the_node(self):
        assert partition_of(Context(1, 11, {}, RecordDict(), {})) == 11

    def test_a_partition_in_words_is_a_number_all_the_same(self):
        assert partition_of(Context(1, 11, {"partition-id": "3"}, RecordDict(), {})) == 3


class TestMemory:
    def test_is_empty_at_first(self, context):
        assert recall(context) == {}

    def test_comes_back_as_it_was(self, context):
        memory = {"m": np.array([1.5, -2.0], np.float32), "rounds": np.ones(1, np.float32)}
        remember(context, memory)
        recalled = recall(context)
        assert list(recalled) == ["m", "rounds"]
        for name, array in memory.items():
            assert recalled[name].dtype == np.float32
            np.testing.assert_array_equal(recalled[name], array)

    def test_may_be_changed_without_changing_what_was_kept(self, context):
        remember(context, {"m": np.ones(2, np.float32)})
        recall(context)["m"][:] = 7
        assert recall(context)["m"].tolist() == [1, 1]

    def test_keeps_the_last(self, context):
        for value in (1, 2):
            remember(context, {"m": np.full(2, value, np.float32)})
        assert recall(context)["m"].tolist() == [2, 2]

    def test_leaves_the_apps_own_state_alone(self, context):
        context.state["mine"] = ConfigRecord({"visits": 1})
        remember(context, {"m": np.ones(2, np.float32)})
        assert dict(context.state["mine"]) == {"visits": 1}

    def test_of_nothing_leaves_no_trace(self, context):
        remember(context, {})
        assert list(context.state) == []


@pytest.fixture
def rounds(as_record):
    """Lets one client answer a strategy's rounds; returns the vectors that it sends."""

    def rounds(strategy, reply, context, updates):
        sent = []
        grid = InProcessGrid(ClientApp(), 1)
        for number, update in enumerate(updates, start=1):
            model = as_record({"x": np.zeros(len(update), np.float32)})
            (message,) = strategy.configure_train(number, model, ConfigRecord(), grid)
            content = perturb(message, context, partial(reply, update)).content
            arrays = [array.numpy() for array in content["arrays"].values()]
            sent.append(Payload.decode(arrays, content["fedmedian"]).body)
        return sent

    return rounds


class TestMod:
    """The mod keeps the client's momentum in the context's state."""

    @pytest.fixture
    def reply(self, as_record):
        def reply(update, message, context):
            trained = as_record({"x": -np.asarray(update, np.float32)})
            return Message(RecordDict({"arrays": trained}), reply_to=message)

        return reply

    def test_remembers_the_average_of_its_updates(self, rounds, reply, context):
        strategy = MedianSGD(None, client_momentum=0.5, **ALONE)
        first, second = rounds(strategy, reply, context, [[4.0, 0.0], [1.0, 3.0]])
        np.testing.assert_allclose(first, [4.0, 0.0])
        np.testing.assert_allclose(second, [2.0, 2.0])
        assert isinstance(context.state["fedmedian"], ArrayRecord)

    def test_another_context_is_another_client(self, rounds, reply, context):
        strategy = MedianSGD(None, client_momentum=0.5, **ALONE)
        rounds(strategy, reply, context, [[4.0, 0.0]])
        other = Context(1, 12, {"partition-id": 4}, RecordDict(), {})
        (sent,) = rounds(strategy, reply, other, [[1.0, 3.0]])
        np.testing.assert_allclose(sent, [1.0, 3.0])

    def test_remembers_neither_noise_nor_clipping(self, rounds, reply, context):
        strategy = SignSGD(client_momentum=0.5, clip=1e-3, seed=1, **ALONE)
        rounds(strategy, reply, context, [[4.0, 0.0], [1.0, 3.0]])
        np.testing.assert_allclose(recall(context)["m"], [0.25 * 4 + 0.5 * 1, 0.5 * 3])

    def test_without_momentum_it_keeps_nothing(self, rounds, reply, context):
        rounds(MedianSGD(None, **ALONE), reply, context, [[4.0, 0.0]])
        assert list(context.state) == []

    def test_an_update_that_cannot_be_sent_is_not_remembered(self, as_record, reply, context):
        strategy = MedianSGD(None, client_momentum=0.5, **ALONE)
        grid, model = InProcessGrid(ClientApp(), 1), as_record({"x": np.zeros(2, np.float32)})
        (message,) = strategy.configure_train(1, model, ConfigRecord(), grid)
        assert perturb(message, context, partial(reply, [np.nan, 1.0])).has_error()
        assert recall(context) == {}


class TestTorchClient:
    """So do the torch clients, whose updates need no mod."""

    @pytest.fixture
    def step(self, context):
        """One round of a fresh client, as Flower makes one for each message."""
        draws = torch.Generator().manual_seed(0)
        data = TensorDataset(torch.randn(6, 3, generator=draws), torch.arange(6) % 2)

        def step(strategy, number, weight, work=None):
            model = nn.Linear(3, 2, bias=False)
            client = GradientClient(context, model, DataLoader(data, 6), work=work)
            record = ArrayRecord({"weight": Array(weight)})
            grid = InProcessGrid(ClientApp(), 1)
            (message,) = strategy.configure_train(number, record, ConfigRecord(), grid)
            sent, _, scalars = client.fit([weight], dict(message.content["config"]))
            return Payload.decode(sent, scalars).body

        return step

    def test_remembers_the_average_of_its_gradients(self, step):
        plain, averaging = (MedianSGD(None, client_momentum=m, **ALONE) for m in (0.0, 0.5))
        weights = [np.full((2, 3), value, np.float32) for value in (0.0, 1.0)]
        weights[1][0] = -1.0
        first, second = (step(plain, number, w) for number, w in enumerate(weights, start=1))
        assert not np.allclose(first, second)
        np.testing.assert_allclose(step(averaging, 1, weights[0]), first, rtol=1e-5)
        expected = (0.25 * first + 0.5 * second) / 0.75
        np.testing.assert_allclose(step(averaging, 2, weights[1]), expected, rtol=1e-4, atol=1e-6)

    def test_divides_local_training_by_its_learning_rate_into_a_gradient(self, step):
        weight = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
        gradient = step(MedianSGD(None, **ALONE), 1, weight)
        work = LocalEpochs(partial(torch.optim.SGD, lr=0.05))
        divided = step(MedianSGD(None, client_learning_rate=0.05, **ALONE), 1, weight, work)
        np.testing.assert_allclose(divided, gradient, rtol=1e-4, atol=1e-6)
