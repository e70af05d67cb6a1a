"""The studies: jobs that go on, hostile clients, EDEN's code, and errors of one round."""

from functools import partial
from math import pi

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from experiments.studies import nmse
from experiments.studies.federation import (
    ATTACKS,
    Clients,
    Setting,
    load,
    make_network,
    split,
)
from experiments.studies.jobs import run_jobs
from experiments.studies.random_basis import STRATEGIES, encode_with_eden, run_setting
from fedmedian.clients import InProcessGrid

DIGITS = Setting(dataset="digits", learning_rate=0.1, rounds=2)


def note(folder, name):
    """A job that notes that it ran."""
    (folder / name).touch()
    return {"name": name}


def fail(folder):
    raise RuntimeError("this job fails")


class TestJobs:
    def test_a_job_that_has_a_result_is_not_run_again(self, tmp_path):
        jobs = {name: partial(note, tmp_path, name) for name in ("a", "b")}
        first = run_jobs(jobs, tmp_path / "results", processes=1)
        assert list(first) == ["a", "b"]
        (tmp_path / "a").unlink()
        assert run_jobs(jobs, tmp_path / "results", processes=1) == first
        assert not (tmp_path / "a").exists()

    def test_a_job_that_fails_ends_the_study_and_leaves_the_results_of_those_before(self, tmp_path):
        jobs = {"a": partial(note, tmp_path, "a"), "b": partial(fail, tmp_path)}
        with pytest.raises(RuntimeError, match="this job fails"):
            run_jobs(jobs, tmp_path / "results", processes=1)
        (tmp_path / "a").unlink()
        mended = {**jobs, "b": partial(note, tmp_path, "b")}
        assert run_jobs(mended, tmp_path / "results", processes=1)["b"] == {"name": "b"}
        assert not (tmp_path / "a").exists()


class TestSettings:
    def test_a_setting_is_named_by_what_is_not_as_usual(self):
        assert str(Setting()) == ""
        assert str(Setting(partition="iid", num_clients=5)) == "partition iid, num_clients 5"

    def test_the_lone_class_is_the_last_clients_alone(self):
        labels = load("digits", 0)[1].numpy()
        held = [set(labels[rows]) for rows in split(Setting("digits", partition="lone class"), 0)]
        assert held == [set(range(9))] * 9 + [set(range(10))]


def updates_of(setting):
    """What each client sends in the first round, as (M, d)."""
    app = ClientApp()
    app.train()(Clients(setting, 0).train)
    grid = InProcessGrid(app, setting.num_clients)
    model = ArrayRecord(make_network("mlp", "digits", 0).state_dict())
    content = RecordDict({"arrays": model, "config": ConfigRecord({"server-round": 1})})
    messages = [Message(content, node, MessageType.TRAIN) for node in grid.get_node_ids()]
    sent = [reply.content["arrays"] for reply in grid.send_and_receive(messages)]
    return np.stack(
        [
            np.concatenate([(model[name].numpy() - one[name].numpy()).ravel() for name in model])
            for one in sent
        ]
    )


class TestHostileClients:
    """Two of ten, on digits; the honest ones send what they do if nobody is hostile."""

    @pytest.fixture(scope="class")
    @classmethod
    def honest(cls):
        return updates_of(DIGITS)[:8]

    def sent(self, attack):
        return updates_of(
            Setting(dataset="digits", learning_rate=0.1, attack=attack, num_hostile=2)
        )

    @pytest.mark.parametrize(
        ("attack", "multiple"),
        [
            ("minus the mean", -1.0),
            ("minus ten times the mean", -10.0),
            ("minus half the mean", -0.5),
            ("inner product", -0.1),
        ],
    )
    def test_hostile_clients_send_a_multiple_of_the_honest_mean(self, attack, multiple, honest):
        sent = self.sent(attack)
        np.testing.assert_array_equal(sent[:8], honest)
        np.testing.assert_allclose(
            sent[8:], [multiple * honest.mean(axis=0)] * 2, rtol=1e-3, atol=1e-6
        )

    def test_a_little_is_enough_is_the_mean_less_one_and_a_half_standard_deviations(self, honest):
        expected = honest.mean(axis=0) - 1.5 * honest.std(axis=0)
        np.testing.assert_allclose(self.sent("a little is enough")[9], expected, atol=1e-5)

    def test_a_mimic_sends_what_one_honest_client_does(self, honest):
        np.testing.assert_allclose(self.sent("mimic")[8:], [honest[0]] * 2, atol=1e-6)

    def test_flipped_labels_train_towards_other_classes(self, honest):
        sent, usual = self.sent("label flip"), updates_of(DIGITS)
        np.testing.assert_array_equal(sent[:8], honest)
        assert np.linalg.norm(sent[8:] - usual[8:]) > 0.1 * np.linalg.norm(usual[8:])

    def test_there_are_seven_attacks(self):
        assert len(ATTACKS) == len(set(ATTACKS)) == 7


class TestEden:
    def test_eden_decodes_updates_without_bias_at_its_published_error(self):
        """π/2 − 1 of the energy for one client; what is averaged is 200 rotations, seeded."""
        update = np.random.default_rng(0).lognormal(size=4096).astype(np.float32)
        decoded = np.stack([encode_with_eden(update, seed) for seed in range(200)])
        energy = np.mean(np.square(update))
        assert np.mean(np.square(decoded - update)) / energy == pytest.approx(pi / 2 - 1, rel=0.02)
        assert np.mean(np.square(decoded.mean(axis=0) - update)) / energy < 2 * 0.571 / 200


class TestErrorOfOneRound:
    """Of ten clients, seeded; relative to the energy of the mean."""

    @pytest.mark.parametrize(("kind", "most"), [("alike", 0.25), ("spread", 0.26)])
    def test_the_default_signs_are_within_a_factor_of_four_of_eden(self, kind, most):
        ours, theirs = (nmse.error(nmse.METHODS[name], kind, 10) for name in ("SignSGD()", "EDEN"))
        assert ours <= most
        assert ours < 4 * theirs

    def test_the_parameters_basis_costs_six_times_the_error(self):
        in_place = nmse.error(nmse.METHODS["SignSGD, parameters' basis"], "alike", 10)
        assert in_place > 6 * nmse.error(nmse.METHODS["SignSGD()"], "alike", 10)


class TestRuns:
    @pytest.mark.parametrize("strategy", list(STRATEGIES)[:9])
    def test_each_strategy_learns_digits_in_the_studies_harness(self, strategy):
        rounds = 12
        setting = Setting(
            dataset="digits", learning_rate=0.1, rounds=rounds, local_epochs=3, partition="iid"
        )
        result = run_setting(strategy, setting, 0)
        assert len(result["accuracy"]) == len(result["recall"]) == rounds
        assert result["accuracy"][-1] > 0.8
