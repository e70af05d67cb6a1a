"""How far the strategies come on clients whose data differ, beside FedAvg."""

import re
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.clientapp import ClientApp

from experiments.apps.heterogeneous.fedmedian_heterogeneous import client_app
from fedmedian import Payload
from tests.tools.places import DOCS

pytestmark = pytest.mark.slow


def lie(message, context, call_next):
    """Report sizes a million times the client's own, and the votes of an honest one: a mod."""
    reply = call_next(message, context)
    if context.node_config["partition-id"] == 0:
        arrays = [array.numpy() for array in reply.content["arrays"].values()]
        honest, factor = Payload.decode(arrays, reply.content["fedmedian"]), np.float32(1e6)
        reports = {step: factor * sizes for step, sizes in honest.reports.items()}
        claimed = replace(honest, reports=reports)
        reply.content["fedmedian"] = ConfigRecord(claimed.encode()[1])
    return reply


class TestAccuracyOnClientsOfOneClassEach:
    """Where plain signs fail, noisy ones and noisy medians do what FedAvg does.

    All is seeded; Ray, which sums in another order, comes to the same three digits.
    """

    @pytest.fixture(scope="class")
    @classmethod
    def runs(cls, compare):
        return compare()

    def test_fedavg_learns_and_plain_signs_do_not(self, runs):
        assert runs["FedAvg"].accuracy >= 0.93
        assert max(accuracy for _, accuracy in runs["SignSGD (no noise)"].history) <= 0.5

    @pytest.mark.parametrize("name", ["SignSGD", "MedianSGD"])
    def test_with_noise_signs_and_medians_do(self, runs, name):
        assert runs[name].accuracy >= runs["FedAvg"].accuracy - 0.02

    def test_one_of_ten_clients_that_lies_about_its_size_costs_less_than_three_points(
        self, runs, compare
    ):
        lied_to = ClientApp(mods=[lie])
        lied_to.train()(client_app.app)
        (run,) = compare("strategy='sign'", clients=lied_to).values()
        assert run.accuracy > runs["SignSGD"].accuracy - 0.03

    def test_the_start_page_says_so(self, runs):
        page = (DOCS / "index.md").read_text()
        row = re.compile(r"^\| (.+?) +\| +(0\.\d+) \| +\d+ \| +([\d,]+) \|", flags=re.MULTILINE)
        rows = {name: (accuracy, size) for name, accuracy, size in row.findall(page)}
        assert list(rows) == list(runs)
        for name, (accuracy, size) in rows.items():
            # These two end elsewhere on another processor, whose roundings differ.
            if name not in ("FedMedian", "SignSGD (no noise)"):
                assert runs[name].accuracy == pytest.approx(float(accuracy), abs=0.01)
            # Messages of another engine have other ids.
            assert runs[name].uplink_bytes == pytest.approx(int(size.replace(",", "")), rel=0.01)

    def test_fedmedian_rises_falls_and_jumps_as_the_start_page_says(self, runs):
        after = [accuracy for _, accuracy in runs["FedMedian"].history]
        assert max(after[:45]) > 0.8
        assert min(after[-10:]) < 0.4
        assert max(abs(np.diff(after[-10:]))) > 0.1

    def test_signs_send_a_twentyeighth_of_the_bytes_or_less(self, runs):
        assert runs["SignSGD"].uplink_bytes * 28 <= runs["FedAvg"].uplink_bytes


class TestAccuracyOnDirichletClients:
    """The defaults take FedAvg's place in a usual app with several local epochs."""

    @pytest.fixture(scope="class")
    @classmethod
    def runs(cls, compare):
        return compare(
            *("strategy='fedavg,sign,median'", "partition='dirichlet'", "alpha=0.3"),
            *("local-epochs=3", "batch-size=32", "learning-rate=0.1", "rounds=20"),
        )

    @pytest.mark.parametrize("name", ["SignSGD", "MedianSGD"])
    def test_signs_and_medians_come_as_far_as_fedavg_in_as_many_rounds(self, runs, name):
        # Seeded. From three seeds FedAvg came to .942 to .953, the others to .011 less at most.
        assert runs["FedAvg"].accuracy > 0.92
        assert runs[name].accuracy >= runs["FedAvg"].accuracy - 0.03
