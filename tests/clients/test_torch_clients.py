"""SignClient and GradientClient: torch models as NumPyClients."""

from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedmedian import Gaussian, Payload, unpack_signs
from fedmedian.clients import (
    FullBatchGradient,
    GradientClient,
    InProcessGrid,
    LocalEpochs,
    MiniBatchGradient,
    SignClient,
)
from fedmedian.strategies import MedianSGD, SignSGD
from fedmedian.wire import WireError

EXAMPLES = 10
OLDER_KEYS = {
    "arrayrecord_key": "fitins.parameters",
    "configrecord_key": "fitins.config",
    "weighted_by_key": "num_examples",
    "fraction_evaluate": 0.0,
}


@pytest.fixture(autouse=True)
def one_thread():
    """Models as small as these only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data():
    draws = torch.Generator().manual_seed(0)
    inputs = torch.randn(EXAMPLES, 4, generator=draws)
    return TensorDataset(inputs, torch.arange(EXAMPLES) % 3)


@pytest.fixture
def context():
    return Context(1, 2, {"partition-id": 0, "num-partitions": 1}, RecordDict(), {})


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def with_batch_norm():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def arrays_of(model):
    return [value.numpy().copy() for value in model.state_dict().values()]


def instruction(strategy, arrays):
    """What the strategy would tell its clients about a model of these arrays."""
    grid = InProcessGrid(ClientApp(), 2)
    record = ArrayRecord({str(i): Array(array) for i, array in enumerate(arrays)})
    (message, *_) = strategy.configure_train(1, record, ConfigRecord(), grid)
    return dict(message.content[strategy.configrecord_key])


def vector_of(client, strategy=None):
    """The update that a client without noise sends, from the model that it was made with."""
    arrays = arrays_of(client.model)
    sent, _, scalars = client.fit(arrays, instruction(strategy or MedianSGD(None), arrays))
    return Payload.decode(sent, scalars).body


def gradient_of(model, inputs, targets):
    model.zero_grad()
    nn.functional.cross_entropy(model(inputs), targets).backward()
    return np.concatenate([p.grad.numpy().ravel() for p in model.parameters()])


def flat(model):
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])


class TestFullBatchGradient:
    @pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 64])
    def test_it_is_the_gradient_over_all_examples_in_whatever_batches(
        self, batch_size, data, context
    ):
        client = GradientClient(context, make_model(), DataLoader(data, batch_size))
        expected = gradient_of(make_model(), *data.tensors)
        np.testing.assert_allclose(vector_of(client), expected, rtol=1e-4, atol=1e-6)

    def test_it_is_what_clients_do_if_not_told_otherwise(self, data, context):
        assert GradientClient(context, make_model(), DataLoader(data)).work == FullBatchGradient()

    def test_its_signs_are_what_a_sign_client_sends(self, data, context):
        client = SignClient(context, make_model(), DataLoader(data, 4))
        arrays = arrays_of(client.model)
        strategy = SignSGD(None, "majority", 0.1)
        sent, examples, scalars = client.fit(arrays, instruction(strategy, arrays))
        expected = gradient_of(make_model(), *data.tensors)
        signs = unpack_signs(Payload.decode(sent, scalars).body, expected.size)
        np.testing.assert_array_equal(signs, np.sign(expected))
        assert examples == EXAMPLES


class TestMiniBatchGradient:
    def test_it_is_the_gradient_over_one_batch(self, data, context):
        work = MiniBatchGradient()
        client = GradientClient(context, make_model(), DataLoader(data, 4), work=work)
        inputs, targets = data.tensors
        expected = gradient_of(make_model(), inputs[:4], targets[:4])
        np.testing.assert_allclose(vector_of(client), expected, rtol=1e-4, atol=1e-6)

    def test_every_round_takes_a_batch_of_a_shuffling_loader(self, data, context):
        loader = DataLoader(data, 2, shuffle=True, generator=torch.Generator().manual_seed(0))
        client = GradientClient(context, make_model(), loader, work=MiniBatchGradient())
        assert not np.array_equal(vector_of(client), vector_of(client))


class TestLocalEpochs:
    @pytest.mark.parametrize("epochs", [1, 3])
    @pytest.mark.parametrize(
        "optimizer",
        [
            partial(torch.optim.SGD, lr=0.1),
            partial(torch.optim.SGD, lr=0.1, momentum=0.9),
            partial(torch.optim.Adam, lr=0.01),
        ],
        ids=["sgd", "momentum", "adam"],
    )
    def test_the_update_is_what_plain_training_takes_off(self, epochs, optimizer, data, context):
        loader = DataLoader(data, 4)
        work = LocalEpochs(optimizer, epochs)
        update = vector_of(GradientClient(context, make_model(), loader, work=work))
        model = make_model()
        steps = optimizer(model.parameters())
        for _ in range(epochs):
            for inputs, targets in loader:
                steps.zero_grad()
                nn.functional.cross_entropy(model(inputs), targets).backward()
                steps.step()
        expected = flat(make_model()) - flat(model)
        np.testing.assert_allclose(update, expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize(
        ("arguments", "error", "named"),
        [
            (("sgd",), TypeError, "optimizer"),
            ((None,), TypeError, "optimizer"),
            ((torch.optim.SGD, 0), ValueError, "epochs"),
            ((torch.optim.SGD, -1), ValueError, "epochs"),
            ((torch.optim.SGD, 1.0), TypeError, "epochs"),
            ((torch.optim.SGD, None), TypeError, "epochs"),
        ],
    )
    def test_bad_arguments_are_named(self, arguments, error, named):
        with pytest.raises(error, match=f"^{named} must be"):
            LocalEpochs(*arguments)


def test_frozen_parameters_do_not_move(data, context):
    model = make_model()
    model[0].requires_grad_(False)
    update = vector_of(GradientClient(context, model, DataLoader(data, 4)))
    frozen = sum(p.numel() for p in model[0].parameters())
    assert not update[:frozen].any()
    assert update[frozen:].all()


@pytest.mark.parametrize(
    "work", [FullBatchGradient(), LocalEpochs(partial(torch.optim.SGD, lr=0.1))]
)
def test_shared_parameters_move_together(work, data, context):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    model[1].weight = model[0].weight
    update = vector_of(GradientClient(context, model, DataLoader(data, 4), work=work))
    first, second = update[:16], update[20:36]
    assert first.any()
    np.testing.assert_array_equal(first, second)


class TestBatchNorm:
    def test_running_statistics_are_no_part_of_the_update(self, data, context):
        client = GradientClient(context, with_batch_norm(), DataLoader(data, 5))
        arrays = dict(zip(client.model.state_dict(), arrays_of(client.model), strict=True))
        strategy = MedianSGD(None)
        record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
        grid = InProcessGrid(ClientApp(), 2)
        (message, *_) = strategy.configure_train(1, record, ConfigRecord(), grid)
        sent, _, scalars = client.fit(list(arrays.values()), dict(message.content["config"]))
        payload = Payload.decode(sent, scalars)
        assert payload.body.size == sum(p.numel() for p in client.model.parameters())
        state = client.model.state_dict()
        names = ("1.running_mean", "1.running_var", "1.num_batches_tracked")
        expected = b"".join(state[name].numpy().tobytes() for name in names)
        assert payload.dense.tobytes() == expected
        assert int(state["1.num_batches_tracked"]) == 2

    @pytest.mark.parametrize(
        ("kind", "strategy"),
        [
            (SignClient, lambda: SignSGD(seed=1, **OLDER_KEYS)),
            (GradientClient, lambda: MedianSGD(seed=1, **OLDER_KEYS)),
        ],
        ids=["signs", "median"],
    )
    def test_the_server_keeps_their_dtypes_and_counts_batches(self, kind, strategy, data):
        def client_fn(context):
            return kind(context, with_batch_norm(), DataLoader(data, 5)).to_client()

        initial = with_batch_norm().state_dict()
        grid = InProcessGrid(ClientApp(client_fn=client_fn), 3)
        result = strategy().start(grid, ArrayRecord(initial), 2)
        model = result.arrays.to_torch_state_dict()
        assert {n: (v.shape, v.dtype) for n, v in model.items()} == {
            n: (v.shape, v.dtype) for n, v in initial.items()
        }
        assert int(model["1.num_batches_tracked"]) == 4
        assert not torch.equal(model["1.running_mean"], initial["1.running_mean"])


class TestWithStrategies:
    @pytest.fixture
    def train(self, data):
        """Trains a model by a strategy and clients of one kind; returns losses per round."""

        def train(kind, strategy, rounds, work=None):
            def client_fn(context):
                own = slice(context.node_config["partition-id"], None, 3)
                part = TensorDataset(*(tensor[own] for tensor in data.tensors))
                return kind(context, make_model(), DataLoader(part, 4), work=work).to_client()

            losses = []

            def test(_, arrays):
                model = make_model()
                model.load_state_dict(
                    dict(
                        zip(model.state_dict(), arrays.to_torch_state_dict().values(), strict=True)
                    )
                )
                inputs, targets = data.tensors
                losses.append(nn.functional.cross_entropy(model(inputs), targets).item())

            grid = InProcessGrid(ClientApp(client_fn=client_fn), 3)
            initial = ArrayRecord(make_model().state_dict())
            strategy.start(grid, initial, rounds, evaluate_fn=test)
            return losses

        return train

    def test_fedavg_trains_them_as_any_other_client(self, train):
        work = LocalEpochs(partial(torch.optim.SGD, lr=0.5))
        for kind in (SignClient, GradientClient):
            losses = train(kind, FedAvg(**OLDER_KEYS), 20, work)
            assert losses[-1] < 0.8 * losses[0]

    def test_signs_train(self, train):
        losses = train(SignClient, SignSGD(seed=1, **OLDER_KEYS), 60)
        assert losses[-1] < 0.9 * losses[0]

    def test_the_papers_signs_train(self, train):
        strategy = SignSGD(Gaussian(0.1), "majority", 0.01, seed=1, **OLDER_KEYS)
        losses = train(SignClient, strategy, 60)
        assert losses[-1] < 0.9 * losses[0]

    def test_medians_train(self, train):
        strategy = MedianSGD(Gaussian(0.1), seed=1, **OLDER_KEYS)
        losses = train(GradientClient, strategy, 60)
        assert losses[-1] < 0.9 * losses[0]


def test_without_an_instruction_the_answer_is_the_trained_model(data, context):
    work = LocalEpochs(partial(torch.optim.SGD, lr=0.1))
    client = SignClient(context, make_model(), DataLoader(data, 4), work=work)
    before = arrays_of(make_model())
    after, examples, metrics = client.fit(before, {})
    assert examples == EXAMPLES
    assert metrics == {}
    for sent, trained, old in zip(after, arrays_of(client.model), before, strict=True):
        np.testing.assert_allclose(sent, trained, rtol=1e-5, atol=1e-7)
        assert not np.array_equal(sent, old)


@pytest.mark.parametrize(
    ("kind", "strategy", "message"),
    [
        (SignClient, MedianSGD(None), "SignClient sends 'signs', not 'vector'"),
        (GradientClient, SignSGD(), "GradientClient sends 'vector', not 'signs'"),
    ],
)
def test_a_client_of_the_wrong_kind_refuses(kind, strategy, message, data, context):
    client = kind(context, make_model(), DataLoader(data))
    arrays = arrays_of(client.model)
    with pytest.raises(WireError, match=message):
        client.fit(arrays, instruction(strategy, arrays))


def test_an_update_that_is_not_finite_is_not_sent(data, context):
    def diverge(outputs, targets):
        return outputs.sum() * float("inf")

    client = GradientClient(context, make_model(), DataLoader(data), loss=diverge)
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        vector_of(client)


def test_the_servers_arrays_stay_as_they_were(data, context):
    work = LocalEpochs(partial(torch.optim.SGD, lr=0.1))
    client = GradientClient(context, make_model(), DataLoader(data, 4), work=work)
    arrays = arrays_of(make_model())
    for array in arrays:
        array.setflags(write=False)
    client.fit(arrays, {})
    for array, original in zip(arrays, arrays_of(make_model()), strict=True):
        np.testing.assert_array_equal(array, original)


def test_parameters_are_those_of_the_model_in_its_order(data, context):
    client = SignClient(context, make_model(), DataLoader(data))
    for array, expected in zip(client.get_parameters({}), arrays_of(make_model()), strict=True):
        np.testing.assert_array_equal(array, expected)


class TestEvaluation:
    @pytest.mark.parametrize("batch_size", [3, 10])
    def test_it_returns_the_mean_loss_and_the_accuracy(self, batch_size, data, context):
        test_loader = DataLoader(data, batch_size)
        client = SignClient(context, make_model(), DataLoader(data), test_loader=test_loader)
        loss, examples, metrics = client.evaluate(arrays_of(make_model()), {})
        inputs, targets = data.tensors
        outputs = make_model()(inputs)
        assert loss == pytest.approx(nn.functional.cross_entropy(outputs, targets).item(), rel=1e-5)
        assert examples == EXAMPLES
        accuracy = float((outputs.argmax(1) == targets).float().mean())
        assert metrics == {"accuracy": pytest.approx(accuracy)}

    def test_it_leaves_running_statistics_alone(self, data, context):
        loader = DataLoader(data, 5)
        client = SignClient(context, with_batch_norm(), loader, test_loader=loader)
        client.evaluate(arrays_of(with_batch_norm()), {})
        for array, expected in zip(
            arrays_of(client.model), arrays_of(with_batch_norm()), strict=True
        ):
            np.testing.assert_array_equal(array, expected)

    def test_it_needs_test_data(self, data, context):
        client = SignClient(context, make_model(), DataLoader(data))
        with pytest.raises(ValueError, match="test_loader must be given"):
            client.evaluate(arrays_of(make_model()), {})


@pytest.mark.parametrize("kind", [SignClient, GradientClient])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("context", None),
        ("model", "resnet"),
        ("model", None),
        ("train_loader", [1, 2]),
        ("train_loader", None),
        ("test_loader", [1, 2]),
        ("work", "gradient"),
        ("loss", "cross entropy"),
        ("loss", None),
    ],
)
def test_bad_arguments_are_named(kind, name, value, data, context):
    arguments = {"context": context, "model": make_model(), "train_loader": DataLoader(data)}
    with pytest.raises(TypeError, match=f"^{name} must be"):
        kind(**{**arguments, name: value})
