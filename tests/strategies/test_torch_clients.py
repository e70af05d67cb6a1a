"""Clients for torch models, as the strategies of each of Flower's APIs meet them."""

import numpy as np
import pytest
from flwr.clientapp import ClientApp

from fedmedian import DivideByLearningRate, Gaussian, SecureSum
from fedmedian.rounds.watch import RunFailedError
from fedmedian.rules.trust import mean_in_proportion

pytest.importorskip("torch")

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedmedian.clients import GradientClient, SignClient, perturb

NUM_CLIENTS = 5

pytestmark = pytest.mark.usefixtures("one_thread")


def mean(values, axis):
    assert axis == 0
    return mean_in_proportion(
        np.stack(values, dtype=np.float64), np.full(NUM_CLIENTS, 1 / NUM_CLIENTS)
    )


class TestBatchNorm:
    """Arrays have no names: `exact` gives running statistics by position."""

    BATCHES = 2
    MEAN, VARIANCE, COUNTER = "4", "5", "6"  # in the order of its state dict

    @staticmethod
    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))

    def batches(self, partition):
        draws = torch.Generator().manual_seed(partition)
        data = TensorDataset(torch.randn(8, 4, generator=draws), torch.arange(8) % 3)
        return DataLoader(data, 8 // self.BATCHES)

    def statistics(self, partition):
        """A client's running mean and variance after a round."""
        model = self.model().train()
        for inputs, _ in self.batches(partition):
            model(inputs)
        state = list(model.state_dict().values())
        return state[int(self.MEAN)].numpy(), state[int(self.VARIANCE)].numpy()

    @pytest.mark.parametrize(
        ("make", "client", "combine"),
        [("SignSGD", SignClient, mean), ("MedianSGD", GradientClient, np.median)],
    )
    def test_running_statistics_of_torch_clients_travel_exactly(
        self, make, client, combine, older_api, run
    ):
        def client_fn(context):
            batches = self.batches(context.node_config["partition-id"])
            return client(context, self.model(), batches, test_loader=batches).to_client()

        state = self.model().state_dict().values()
        initial = {str(i): value.numpy() for i, value in enumerate(state)}
        strategy = older_api.make(make, exact=[self.MEAN, self.VARIANCE])
        model = run(strategy, ClientApp(client_fn=client_fn), initial, NUM_CLIENTS).model
        clients = zip(*map(self.statistics, range(NUM_CLIENTS)), strict=True)
        for position, values in zip((self.MEAN, self.VARIANCE), clients, strict=True):
            np.testing.assert_allclose(model[position], combine(values, axis=0), rtol=1e-5)
        assert model[self.COUNTER] == self.BATCHES
        assert [array.dtype for array in model.values()] == [a.dtype for a in initial.values()]
        assert not np.array_equal(model["0"], initial["0"])


class TestTorchClients:
    """Their noise is seeded, so that a bound holds always or never."""

    OPTIMA, COPIES = (1.0, 2.0, 3.0, 10.0), 500

    @pytest.mark.parametrize("api", ["numpy_clients", "older_api"])
    @pytest.mark.parametrize(
        ("make", "client"), [("SignSGD", SignClient), ("MedianSGD", GradientClient)]
    )
    def test_torch_clients_train_towards_the_mean_and_evaluate(
        self, api, make, client, request, run
    ):
        def loss(outputs, targets):
            return ((outputs - targets) ** 2).sum() / (2 * len(targets) * self.COPIES)

        def client_fn(context):
            optimum = self.OPTIMA[context.node_config["partition-id"]]
            data = TensorDataset(torch.ones(1, 1), torch.full((1, self.COPIES), optimum))
            batches, model = DataLoader(data), nn.Linear(1, self.COPIES, bias=False)
            return client(context, model, batches, loss=loss, test_loader=batches).to_client()

        strategy = request.getfixturevalue(api).make(
            make,
            Gaussian(10.0),
            client_steps=[DivideByLearningRate(1 / self.COPIES)],  # of the mean over copies
            learning_rate=0.2,
        )
        outcome = run(
            strategy,
            ClientApp(client_fn=client_fn),
            {"weight": np.full((self.COPIES, 1), 4.0, np.float32)},
            len(self.OPTIMA),
            15,
        )
        # The mean, which noise leads to; the median is 2.5.
        assert outcome.model["weight"].mean() == pytest.approx(4.0, abs=0.5)
        spread = np.mean([(4.0 - optimum) ** 2 / 2 for optimum in self.OPTIMA])
        assert outcome.evaluations[15]["loss"] > 0.9 * spread
        assert set(outcome.evaluations[15]) == {"loss"}  # these are no classes

    @pytest.mark.parametrize("client", [SignClient, GradientClient])
    def test_torch_clients_take_part_in_secure_sums_with_the_mod_alone(
        self, client, numpy_clients, run
    ):
        def client_fn(context):
            data = TensorDataset(torch.ones(1, 1), torch.full((1, 50), 2.0))
            batches, model = DataLoader(data), nn.Linear(1, 50, bias=False)
            return client(context, model, batches, loss=nn.MSELoss()).to_client()

        def play(*mods):
            strategy = numpy_clients.make(
                "SignSGD", secure=SecureSum(), weighted=False, fraction_evaluate=0.0
            )
            clients, start = ClientApp(client_fn=client_fn, mods=[*mods]), np.full((50, 1), 4.0)
            return run(strategy, clients, {"weight": start.astype(np.float32)}, 4, 4)

        outcome = play(perturb)
        assert outcome.reports[4]["replies-accepted"] == 4
        assert outcome.model["weight"].mean() < 3.95
        with pytest.raises(RunFailedError, match=r"0 of 4 gave a key: .*mods=\[perturb\]"):
            play()
