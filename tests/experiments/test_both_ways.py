"""The study of the coded downlink: bytes both ways, its arithmetic, and what its tables say."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.studies import both_ways
from experiments.studies.both_ways import OURS, STRATEGIES, WHOLE
from experiments.studies.commands import DOCS, printed_table
from experiments.studies.federation import Setting
from tests.tools.jobs import run_here

TINY = Setting("digits", learning_rate=0.1, rounds=4, num_clients=3, local_steps=1)
CODED = "SignSGD(downlink=CodedSteps())"


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(both_ways, "run_jobs", run_here)


class TestRuns:
    def test_the_bytes_of_a_round_are_those_of_all_its_messages(self):
        result = both_ways.run_setting(CODED, TINY, 0)
        first, *later = result["sent"]
        assert len(later) == TINY.rounds - 1
        messages = TINY.num_clients * TINY.rounds
        whole = messages * (result["uplink"] + result["downlink"])
        assert first + sum(later) == pytest.approx(whole)
        assert max(later) < first / 10

    def test_megabytes_are_counted_up_to_the_first_round_at_an_accuracy(self):
        result = {"accuracy": [0.1, 0.6, 0.5], "sent": [1_000_000, 2_000_000, 4_000_000]}
        found = [both_ways.megabytes_to(result, accuracy) for accuracy in (0.1, 0.5, 0.7)]
        assert found == [1.0, 3.0, None]

    def test_the_table_of_bytes_has_a_row_for_each_strategy(self, here, monkeypatch):
        monkeypatch.setattr(both_ways, "PARTITIONS", {"iid": {"partition": "iid"}})
        _, _, *rows = both_ways.bytes_table(TINY).splitlines()
        cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
        saved = {name: float(factor) for name, *_, factor, _ in cells}
        assert list(saved) == list(STRATEGIES)
        assert saved["FedAvg"] == 1.0
        assert saved[CODED] > 2 * saved["SignSGD()"] > 2

    def test_the_other_tables_have_a_cell_for_each_federation_and_strategy(self, here, monkeypatch):
        for setting in ("DIGITS", "ATTACKED"):
            monkeypatch.setattr(both_ways, setting, replace(TINY, network="linear", rounds=2))
        monkeypatch.setattr(both_ways, "ATTACKS", ("minus the mean",))
        monkeypatch.setattr(both_ways, "HOSTILE", 1)
        _, _, *few = both_ways.few_table().splitlines()
        filled = [sum(cell.strip() != "" for cell in row.split("|")[2:]) for row in few]
        assert filled == [5] * 4 + [4] * 3 + [2]
        _, _, *attacked = both_ways.attacks_table().splitlines()
        assert len(attacked) == len(OURS)

    def test_no_federation_is_another_by_another_name(self):
        settings = [
            replace(one, **changes)
            for one in (both_ways.DIGITS, both_ways.SAMPLED, both_ways.LONGER)
            for changes in both_ways.PARTITIONS.values()
        ]
        assert len(set(map(str, settings))) == 12


class TestArithmetic:
    @pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.02])
    def test_the_mean_number_of_steps_is_that_of_clients_that_are_drawn(self, share):
        gaps = np.random.default_rng(0).geometric(share, 100_000)
        assert both_ways.mean_steps(share) == pytest.approx(
            np.minimum(gaps, WHOLE).mean(), rel=0.01
        )

    def test_bits_down_are_those_of_clients_that_are_drawn_from_the_first_round_on(self):
        drawn = np.random.default_rng(0).random((20_000, 30)) < 0.1
        sent = []
        for client in drawn:
            rounds = np.flatnonzero(client)
            sent += [WHOLE, *np.minimum(np.diff(rounds), WHOLE)] if rounds.size else []
        assert both_ways.mean_bits_down(0.1, 30) == pytest.approx(np.mean(sent), rel=0.01)

    def test_a_phone_waits_for_both_directions_of_its_line(self):
        assert both_ways.seconds(32, 32, 1e6) == pytest.approx(32 + 160)
        assert both_ways.seconds(1, 1, 1e8) == pytest.approx(100 + 500)

    @pytest.mark.parametrize("name", ["phone", "shares"])
    def test_the_tables_that_are_shown_are_those_that_are_computed(self, name):
        kept = (DOCS / "tables" / f"both_ways-{name}.md").read_text()
        assert kept == both_ways.TABLES[name]() + "\n"

    def test_a_tenth_of_the_clients_in_a_round_saves_a_factor_of_five(self):
        head, rows = printed_table("both_ways-shares")
        (tenth,) = ([float(cell) for cell in row] for row in rows if row[0] == "0.1")
        assert min(tenth[head.index("times fewer bytes, later") :]) >= 5


def accuracies(table, *names):
    """Return the accuracies in a table's rows of these names."""
    _, rows = printed_table(f"both_ways-{table}")
    by_name = {row[0]: [float(cell.split(" / ")[0]) for cell in row[1:]] for row in rows}
    return [by_name[name] for name in names]


class TestWhatWasMeasured:
    @pytest.mark.parametrize(
        ("table", "whole_run", "later"),
        [("ten", 22, 28), ("hundred", 4.5, 5.5), ("longer", 5, 6)],
    )
    def test_the_downlink_saves_what_the_page_says(self, table, whole_run, later):
        _, rows = printed_table(f"both_ways-{table}")
        ((all_rounds, last),) = (map(float, row[-2:]) for row in rows if row[0] == CODED)
        assert all_rounds >= whole_run
        assert last >= later

    @pytest.mark.parametrize(
        ("table", "most"), [("ten", 0.02), ("hundred", 0.02), ("longer", 0.03)]
    )
    def test_it_costs_little_accuracy(self, table, most):
        with_it, without = accuracies(table, CODED, "SignSGD()")
        assert min(np.subtract(with_it[:-2], without[:-2])) >= -most

    def test_with_two_bits_down_adam_ends_as_high_as_with_the_whole_model(self):
        head, rows = printed_table("both_ways-few")
        whole, coded = (
            next(row for row in rows if row[0] == f"ten clients, optimizer=Adam(){words}")
            for words in ("", ", two bits down")
        )
        for name in ("SignSGD()", "MedianSGD()"):
            at = head.index(name)
            assert float(coded[at + 1]) >= float(whole[at]) - 0.01

    def test_the_worst_attack_is_no_worse(self):
        for coded, usual in (
            (CODED, "SignSGD()"),
            (CODED.replace("Sign", "Median"), "MedianSGD()"),
        ):
            with_it, without = accuracies("attacks", coded, usual)
            assert with_it[-1] >= without[-1] - 0.03
