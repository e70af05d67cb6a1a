"""SignClient and GradientClient: torch models as NumPyClients."""

from functools import partial

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedmedian import (
    ClientMomentum,
    DivideByLearningRate,
    Gaussian,
    Majority,
    Payload,
    unpack_signs,
)
from fedmedian.steps.base import UpdateError
from fedmedian.strategies import MedianSGD, SignSGD
from fedmedian.wire.scalars import WireError

pytest.importorskip("torch")

import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    TensorDataset,
)

from fedmedian.clients import (
    FullBatchGradient,
    GradientClient,
    InProcessGrid,
    LocalEpochs,
    MiniBatchGradient,
    SignClient,
)

EXAMPLES = 10
OLDER_KEYS = {
    "arrayrecord_key": "fitins.parameters",
    "configrecord_key": "fitins.config",
    "weighted_by_key": "num_examples",
    "fraction_evaluate": 0.0,
}
EPOCH = LocalEpochs(partial(torch.optim.SGD, lr=0.5))
OURS = {"numpy_clients": True, "fraction_evaluate": 0.0, "seed": 1}

pytestmark = pytest.mark.usefixtures("one_thread")


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


def instruction(strategy, arrays, server_round=1):
    """What the strategy would tell its clients about a model of these arrays."""
    grid = InProcessGrid(ClientApp(), 2)
    record = ArrayRecord({str(i): Array(array) for i, array in enumerate(arrays)})
    (message, *_) = strategy.configure_train(server_round, record, ConfigRecord(), grid)
    return dict(message.content[strategy.configrecord_key])


def vector_of(client, strategy=None):
    """The update that a client without noise sends, from the model that it was made with."""
    arrays = arrays_of(client.model)
    sent, _, scalars = client.fit(
        arrays, instruction(strategy or MedianSGD(None, rotation=None), arrays)
    )
    return Payload.decode(sent, scalars).body


def gradient_of(model, inputs, targets):
    model.zero_grad()
    nn.functional.cross_entropy(model(inputs), targets).backward()
    return np.concatenate([p.grad.numpy().ravel() for p in model.parameters()])


def flat(model):
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])


class TestFullBatchGradient:
    @pytest.mark.parametrize("batch_size", [1, 3, 64])
    def test_the_update_is_the_gradient_over_all_examples_in_whatever_batches(
        self, batch_size, data, context
    ):
        client = GradientClient(context, make_model(), DataLoader(data, batch_size))
        expected = gradient_of(make_model(), *data.tensors)
        np.testing.assert_allclose(vector_of(client), expected, rtol=1e-4, atol=1e-6)

    def test_the_full_gradient_is_the_work_of_clients_that_are_given_none(self, data, context):
        assert GradientClient(context, make_model(), DataLoader(data)).work == FullBatchGradient()

    @pytest.mark.parametrize(
        ("examples", "options"),
        [
            pytest.param(3, {"batch_size": 2, "sampler": range(3)}, id="a sampler of some"),
            pytest.param(8, {"batch_size": 4, "drop_last": True}, id="drop_last"),
            pytest.param(
                2, {"batch_sampler": BatchSampler(range(3), 2, True)}, id="batches of a sampler"
            ),
            pytest.param(
                3,
                {"batch_size": None, "sampler": BatchSampler(range(3), 2, False)},
                id="a sampler of batches",
            ),
        ],
    )
    def test_examples_are_those_that_the_loader_yields(self, data, context, examples, options):
        few = TensorDataset(*(tensor[:examples] for tensor in data.tensors))
        loader = DataLoader(data, **options)
        client = GradientClient(context, make_model(), loader, test_loader=loader)
        expected = gradient_of(make_model(), *few.tensors)
        np.testing.assert_allclose(vector_of(client), expected, rtol=1e-4, atol=1e-6)
        arrays = arrays_of(make_model())
        assert client.fit(arrays, {})[1] == examples
        alone = GradientClient(context, make_model(), loader, test_loader=DataLoader(few))
        loss, number, metrics = alone.evaluate(arrays, {})
        assert client.evaluate(arrays, {}) == (pytest.approx(loss), number, metrics)


class TestMiniBatchGradient:
    def test_the_update_is_the_gradient_over_one_batch(self, data, context):
        work = MiniBatchGradient()
        client = GradientClient(context, make_model(), DataLoader(data, 4), work=work)
        inputs, targets = data.tensors
        expected = gradient_of(make_model(), inputs[:4], targets[:4])
        np.testing.assert_allclose(vector_of(client), expected, rtol=1e-4, atol=1e-6)

    def test_each_round_takes_another_batch_of_a_loader_that_shuffles(self, data, context):
        loader = DataLoader(data, 2, shuffle=True, generator=torch.Generator().manual_seed(0))
        client = GradientClient(context, make_model(), loader, work=MiniBatchGradient())
        assert not np.array_equal(vector_of(client), vector_of(client))


class TestLocalEpochs:
    @pytest.mark.parametrize(
        ("optimizer", "epochs"),
        [
            (partial(torch.optim.SGD, lr=0.1), 1),
            (partial(torch.optim.SGD, lr=0.1, momentum=0.9), 3),
            (partial(torch.optim.Adam, lr=0.01), 3),
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

    def test_one_step_over_its_learning_rate_is_the_gradient(self, data, context):
        work = LocalEpochs(partial(torch.optim.SGD, lr=0.05))
        client = GradientClient(context, make_model(), DataLoader(data, 10), work=work)
        strategy = MedianSGD(None, rotation=None, client_steps=[DivideByLearningRate(0.05)])
        expected = gradient_of(make_model(), *data.tensors)
        np.testing.assert_allclose(vector_of(client, strategy), expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize(
        ("arguments", "error", "named"),
        [
            (("sgd",), TypeError, "optimizer"),
            ((torch.optim.SGD, 0), ValueError, "epochs"),
            ((torch.optim.SGD, 1.0), TypeError, "epochs"),
        ],
    )
    def test_bad_arguments_of_local_epochs_are_named(self, arguments, error, named):
        with pytest.raises(error, match=f"^{named} "):
            LocalEpochs(*arguments)


class TestUpdate:
    @pytest.mark.parametrize(
        "view",
        [
            lambda update: update.T.contiguous().T,
            lambda update: torch.stack([update, -update], dim=-1)[..., 0],
            lambda update: update[:1, :1].expand(update.shape),
        ],
        ids=["transposed", "every second", "expanded"],
    )
    def test_an_update_may_be_a_view(self, view, data, context):
        update = view(torch.arange(20.0).reshape(5, 4) + 1)
        client = GradientClient(
            context, make_model(), DataLoader(data), work=lambda *_: {"0.weight": update}
        )
        np.testing.assert_array_equal(vector_of(client)[:20], update.flatten())

    def test_a_sign_client_sends_the_signs_of_its_gradient(self, data, context):
        client = SignClient(context, make_model(), DataLoader(data, 4))
        arrays = arrays_of(client.model)
        strategy = SignSGD(None, Majority(), 0.1, rotation=None)
        sent, examples, scalars = client.fit(arrays, instruction(strategy, arrays))
        expected = gradient_of(make_model(), *data.tensors)
        signs = unpack_signs(Payload.decode(sent, scalars).body, expected.size)
        np.testing.assert_array_equal(signs, np.sign(expected))
        assert examples == EXAMPLES

    def test_frozen_parameters_do_not_move(self, data, context):
        model = make_model()
        model[0].requires_grad_(False)
        update = vector_of(GradientClient(context, model, DataLoader(data, 4)))
        frozen = sum(p.numel() for p in model[0].parameters())
        assert not update[:frozen].any()
        assert update[frozen:].all()

    @pytest.mark.parametrize(
        "work",
        [FullBatchGradient(), EPOCH],
        ids=["gradient", "epochs"],
    )
    def test_parameters_that_layers_share_move_together(self, work, data, context):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
        model[1].weight = model[0].weight
        update = vector_of(GradientClient(context, model, DataLoader(data, 4), work=work))
        first, second = update[:16], update[20:36]
        assert first.any()
        np.testing.assert_array_equal(first, second)

    def test_buffers_move_as_training_moves_them(self, data, context):
        model = with_batch_norm()
        model.register_buffer("mask", torch.full((2,), -torch.inf))
        update = vector_of(GradientClient(context, model, DataLoader(data, 5)))
        moved = with_batch_norm()[1].running_mean - model[1].running_mean
        start = 2 + flat(model[:2]).size  # after the mask and the parameters of two layers
        assert moved.all()
        np.testing.assert_array_equal(update[start : start + len(moved)], moved)
        assert not update[:2].any()

    def test_a_torch_client_remembers_momentum_from_round_to_round(self, data, context):
        def vector(model, strategy, server_round):
            # Flower makes a client of its own for each message, and keeps the context.
            client = GradientClient(context, model, DataLoader(data))
            arrays = arrays_of(model)
            told = instruction(strategy, arrays, server_round)
            sent, _, scalars = client.fit(arrays, told)
            return Payload.decode(sent, scalars).body

        plain, averaging = (
            MedianSGD(None, rotation=None),
            MedianSGD(None, rotation=None, client_steps=[ClientMomentum(0.5)]),
        )
        other = make_model()
        with torch.no_grad():
            other[0].weight.neg_()
        first, second = vector(make_model(), plain, 1), vector(other, plain, 2)
        assert not np.allclose(first, second)
        np.testing.assert_allclose(vector(make_model(), averaging, 1), first, rtol=1e-5)
        expected = (0.25 * first + 0.5 * second) / 0.75
        np.testing.assert_allclose(vector(other, averaging, 2), expected, rtol=1e-4, atol=1e-6)

    def test_an_update_that_is_not_finite_is_not_sent(self, data, context):
        def diverge(outputs, targets):
            return outputs.sum() * float("inf")

        client = GradientClient(context, make_model(), DataLoader(data), loss=diverge)
        with pytest.raises(UpdateError, match=r"'0\.weight'"):
            vector_of(client)

    @pytest.mark.parametrize(
        ("kind", "strategy", "named"),
        [
            (
                SignClient,
                MedianSGD(None, rotation=None),
                "SignClient .*'signs'.*'vector': .*GradientClient for MedianSGD",
            ),
            (GradientClient, SignSGD(), "GradientClient .*'vector'.*'signs': SignClient is for"),
        ],
        ids=["signs", "vector"],
    )
    def test_a_client_refuses_to_send_another_kind(self, kind, strategy, named, data, context):
        client = kind(context, make_model(), DataLoader(data))
        arrays = arrays_of(client.model)
        with pytest.raises(WireError, match=named):
            client.fit(arrays, instruction(strategy, arrays))


class TestModel:
    def test_without_an_instruction_the_answer_is_the_trained_model(self, data, context):
        client = SignClient(context, make_model(), DataLoader(data, 4), work=EPOCH)
        before = arrays_of(make_model())
        after, examples, metrics = client.fit(before, {})
        assert examples == EXAMPLES
        assert metrics == {}
        for sent, trained, old in zip(after, arrays_of(client.model), before, strict=True):
            np.testing.assert_allclose(sent, trained, rtol=1e-5, atol=1e-7)
            assert not np.array_equal(sent, old)

    def test_the_servers_arrays_are_never_written_to(self, data, context):
        client = GradientClient(context, make_model(), DataLoader(data, 4), work=EPOCH)
        arrays = arrays_of(make_model())
        for array in arrays:
            array.setflags(write=False)
        client.fit(arrays, {})
        for array, original in zip(arrays, arrays_of(make_model()), strict=True):
            np.testing.assert_array_equal(array, original)

    def test_parameters_are_those_of_the_model_in_its_order(self, data, context):
        client = SignClient(context, make_model(), DataLoader(data))
        for array, expected in zip(client.get_parameters({}), arrays_of(make_model()), strict=True):
            np.testing.assert_array_equal(array, expected)

    def test_running_statistics_are_sent_exactly_and_are_no_part_of_the_update(self, data, context):
        client = GradientClient(context, with_batch_norm(), DataLoader(data, 5))
        arrays = dict(zip(client.model.state_dict(), arrays_of(client.model), strict=True))
        record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
        grid = InProcessGrid(ClientApp(), 2)
        (message, *_) = MedianSGD(None, rotation=None).configure_train(
            1, record, ConfigRecord(), grid
        )
        sent, _, scalars = client.fit(list(arrays.values()), dict(message.content["config"]))
        payload = Payload.decode(sent, scalars)
        assert payload.body.size == sum(p.numel() for p in client.model.parameters())
        state = client.model.state_dict()
        names = ("1.running_mean", "1.running_var", "1.num_batches_tracked")
        expected = b"".join(state[name].numpy().tobytes() for name in names)
        assert payload.exact.tobytes() == expected
        assert int(state["1.num_batches_tracked"]) == 2


class TestTraining:
    """Torch clients in the rounds of a strategy; all draws follow from seeds."""

    @pytest.mark.parametrize(
        ("kind", "strategy"), [(SignClient, SignSGD), (GradientClient, MedianSGD)]
    )
    def test_the_server_keeps_dtypes_and_counts_batches(self, kind, strategy, data):
        def client_fn(context):
            return kind(context, with_batch_norm(), DataLoader(data, 5)).to_client()

        initial = with_batch_norm().state_dict()
        grid = InProcessGrid(ClientApp(client_fn=client_fn), 3)
        result = strategy(**OURS).start(grid, ArrayRecord(initial), 2)
        model = result.arrays.to_torch_state_dict()
        assert {n: (v.shape, v.dtype) for n, v in model.items()} == {
            n: (v.shape, v.dtype) for n, v in initial.items()
        }
        assert int(model["1.num_batches_tracked"]) == 4
        assert not torch.equal(model["1.running_mean"], initial["1.running_mean"])

    @pytest.mark.parametrize(
        ("kind", "work", "make"),
        [
            (SignClient, None, lambda: SignSGD(**OURS)),
            (SignClient, None, lambda: SignSGD(Gaussian(0.1), Majority(), 0.02, **OURS)),
            (GradientClient, None, lambda: MedianSGD(Gaussian(0.1), **OURS)),
            (SignClient, EPOCH, lambda: FedAvg(**OLDER_KEYS)),
        ],
        ids=["counts", "majority", "median", "fedavg"],
    )
    def test_the_loss_of_torch_clients_falls(self, kind, work, make, data):
        def client_fn(context):
            own = slice(context.node_config["partition-id"], None, 3)
            part = TensorDataset(*(tensor[own] for tensor in data.tensors))
            return kind(context, make_model(), DataLoader(part, 4), work=work).to_client()

        losses = []

        def test(_, arrays):
            model = make_model()
            values = arrays.to_torch_state_dict().values()
            model.load_state_dict(dict(zip(model.state_dict(), values, strict=True)))
            inputs, targets = data.tensors
            losses.append(nn.functional.cross_entropy(model(inputs), targets).item())

        grid = InProcessGrid(ClientApp(client_fn=client_fn), 3)
        make().start(grid, ArrayRecord(make_model().state_dict()), 20, evaluate_fn=test)
        assert losses[-1] < 0.9 * losses[0]


class InHalf(nn.Module):
    """A model of half precision, for data of single precision."""

    def __init__(self, dtype):
        super().__init__()
        self.inner = make_model().to(dtype)

    def forward(self, inputs):
        return self.inner(inputs.to(self.inner[0].weight.dtype)).float()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
class TestHalfPrecision:
    @pytest.fixture(autouse=True)
    def needs_the_dtype(self, dtype):
        if dtype == torch.bfloat16:
            pytest.importorskip("ml_dtypes")

    def test_an_update_of_half_precision_is_a_difference_in_single_precision(
        self, dtype, data, context
    ):
        client = GradientClient(context, InHalf(dtype), DataLoader(data, 4), work=EPOCH)
        arrays = [array.copy() for array in client.get_parameters({})]
        strategy = MedianSGD(None, rotation=None)
        sent, _, scalars = client.fit(arrays, instruction(strategy, arrays))
        after = torch.cat([p.detach().float().ravel() for p in client.model.parameters()])
        before = np.concatenate([array.astype(np.float32).ravel() for array in arrays])
        update = Payload.decode(sent, scalars).body
        np.testing.assert_array_equal(update, before - after.numpy())

    @pytest.mark.parametrize(
        ("kind", "strategy"), [(SignClient, SignSGD), (GradientClient, MedianSGD)]
    )
    def test_the_loss_falls_and_the_model_keeps_its_dtype(self, kind, strategy, dtype, data):
        def client_fn(context):
            return kind(context, InHalf(dtype), DataLoader(data, 5), work=EPOCH).to_client()

        start = GradientClient(
            Context(1, 2, {}, RecordDict(), {}), InHalf(dtype), DataLoader(data)
        ).get_parameters({})
        record = ArrayRecord({str(i): Array(array) for i, array in enumerate(start)})
        grid = InProcessGrid(ClientApp(client_fn=client_fn), 3)
        result = strategy(**OURS).start(grid, record, 10)
        assert {array.dtype for array in result.arrays.values()} == {str(start[0].dtype)}
        losses = []
        for arrays in (record, result.arrays):
            loader = DataLoader(data, 5)
            client = SignClient(
                Context(1, 2, {}, RecordDict(), {}), InHalf(dtype), loader, test_loader=loader
            )
            losses.append(client.evaluate([one.numpy() for one in arrays.values()], {})[0])
        assert losses[1] < 0.9 * losses[0]

    def test_other_strategies_get_the_trained_model_in_its_dtype(self, dtype, data, context):
        client = SignClient(context, InHalf(dtype), DataLoader(data, 4), work=EPOCH)
        start = [array.copy() for array in client.get_parameters({})]
        trained, _, metrics = client.fit(start, {})
        assert metrics == {}
        for array, value in zip(trained, client.model.state_dict().values(), strict=True):
            assert array.dtype == start[0].dtype
            np.testing.assert_array_equal(array.astype(np.float32), value.float().numpy())


class TestEvaluation:
    @pytest.mark.parametrize("batch_size", [3, 10])
    def test_evaluation_returns_the_mean_loss_and_the_accuracy(self, batch_size, data, context):
        test_loader = DataLoader(data, batch_size)
        client = SignClient(context, make_model(), DataLoader(data), test_loader=test_loader)
        loss, examples, metrics = client.evaluate(arrays_of(make_model()), {})
        inputs, targets = data.tensors
        outputs = make_model()(inputs)
        assert loss == pytest.approx(nn.functional.cross_entropy(outputs, targets).item(), rel=1e-5)
        assert examples == EXAMPLES
        accuracy = float((outputs.argmax(1) == targets).float().mean())
        assert metrics == {"accuracy": pytest.approx(accuracy)}

    @pytest.mark.parametrize(
        ("form", "targets", "loss", "accuracy"),
        [
            pytest.param((2,), [1, 1, 1, 0], nn.functional.cross_entropy, 0.75, id="classes"),
            pytest.param(
                (2, 2),
                [[1, 1], [1, 0], [0, 0], [1, 1]],
                nn.functional.cross_entropy,
                0.625,
                id="classes of pixels",
            ),
            pytest.param((1,), [[0.0], [1.0], [0.0], [0.0]], None, None, id="one logit"),
            pytest.param((1,), [0, 1, 0, 0], None, None, id="one logit for integers"),
            pytest.param((), [0.0, 1.0, 0.0, 2.0], None, None, id="numbers"),
            pytest.param((3,), [0.0, 1.0, 0.0, 2.0], None, None, id="quantiles of numbers"),
            pytest.param((2,), [[0, 1]] * 4, None, None, id="several labels"),
        ],
    )
    def test_the_accuracy_is_that_of_classes_and_missing_elsewhere(
        self, form, targets, loss, accuracy, context
    ):
        """The model scores the last class highest."""

        class Fixed(nn.Module):
            def forward(self, inputs):
                scores = torch.zeros(len(inputs), *form)
                if form:
                    scores[:, -1] = 1
                return scores

        loader = DataLoader(TensorDataset(torch.zeros(4, 1), torch.tensor(targets)), 3)
        loss = loss or (lambda outputs, targets: outputs.mean())
        client = SignClient(context, Fixed(), loader, loss=loss, test_loader=loader)
        _, examples, metrics = client.evaluate([], {})
        assert examples == 4
        assert metrics == ({} if accuracy is None else {"accuracy": accuracy})

    def test_evaluation_leaves_running_statistics_alone(self, data, context):
        loader = DataLoader(data, 5)
        client = SignClient(context, with_batch_norm(), loader, test_loader=loader)
        client.evaluate(arrays_of(with_batch_norm()), {})
        for array, expected in zip(
            arrays_of(client.model), arrays_of(with_batch_norm()), strict=True
        ):
            np.testing.assert_array_equal(array, expected)

    def test_evaluation_without_test_data_is_refused(self, data, context):
        client = SignClient(context, make_model(), DataLoader(data))
        with pytest.raises(ValueError, match=r"^test_loader .*fraction_evaluate=0\.0$"):
            client.evaluate(arrays_of(make_model()), {})


def test_arrays_of_another_model_are_refused_with_both_numbers(data, context):
    """As those of ``model.parameters()``, which lack BatchNorm's buffers."""
    client = SignClient(context, with_batch_norm(), DataLoader(data))
    parameters = [value.detach().numpy() for value in with_batch_norm().parameters()]
    with pytest.raises(ValueError, match=r"sent 6 arrays, and the model's state dict has 9: "):
        client.fit(parameters, {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("context", None),
        ("model", "resnet"),
        ("train_loader", [1, 2]),
        ("test_loader", [1, 2]),
        ("work", "gradient"),
        ("loss", None),
    ],
)
def test_bad_arguments_of_a_torch_client_are_named(name, value, data, context):
    arguments = {"context": context, "model": make_model(), "train_loader": DataLoader(data)}
    with pytest.raises(TypeError, match=f"^{name} "):
        SignClient(**{**arguments, name: value})
