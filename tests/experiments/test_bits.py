"""Bits against accuracy: the runs on digits, and what is said of findings."""

import json
from dataclasses import asdict, replace

import pytest

from experiments.claims.bits import page, study
from experiments.claims.bits.study import (
    EVERYBODY,
    HOLE,
    HUNDRED,
    PEERS,
    TEN,
    Federation,
    Outcome,
    Part,
)
from experiments.studies.federation import Setting, make_network
from tests.tools.jobs import run_here


def outcome(uplink, *ends, numbers=()):
    """A peer of ten clients that is at its end from the second of six rounds on, for each seed."""
    sent = [10 * (uplink + 400.0) / 1e6] * 6
    return Outcome(list(numbers), 10, 6, uplink, 400.0, sent, [[0.1, *[end] * 5] for end in ends])


class TestTheRuns:
    TINY = Setting("digits", network="linear", rounds=2, num_clients=3, local_steps=1)

    TRIED = EVERYBODY | {"plain signs": ((0.001,),), "z-SignFedAvg": ((0.01, 0.01),)}

    @pytest.fixture(scope="class")
    @classmethod
    def found(cls):
        federations = {"tiny": Federation(replace(cls.TINY, partition="iid"), (0, 1))}
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(study, "run_jobs", run_here)
            return study.measure(Part(cls.TRIED, federations))["tiny"]

    def test_every_peer_sends_what_it_says(self, found):
        """A model of 650 parameters, whose arrays have half a kilobyte of headers and more."""
        assert list(found) == list(PEERS)
        most = found["FedAvg"].uplink
        assert found["FedMedian"].uplink == most
        halved, levels, bits = (
            found[name].uplink for name in ("FedAvg, float16", "QSGD, int8", "EDEN, one bit")
        )
        assert most > halved > levels > bits
        assert halved - levels == pytest.approx(650, abs=30)
        assert found["plain signs"].uplink == pytest.approx(found["SignSGD()"].uplink, abs=300)

    def test_what_goes_both_ways_is_counted_by_round(self, found):
        for one in found.values():
            both = one.clients * one.rounds * (one.uplink + one.downlink) / 1e6
            assert sum(one.both_ways) == pytest.approx(both, abs=1e-5)
            assert len(one.both_ways) == one.rounds

    def test_an_outcome_has_an_accuracy_for_each_seed_and_round(self, found):
        for one in found.values():
            assert [len(rounds) for rounds in one.accuracy] == [2, 2]
            assert all(0 <= accuracy <= 1 for rounds in one.accuracy for accuracy in rounds)

    def test_of_numbers_that_are_tried_the_best_of_the_first_seed_are_kept(self, monkeypatch):
        ends = {(0.1,): 0.3, (0.2,): 0.7, (0.3,): 0.5}
        asked = set()

        def made_up(peer, numbers, setting, seed):
            asked.add((numbers, seed))
            return {"accuracy": [ends[numbers]], "uplink": 1.0, "downlink": 2.0, "sent": [9]}

        monkeypatch.setattr(study, "run_jobs", run_here)
        monkeypatch.setattr(study, "run_peer", made_up)
        part = Part({"plain signs": tuple(ends)}, {"made up": Federation(self.TINY, (0, 1))})
        assert study.measure(part)["made up"]["plain signs"].numbers == [0.2]
        assert asked == {(numbers, 0) for numbers in ends} | {((0.2,), 1)}

    @pytest.mark.parametrize("part", [TEN, HUNDRED], ids=["ten clients", "a hundred"])
    def test_no_federation_is_another_by_another_name(self, part):
        settings = {one.setting for one in part.federations.values()}
        assert len(settings) == len(part.federations) == 4

    @pytest.mark.parametrize(
        ("part", "names"),
        [(TEN, ["iid", "one class each"]), (HOLE, ["Dirichlet(.25)"])],
        ids=["four federations", "one"],
    )
    def test_the_quick_variant_has_the_first_and_the_last_federation_and_nothing_to_choose(
        self, part, names
    ):
        quick = study.shortened(part, rounds=3)
        assert list(quick.federations) == names
        assert {one.setting.rounds for one in quick.federations.values()} == {3}
        assert {len(tried) for tried in quick.tried.values()} == {1}
        assert list(quick.tried) == list(part.tried)

    def test_the_lenet_is_the_published_one_for_smaller_images(self):
        """On images of 32 × 32 in color it has 797,248 weights, biases not counted."""
        network = make_network("lenet", "fashion-mnist", 0)
        sizes = [one.numel() for name, one in network.named_parameters() if "weight" in name]
        assert sizes == [64 * 25, 64 * 64 * 25, 64 * 4**2 * 384, 384 * 192, 192 * 10]
        in_color = [64 * 3 * 25, 64 * 64 * 25, 64 * 5**2 * 384, 384 * 192, 192 * 10]
        assert sum(in_color) == 797_248


class TestThePage:
    def test_rounds_are_counted_on_the_mean_over_seeds(self):
        one = Outcome([], 10, 3, 1.0, 1.0, [1.0] * 3, [[0.1, 0.5, 0.9], [0.3, 0.3, 0.5]])
        assert [one.rounds_to(accuracy) for accuracy in (0.2, 0.4, 0.7, 0.71)] == [1, 2, 3, None]

    def test_ahead_is_who_is_no_larger_and_no_worse_and_one_of_both_strictly(self):
        outcomes = {
            "own": outcome(100, 0.5),
            "same": outcome(100, 0.5),
            "smaller": outcome(90, 0.5),
            "better": outcome(100, 0.6),
            "smaller and worse": outcome(90, 0.4),
            "larger and better": outcome(110, 0.9),
        }
        assert page.ahead("own", outcomes) == ["smaller", "better"]

    @pytest.fixture
    def found(self):
        ours, small, large = (
            outcome(100, 0.5, 0.7),
            outcome(60, 0.6, 0.66),
            outcome(200, 0.8, 0.8),
        )
        return {
            "here": {"SignSGD()": ours, "FedAvg": large},
            "there": {"SignSGD()": ours, "FedAvg": large, "EDEN": small},
        }

    def test_the_page_counts_where_a_peer_is_on_the_frontier(self, found):
        said = page.count_frontier("SignSGD()", found)
        assert said == "`SignSGD()` is on the frontier in 1 of 2 federations."

    def test_the_page_compares_a_peer_with_those_ahead_of_it(self, found):
        (row,) = page.ahead_table("SignSGD()", found).splitlines()[2:]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells == ["there", "EDEN", "40", "+0.0300", "1 of 2"]

    def test_bytes_add_up_over_clients_rounds_and_both_ways(self):
        found = {"FedAvg": outcome(4000, 0.5), "SignSGD()": outcome(1000, 0.5)}
        _, _, fedavg, sign = page.bytes_table(found).split("\n")
        assert [cell.strip() for cell in fedavg.split("|")[2:-1]] == [
            *("4,000", "1.0", "400", "0.3", "0.02")
        ]
        assert [cell.strip() for cell in sign.split("|")[2:-1]] == [
            *("1,000", "4.0", "400", "0.1", "0.00")
        ]

    def test_a_target_is_a_share_of_fedavgs_end(self):
        found = {
            "FedAvg": outcome(4000, 0.8),
            "near": outcome(1000, 0.77),
            "far": outcome(500, 0.75),
        }
        rows = page.target_table({"here": found}).split("\n")[2:]
        cells = [row.split("|")[2].strip() for row in rows]
        assert cells == ["2 / 0.08 / 0.1", "2 / 0.02 / 0.0", "–"]

    def test_a_first_round_that_sends_the_whole_model_counts_as_what_it_is(self):
        fedavg, coded = outcome(4000, 0.8), replace(outcome(1000, 0.8), both_ways=[9.0, *[1.0] * 5])
        _, _, _, row = page.target_table({"here": {"FedAvg": fedavg, "own": coded}}).split("\n")
        assert row.split("|")[2].strip() == "2 / 0.02 / 10.0"
        _, _, _, row = page.bytes_table({"FedAvg": fedavg, "own": coded}).split("\n")
        assert row.split("|")[5].strip() == "14.0"

    def test_every_peer_is_explained(self):
        assert list(page.GOES_UP) == list(PEERS)


class TestTheClaims:
    def findings(self, **ends):
        """Findings in two federations, of which `ends` changes some peers'."""
        found = {
            peer: outcome(1600 - 100 * number, 0.5, numbers=tried[0])
            for number, (peer, tried) in enumerate(EVERYBODY.items())
        }
        found |= {"SignSGD()": outcome(100, ends.get("sign", 0.5))}
        plain = {peer: asdict(one) for peer, one in found.items()}
        return dict.fromkeys(("here", "there"), plain)

    def test_the_check_tells_an_accuracy_and_a_message_that_are_not_as_claimed(self):
        assert page.check(0.02, self.findings()) == []
        assert page.check(0.02, self.findings(sign=0.481)) == []
        wrong = page.check(0.02, self.findings(sign=0.47))
        assert wrong == [
            f"{where}: SignSGD() ends at 0.470, FedAvg at 0.500" for where in ("here", "there")
        ]
        found = self.findings()
        found["here"]["SignSGD()"]["uplink"] = 200
        wrong = page.check(0.02, found)
        assert wrong == [f"{where}: SignSGD() saves a factor of 8.0" for where in ("here", "there")]

    def test_the_figure_has_a_panel_for_each_federation_with_a_point_for_each_peer(self):
        panels = page.draw(self.findings()).axes
        assert [panel.get_title() for panel in panels] == ["here", "there"]
        assert all(len(panel.lines) == len(PEERS) + 1 for panel in panels)

    def test_the_tables_say_who_is_on_the_frontier(self):
        said = page.tabulate(self.findings())
        assert "`SignSGD()` is on the frontier in 2 of 2 federations." in said
        assert "`MedianSGD()` is on the frontier in 0 of 2 federations." in said

    @pytest.mark.parametrize(("end", "said"), [(0.4, "0.100 below"), (0.6, "0.100 above")])
    def test_the_published_setting_says_whether_plain_signs_fall_in_it(self, end, said):
        found = {"here": self.findings()["here"] | {"plain signs": asdict(outcome(90, end))}}
        found["here"]["plain signs"]["numbers"] = [0.001]
        assert f"end {said} FedAvg here." in page.tabulate_hole(found)

    def test_findings_can_be_read_back(self, monkeypatch):
        monkeypatch.setattr(study, "run_jobs", run_here)
        monkeypatch.setattr(
            study,
            "run_peer",
            lambda *_: {
                "accuracy": [0.12345, 0.5],
                "uplink": 1.0,
                "downlink": 2.0,
                "sent": [3_000_000, 6_000_000],
            },
        )
        claim = page.BITS.claims[0]
        found = json.loads(json.dumps(claim.measure(True)))
        (one, *_) = page.read(found)["iid"].values()
        assert one == Outcome([], 10, 8, 1.0, 2.0, [3.0, 6.0], [[0.1235, 0.5]])
