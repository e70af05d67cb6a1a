"""The paper's algorithms on networks, beside the same rounds written out, and its networks."""

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from experiments.claims import figure2, figure3
from experiments.claims.training import Descent, descend, descend_all, end
from experiments.studies.federation import Setting, load, make_network, split
from fedmedian import Gaussian

DIGITS = Setting("digits", network="mlp of the paper", partition="classes", batch_size=0)
ONE_ROUND = Descent(replace(DIGITS, rounds=1), None, 0.1, "median", looks=1)


class TestARound:
    """Ten clients with a class of digits each, full batches, no noise."""

    def by_hand(self, aggregate, rate):
        """Accuracy, loss and gradient norm after a step along an aggregate of gradients."""
        model, clients = make_network(DIGITS.network, "digits", 0), split(DIGITS, 0)
        images, labels, test_images, test_labels = load("digits", 0)

        def gradients(loss):
            return torch.autograd.grad(loss, list(model.parameters()))

        def losses():
            return [cross_entropy(model(images[rows]), labels[rows]) for rows in clients]

        every = [gradients(loss) for loss in losses()]
        with torch.no_grad():
            for parameter, of_clients in zip(
                model.parameters(), zip(*every, strict=True), strict=True
            ):
                parameter -= rate * aggregate(torch.stack(of_clients))
        mean = sum(losses()) / len(clients)
        norm = torch.cat([one.flatten() for one in gradients(mean)]).norm()
        right = model(test_images).argmax(dim=1) == test_labels
        return [right.float().mean().item(), mean.item(), norm.item()]

    def measured(self, descent):
        found = descend(descent, 0)
        assert found["rounds"] == [0, 1]
        return [found[quantity][1] for quantity in ("accuracy", "loss", "gradient")]

    def test_the_median_of_the_clients_gradients_is_followed(self):
        def median(gradients):
            return torch.from_numpy(np.median(gradients.numpy(), axis=0))

        assert self.measured(ONE_ROUND) == pytest.approx(self.by_hand(median, 0.1), rel=1e-4)

    def test_the_sign_of_the_votes_sum_is_followed(self):
        """To within the coins for gradients of exactly zero: of dark pixels and silent units."""

        def majority(gradients):
            return gradients.sign().sum(dim=0).sign()

        descent = replace(ONE_ROUND, rate=0.01, algorithm="signs")
        _, loss, norm = self.measured(descent)
        assert [loss, norm] == pytest.approx(self.by_hand(majority, 0.01)[1:], rel=0.05)

    def test_a_batch_is_other_examples_in_each_round(self):
        batches = replace(ONE_ROUND, setting=replace(ONE_ROUND.setting, batch_size=8))
        assert self.measured(batches) != pytest.approx(self.measured(ONE_ROUND), rel=1e-3)

    def test_a_seed_gives_the_same_run(self):
        noisy = replace(
            ONE_ROUND, noise=Gaussian(0.1), setting=replace(DIGITS, rounds=2, batch_size=8)
        )
        assert descend(noisy, 3) == descend(noisy, 3) != descend(noisy, 4)

    def test_the_looks_are_evenly_spaced_over_the_rounds(self):
        looked = descend(replace(ONE_ROUND, setting=replace(DIGITS, rounds=6), looks=3), 0)
        assert looked["rounds"] == [0, 2, 4, 6]


def test_the_end_is_the_mean_of_the_last_fifth():
    assert end({"loss": [9.0] * 8 + [1.0, 2.0]}, "loss") == 1.5


class TestNetworksAndClients:
    def test_the_resnet_has_the_published_parameters_less_those_of_batchnorm(self):
        """0.27 million (He et al., Table 6): 269,722, of which 1,376 are BatchNorm's."""
        network = make_network("resnet-20", "cifar-10", 0)
        assert sum(one.numel() for one in network.parameters()) == 269_722 - 1376
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
        layers = [one for one in network.modules() if isinstance(one, nn.Conv2d | nn.Linear)]
        assert len(layers) == 20

    def test_the_stand_in_is_a_quarter_as_wide(self):
        network = make_network("narrow resnet-20", "fashion-mnist", 0)
        widths = [one.out_channels for one in network.modules() if isinstance(one, nn.Conv2d)]
        assert widths == [4] * 7 + [8] * 6 + [16] * 6
        assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)

    def test_the_papers_mlp_starts_from_truncated_normals(self):
        network = make_network("mlp of the paper", "mnist", 0)
        first, _ = (one for one in network if isinstance(one, nn.Linear))
        assert first.weight.shape == (128, 784)
        assert first.weight.abs().max().item() <= 2 / sqrt(784)
        # A normal's, cut off at two deviations, is .880 of its standard deviation.
        assert first.weight.std().item() == pytest.approx(0.880 / sqrt(784), rel=0.02)
        assert not first.bias.any()

    def test_two_classes_each_are_those_of_two_clients(self):
        labels = load("digits", 0)[1].numpy()
        rows = split(replace(DIGITS, partition="two classes"), 0)
        held = [set(labels[mine].tolist()) for mine in rows]
        assert [len(classes) for classes in held] == [2] * 10
        assert sorted(one for classes in held for one in classes) == sorted([*range(10)] * 2)
        assert sorted(np.concatenate(rows)) == list(range(len(labels)))


class TestClaims:
    """Runs and checks; what was found is tried by test_claims."""

    def runs(self, **ends):
        return {
            noise: {"accuracy": [accuracy], "gradient": [gradient], "loss": [1.0], "rounds": [1]}
            for noise, (accuracy, gradient) in ends.items()
        }

    def test_noise_that_does_not_help_fails_figure_2(self):
        def found(accuracy, gradient):
            runs = self.runs(**{"none": (0.2, 9.0), "b = 0.01": (accuracy, gradient)})
            return {"runs": {figure2.ONE: runs}}

        assert figure2.check(found(0.5, 3.0)) == []
        assert figure2.check(found(0.3, 3.0)) == [
            "one class each: b = 0.01 ends at 0.300, without noise at 0.200"
        ]
        assert figure2.check(found(0.5, 8.0)) == [
            "one class each: the gradient is 8 with b = 0.01, 9 without"
        ]

    def test_noise_that_does_not_help_fails_figure_3(self):
        runs = self.runs(**{"none": (0.5, 1.0), figure3.NOISY: (0.52, 1.0)})
        assert figure3.check({"runs": {figure3.ONE: runs}}) == [
            "one class each: b = .1 × maximum ends at 0.520, without noise at 0.500"
        ]

    def test_the_step_is_divided_where_the_paper_divides_it(self):
        one = figure3.descents(figure3.PAPERS, 1.0)[figure3.ONE]["none"]
        divisors = {1: 1, 1000: 1, 1001: 2, 3000: 2, 3001: 10, 5000: 10, 5001: 20, 7000: 20}
        for server_round, divisor in divisors.items():
            assert one.rate(server_round) == 1 / divisor, server_round

    @pytest.mark.slow
    def test_a_run_that_is_kept_is_not_run_again(self, tmp_path, monkeypatch):
        monkeypatch.setattr("experiments.claims.training.RESULTS", tmp_path)
        groups = {"a group": {"none": ONE_ROUND}}
        first = descend_all(groups, quick=False)
        assert first == descend_all(groups, quick=True)
        (kept,) = tmp_path.iterdir()
        kept.write_text(kept.read_text().replace('"loss"', '"kept"'))
        again = descend_all(groups, quick=False)["runs"]["a group"]["none"]
        assert "kept" in again
