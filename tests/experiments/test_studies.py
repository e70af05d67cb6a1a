"""The studies: hostile clients, errors of one round, robustness."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from experiments.studies import apps, figures, half, nmse, noise_choices, privacy, robustness
from experiments.studies.federation import (
    ADAPTIVE,
    ATTACKS,
    CLAIMED,
    MORE_ATTACKS,
    Clients,
    Setting,
    load,
    make_network,
    simulate,
    split,
)
from experiments.studies.random_basis import USUAL, run_setting
from fedmedian import Adam, Aggregator, Answers, Blocks
from fedmedian.clients import InProcessGrid, perturb
from fedmedian.strategies import MedianSGD, SignSGD
from tests.tools.jobs import run_here

DIGITS = Setting(dataset="digits", learning_rate=0.1, rounds=2, local_steps=2)


class TestSettings:
    def test_a_setting_is_named_by_what_is_not_as_usual(self):
        assert str(Setting()) == ""
        assert str(Setting(partition="iid", num_clients=5)) == "partition iid, num_clients 5"

    def test_the_lone_class_is_the_last_clients_alone(self):
        labels = load("digits", 0)[1].numpy()
        held = [set(labels[rows]) for rows in split(Setting("digits", partition="lone class"), 0)]
        assert held == [set(range(9))] * 9 + [set(range(10))]

    def test_a_shared_class_is_that_of_the_last_two_clients(self):
        labels = load("digits", 0)[1].numpy()
        rows = split(Setting("digits", partition="shared class"), 0)
        assert [9 in labels[one] for one in rows] == [False] * 8 + [True] * 2
        assert sorted(np.concatenate(rows)) == list(range(len(labels)))

    def test_sorted_shards_are_the_honest_clients_and_hostile_ones_hold_all(self):
        setting = Setting("digits", partition="sorted", num_clients=7, num_hostile=2)
        labels = load("digits", 0)[1].numpy()
        *shards, first, last = split(setting, 0)
        assert np.concatenate(shards).size == first.size == last.size == labels.size
        np.testing.assert_array_equal(labels[np.concatenate(shards)], np.sort(labels))


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
        return updates_of(replace(DIGITS, attack=attack, num_hostile=2))

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

    def test_there_are_seven_attacks_in_all_studies(self):
        assert len(ATTACKS) == len(set(ATTACKS)) == 7

    @pytest.mark.parametrize("attack", [*MORE_ATTACKS, *ADAPTIVE])
    def test_the_attacks_of_one_study_change_what_hostile_clients_send(self, attack, honest):
        sent, usual = self.sent(attack), updates_of(DIGITS)
        np.testing.assert_array_equal(sent[:8], honest)
        assert np.isfinite(sent).all()
        if attack == "sign flip":
            np.testing.assert_allclose(sent[8:], -usual[8:], atol=1e-6)
        else:
            assert np.linalg.norm(sent[8:] - usual[8:]) > 0.1 * np.linalg.norm(usual[8:])


class TestLocalTraining:
    def test_one_step_of_adam_moves_parameters_by_its_rate_at_most(self):
        sent = updates_of(replace(DIGITS, optimizer="adam", local_steps=1))
        assert np.abs(sent).max() == pytest.approx(0.1, rel=1e-3)

    def test_a_client_with_momentum_begins_with_a_share_of_its_update(self):
        sent, usual = updates_of(replace(DIGITS, client_momentum=0.75)), updates_of(DIGITS)
        np.testing.assert_allclose(sent, usual / 4, atol=1e-6)

    def test_a_client_keeps_its_momentum_from_round_to_round(self):
        """Asked twice about one model, it has sent 1/4 of one update, then 3/16 more and 1/4."""
        clients = Clients(replace(DIGITS, client_momentum=0.75), 0)
        update = np.ones(3, dtype=np.float32)
        sent = [clients._average((0, "x"), update) for _ in range(2)]
        np.testing.assert_allclose(sent, [[1 / 4] * 3, [7 / 16] * 3])


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


@pytest.mark.slow
class TestRuns:
    @pytest.mark.parametrize("strategy", USUAL)
    def test_each_strategy_learns_digits_in_the_studies_harness(self, strategy):
        setting = Setting(
            "digits", learning_rate=0.3, rounds=4, local_epochs=3, num_clients=5, partition="iid"
        )
        result = run_setting(strategy, setting, 0)
        assert len(result["accuracy"]) == len(result["recall"]) == 4
        assert result["accuracy"][-1] > 0.8


class TestNoiseChoices:
    @pytest.mark.parametrize("name", ["families", "estimators"])
    def test_every_strategy_of_a_table_can_be_made(self, name, monkeypatch):
        made = []

        def make_only(name, make, overrides):
            made.append(make(seed=1))

        monkeypatch.setattr(noise_choices, "run_digits", make_only)
        monkeypatch.setattr(noise_choices, "late_accuracy", lambda _: 0.5)
        rows = noise_choices.TABLES[name]().splitlines()[2:]
        assert len(made) == 2 * len(rows)  # each on two kinds of clients
        assert len({row.split("|")[1] for row in rows}) == len(rows)


class TestRulesOfOthers:
    """CClip and NNM as the study writes them, beside their papers' formulas."""

    updates = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32)

    def test_clipping_with_a_large_radius_is_the_mean(self):
        rule = robustness.CenteredClipping(1e3, seed=0)
        for _ in range(3):
            np.testing.assert_allclose(rule(self.updates), self.updates.mean(axis=0), atol=1e-5)

    def test_clipping_moves_its_center_by_no_more_than_the_radius(self):
        rule, before = robustness.CenteredClipping(0.5, seed=0), np.zeros(40)
        for _ in range(4):
            after = rule(self.updates + 100)
            assert np.linalg.norm(after - before) == pytest.approx(0.5, rel=1e-3)
            before = after

    def test_buckets_hold_two_clients_and_the_last_what_is_left(self):
        """Of 2 · e_i only buckets of two are shorter than 2, by √2; one is left over."""
        rule = robustness.CenteredClipping(1.0, seed=0)
        assert sorted(rule(2 * np.eye(5, dtype=np.float32))) == pytest.approx(
            [1 / 2**0.5 / 3] * 4 + [1 / 3]
        )

    def test_mixing_with_nearest_neighbors_leaves_no_trace_of_outliers(self):
        honest, outliers = self.updates[:4], np.full((2, 40), 50, dtype=np.float32)
        mixed = robustness.mixed_trimmed_mean(np.vstack([honest, outliers]), 2)
        # Each honest one is mixed with the honest ones; of two at each end, outliers are trimmed.
        np.testing.assert_allclose(mixed, honest.mean(axis=0), atol=1e-5)

    def test_mixing_by_angle_is_that_of_vectors_of_one_length(self):
        norms = np.linalg.norm(self.updates, axis=1, keepdims=True)
        expected = robustness.mixed_trimmed_mean(self.updates / norms * np.median(norms), 2)
        found = robustness.mixed_by_angle(
            self.updates * np.float32([[1], [9], [1], [4], [1], [2]]), 2
        )
        aim = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
        assert aim == pytest.approx(1, abs=1e-5)

    def test_no_vector_near_the_geometric_median_has_a_smaller_sum_of_distances(self):
        found = robustness.geometric_median(self.updates, iterations=100)

        def total(center):
            return np.linalg.norm(self.updates - center, axis=1).sum()

        moves = np.random.default_rng(1).normal(size=(20, 40)) * 0.05
        assert total(found) <= min(total(found + move) for move in moves)

    def test_buckets_are_means_of_two_with_equal_weights(self):
        answers = Answers(list(self.updates), np.full(6, 1 / 6), Blocks((40,)))

        class Kept(Aggregator):
            def direction(self, answers, rng):
                self.rows, self.weights = answers.vectors(rng), answers.weights
                return self.rows[0]

        robustness.Buckets(kept := Kept()).direction(answers, np.random.default_rng(0))
        np.testing.assert_allclose(kept.rows.sum(axis=0), self.updates.sum(axis=0) / 2, rtol=1e-4)
        assert kept.weights.tolist() == [1 / 3] * 3

    def test_mixing_is_a_trimmed_mean_of_means(self):
        distances = np.linalg.norm(self.updates[:, None] - self.updates, axis=2)
        means = [self.updates[np.argsort(row)[:4]].mean(axis=0) for row in distances]
        expected = np.sort(means, axis=0)[2:4].mean(axis=0)
        np.testing.assert_allclose(
            robustness.mixed_trimmed_mean(self.updates, 2), expected, atol=1e-5
        )


def test_testing_the_last_rounds_alone_finds_what_testing_all_does():
    every, last = (
        run_setting("FedAvg", replace(DIGITS, rounds=4, tested=tested), seed=0) for tested in (0, 2)
    )
    assert len(every["accuracy"]) == 4
    assert last["accuracy"] == every["accuracy"][2:]


def test_the_study_of_half_precision_has_a_row_for_each_strategy_and_dtype(monkeypatch):
    pytest.importorskip("ml_dtypes")
    monkeypatch.setattr(half, "run_jobs", run_here)
    monkeypatch.setattr(half, "ROUNDS", {0.1: 1})
    _, _, *rows = half.accuracy_table(seeds=[0]).splitlines()
    named = [[cell.strip() for cell in row.split("|")[1:3]] for row in rows]
    assert named == [list(one) for one in half.CELLS]
    assert all(0.1 < float(row.split("|")[3]) <= 1 for row in rows)


class TestApps:
    SMALL = Setting("digits", learning_rate=0.1, rounds=2, num_clients=3, partition="iid")

    def test_the_table_has_a_row_for_each_app_with_all_strategies(self, monkeypatch):
        monkeypatch.setattr(apps, "run_jobs", run_here)
        table = apps.app_table({"small": self.SMALL}, seeds=[0])
        heading, _, row = table.splitlines()
        assert [cell.strip() for cell in heading.split("|")[2:6]] == [
            "FedAvg",
            "SignSGD()",
            "SignSGD(downlink=CodedSteps())",
            "MedianSGD()",
        ]
        accuracies = [float(cell) for cell in row.split("|")[2:6]]
        assert all(0.1 < accuracy <= 1 for accuracy in accuracies)
        worst = float(row.split("|")[6])
        assert worst == pytest.approx(min(accuracies[1:]) - accuracies[0], abs=2e-3)

    def test_no_federation_is_another_by_another_name(self):
        assert len(set(apps.SETTINGS.values())) == len(apps.SETTINGS)

    @pytest.mark.parametrize(
        ("strategy", "dtype"), [("FedAvg", "float16"), ("MedianSGD()", "bfloat16")]
    )
    def test_a_model_in_half_precision_travels_as_such(self, strategy, dtype):
        if dtype == "bfloat16":
            pytest.importorskip("ml_dtypes")
        half, whole = (
            run_setting(strategy, replace(self.SMALL, dtype=one), 0)["downlink"]
            for one in (dtype, "float32")
        )
        assert half < 0.51 * whole

    def test_a_private_head_is_the_clients_own_from_round_to_round(self):
        app = ClientApp()
        app.train()(Clients(replace(self.SMALL, private_head=True), 0).train)
        grid = InProcessGrid(app, 3)
        model = ArrayRecord(make_network("mlp", "digits", 0).state_dict())
        sent = []
        for _ in range(2):
            content = RecordDict({"arrays": model, "config": ConfigRecord({"server-round": 1})})
            (node, *_) = grid.get_node_ids()
            message = Message(content, node, MessageType.TRAIN)
            (reply,) = grid.send_and_receive([message])
            sent.append(reply.content["arrays"])
        moved = [
            name
            for name in model
            if not np.array_equal(sent[0][name].numpy(), sent[1][name].numpy())
        ]
        # The same model, data and order: all that differs follows from the head's other start.
        assert set(moved) >= {"3.weight", "3.bias"}


def test_a_federation_whose_clients_diverge_keeps_the_model_that_it_has_for_all_rounds_left():
    setting = replace(DIGITS, rounds=6, learning_rate=1e38)
    found = run_setting("MedianSGD()", setting, 0)
    assert len(found["accuracy"]) == len(found["recall"]) == 6
    assert len(set(found["accuracy"][-4:])) == 1


@pytest.mark.slow
def test_adam_trains_with_its_defaults_as_fast_as_fedavg():
    setting = replace(DIGITS, rounds=10, alpha=0.3, local_steps=0)
    fedavg = run_setting("FedAvg", setting, 0)
    for strategy in (SignSGD, MedianSGD):
        found = simulate(partial(strategy, optimizer=Adam()), setting, 0, [perturb])
        assert found["accuracy"][-1] > fedavg["accuracy"][-1] - 0.02


class TestRobustness:
    @pytest.fixture
    def tiny(self, monkeypatch, tmp_path):
        """The settings of both tables on digits, one of seven hostile, for one round."""
        monkeypatch.setattr(robustness, "RESULTS", tmp_path)
        monkeypatch.setattr(robustness, "run_jobs", run_here)
        monkeypatch.setattr(robustness, "SEEDS", (0,))

        def shrink(study, attacks):
            small = {"dataset": "digits", "num_clients": 7, "rounds": 1, "alpha": 5.0}
            honest = replace(study.honest, **small)
            return replace(study, honest=honest, num_hostile=1, attacks=attacks)

        return shrink

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "attacks"),
        [("sorted", ("label flip",)), ("flanders", ("opt",)), ("adaptive", ("two camps",))],
    )
    def test_a_table_has_a_row_for_each_rule_and_its_worst_attack(self, name, attacks, tiny):
        study = tiny(robustness.STUDIES[name], attacks)
        found = robustness.accuracies(study)
        assert list(found) == list(robustness.rules(study))
        for ends in found.values():
            assert list(ends) == ["none", *attacks, "worst"]
            assert ends["worst"] == min(ends[attack] for attack in attacks)
            assert all(0 <= end <= 1 for end in ends.values())

    @pytest.mark.slow
    def test_a_mean_is_lost_to_noise_and_our_defaults_are_not(self, tiny):
        """One of seven, seeded: FedAvg ends near chance, both defaults learn on."""
        study = tiny(robustness.STUDIES["flanders"], ("gaussian",))
        setting = replace(study.settings()["gaussian"], learning_rate=0.01, rounds=6)
        ends = {
            rule: robustness.run_rule(rule, study, setting, 0)["accuracy"][-1]
            for rule in ("FedAvg", "SignSGD()", "MedianSGD()")
        }
        assert ends["FedAvg"] < 0.3
        assert min(ends["SignSGD()"], ends["MedianSGD()"]) > 0.6

    def test_every_attack_of_the_studies_is_known_and_no_job_has_the_name_of_another(self):
        known = {*ATTACKS, *MORE_ATTACKS, *ADAPTIVE}
        for study in robustness.STUDIES.values():
            assert set(study.attacks) <= known
            assert (
                len({str(setting) for setting in study.settings().values()})
                == len(study.attacks) + 1
            )

    def test_rules_are_compared_by_recall_and_accuracy_in_each_federation(self, tiny):
        rules = {name: robustness.KEEPING[name] for name in ("FedAvg", "SignSGD, agreement")}
        table = robustness._compare(
            rules, {"tiny": DIGITS}, robustness.QUANTITIES, rounds=1, seeds=(0,)
        )
        heading, _, *rows = (
            [cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()
        )
        assert heading == ["rule", "tiny, recall", "tiny, accuracy"]
        assert [name for name, *_ in rows] == list(rules)
        found = run_setting("FedAvg", DIGITS, 0)
        assert rows[0][1:] == [f"{found[of][-1]:.3f}" for of in ("recall", "accuracy")]

    def test_the_heat_map_has_a_cell_for_each_rule_and_attack(self):
        panels = figures.robustness().axes
        assert [len(panel.texts) for panel in panels] == [17 * 8, 17 * 7, 16 * 10, 16 * 10]
        for panel, (name, study) in zip(panels, robustness.STUDIES.items(), strict=True):
            labels = [label.get_text() for label in panel.get_yticklabels()]
            assert labels == list(robustness.rules(study)), name

    @pytest.mark.parametrize("attack", ["", *ATTACKS, *MORE_ATTACKS, *ADAPTIVE])
    def test_under_every_attack_hostile_clients_also_claim_examples(self, attack):
        claimed = {}

        def listening(message, context, call_next):
            reply = call_next(message, context)
            (metrics,) = reply.content.metric_records.values()
            claimed[context.node_config["partition-id"]] = metrics["num-examples"]
            return reply

        hostile = 1 if attack else 0
        setting = replace(DIGITS, rounds=1, num_clients=7, attack=attack, num_hostile=hostile)
        simulate(SignSGD, setting, 0, [listening, perturb])
        assert [claimed[i] for i in range(7)] == [1] * 6 + [CLAIMED if attack else 1]


class TestPrivacy:
    TINY = Setting(
        "digits", network="linear", partition="iid", learning_rate=0.1, rounds=3, tested=1
    )
    LAX = (4000.0,)  # hardly any noise
    STUDIES = (*privacy.STUDIES.values(),)
    LOCAL = privacy.Study(TINY, STUDIES[0].rules, LAX, (1.0,))
    READERS = privacy.Study(replace(TINY, fraction=0.5), STUDIES[1].rules, LAX, (1.0,))
    SUMS = privacy.Study(TINY, privacy.SUMS.rules, LAX, (1.0,))

    @pytest.mark.parametrize(
        "study", [LOCAL, READERS, SUMS], ids=["server", "readers", "secure sums"]
    )
    def test_every_rule_has_a_row_with_an_accuracy_better_than_chance(self, study, monkeypatch):
        monkeypatch.setattr(privacy, "run_jobs", run_here)
        heading, _, *rows = privacy.accuracy_table(study, seeds=[0]).splitlines()
        assert heading.split("|")[2].strip() == "ε = 4000"
        names = [row.split("|")[1].strip() for row in rows]
        assert names == ["FedAvg, no privacy", *study.rules]
        assert all(0.15 < float(row.split("|")[2]) <= 1 for row in rows)

    def test_the_figure_names_the_rules_of_the_tables_and_needs_no_color(self):
        _, *panels = figures.privacy().axes
        for panel, study in zip(panels, privacy.STUDIES.values(), strict=True):
            lines = panel.get_lines()
            assert [line.get_label() for line in lines] == ["FedAvg, no privacy", *study.rules]
            assert len({line.get_linestyle() for line in lines}) == len(lines)

    def test_flowers_rules_have_the_noise_that_is_counted(self):
        (mod,) = privacy.RULES["FedAvg, LocalDpMod"].mods(3.0, 0.5)
        by_formula = mod.sensitivity * np.sqrt(2 * np.log(1.25 / mod.delta)) / mod.epsilon
        assert by_formula == pytest.approx(3.0 * 0.5)
        assert mod.clipping_norm == 0.5
        rule = privacy.RULES["FedAvg, central wrapper"]
        wrapper = rule.strategy(3.0, 0.5, self.READERS.setting)(seed=1)
        assert (wrapper.noise_multiplier, wrapper.clipping_norm) == (3.0, 0.5)
        assert wrapper.num_sampled_clients == 5

    @pytest.mark.slow
    def test_a_rule_of_votes_needs_less_noise_than_one_of_vectors(self):
        for setting in (self.LOCAL.setting, self.READERS.setting):
            votes, vectors = (privacy.noise_of(kind, setting, 4.0) for kind in ("signs", "vector"))
            assert votes < vectors

    def test_the_table_of_sums_falls_with_clients_to_just_above_the_gaussian_limit(
        self, monkeypatch
    ):
        monkeypatch.setattr(privacy, "EPSILONS", (4.0,))
        monkeypatch.setattr(privacy, "HONEST", (1, 4, 16))
        _, _, *rows = privacy.sums_table().splitlines()
        sums, limits = ([float(cell) for cell in row.split("|")[2:-1]] for row in rows)
        assert sums == sorted(sums, reverse=True)
        assert all(one < more < 1.1 * one for more, one in zip(sums, limits, strict=True))

    def test_the_table_of_rounds_has_votes_below_vectors(self):
        _, _, *rows = privacy.rounds_table().splitlines()
        for vector, votes in zip(rows[::2], rows[1::2], strict=True):
            pairs = zip(vector.split("|")[2:-1], votes.split("|")[2:-1], strict=True)
            assert all(float(less) <= float(more) for more, less in pairs)
