"""The study of bits: its runs on digits, what its page says of findings, and the page that is."""

import json
from dataclasses import replace

import pytest

from experiments.studies.bits import __main__ as command
from experiments.studies.bits import page, study
from experiments.studies.bits.study import PARTS, PEERS, Federation, Outcome, Part
from experiments.studies.commands import DOCS
from experiments.studies.federation import Setting, make_network

FOLDER = DOCS / "bits"


def run_here(jobs, folder):
    """Run jobs in this process, and keep nothing."""
    return {name: job() for name, job in jobs.items()}


def outcome(uplink, *ends, numbers=()):
    """A peer that is at its end from the second round on, for each seed."""
    return Outcome(list(numbers), uplink, 400.0, [[0.1, *[end] * 5] for end in ends])


class TestTheRuns:
    TINY = Setting("digits", network="linear", learning_rate=0.1, rounds=2, num_clients=3)

    TRIED = study.AS_THEY_COME | {"plain signs": ((0.001,),), "z-SignFedAvg": ((0.01, 0.01),)}

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

    def test_an_outcome_has_an_accuracy_for_each_seed_and_round(self, found):
        for one in found.values():
            assert [len(rounds) for rounds in one.accuracy] == [2, 2]
            assert all(0 <= accuracy <= 1 for rounds in one.accuracy for accuracy in rounds)

    def test_of_numbers_that_are_tried_the_best_of_the_first_seed_are_kept(self, monkeypatch):
        ends = {(0.1,): 0.3, (0.2,): 0.7, (0.3,): 0.5}
        asked = set()

        def made_up(peer, numbers, setting, seed):
            asked.add((numbers, seed))
            return {"accuracy": [ends[numbers]], "uplink": 1.0, "downlink": 2.0}

        monkeypatch.setattr(study, "run_jobs", run_here)
        monkeypatch.setattr(study, "run_peer", made_up)
        part = Part({"plain signs": tuple(ends)}, {"made up": Federation(self.TINY, (0, 1))})
        assert study.measure(part)["made up"]["plain signs"].numbers == [0.2]
        assert asked == {(numbers, 0) for numbers in ends} | {((0.2,), 1)}

    def test_no_federation_is_another_by_another_name(self):
        for part in PARTS.values():
            assert len({str(one) for one in part.federations.values()}) == len(part.federations)

    def test_the_lenet_is_the_published_one_for_smaller_images(self):
        """On images of 32 × 32 in colour it has 797,248 weights, biases not counted."""
        network = make_network("lenet", "fashion-mnist", 0)
        sizes = [one.numel() for name, one in network.named_parameters() if "weight" in name]
        assert sizes == [64 * 25, 64 * 64 * 25, 64 * 4**2 * 384, 384 * 192, 192 * 10]
        in_colour = [64 * 3 * 25, 64 * 64 * 25, 64 * 5**2 * 384, 384 * 192, 192 * 10]
        assert sum(in_colour) == 797_248


class TestThePage:
    def test_rounds_are_counted_on_the_mean_over_seeds(self):
        one = Outcome([], 1.0, 1.0, [[0.1, 0.5, 0.9], [0.3, 0.3, 0.5]])
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

    def test_the_page_says_where_a_peer_is_not_on_the_frontier_and_who_is_ahead(self):
        ours, small, large = (
            outcome(100, 0.5, 0.7),
            outcome(60, 0.6, 0.66),
            outcome(200, 0.8, 0.8),
        )
        said = page.say_where(
            "SignSGD()",
            {
                "here": {"SignSGD()": ours, "FedAvg": large},
                "there": {"SignSGD()": ours, "FedAvg": large, "EDEN": small},
            },
        )
        assert said.splitlines() == [
            "`SignSGD()` is on the frontier in 1 of 2:",
            "",
            "- here: on the frontier.",
            "- there: EDEN sends 40 bytes less and ends 0.0300 higher (from 1 of 2 seeds).",
        ]

    def test_bytes_add_up_over_clients_rounds_and_both_ways(self):
        federations = {
            f"{clients}": Federation(Setting(num_clients=clients, rounds=50), (0,))
            for clients in (10, 100)
        }
        found = {"FedAvg": outcome(4000, 0.5), "SignSGD()": outcome(1000, 0.5)}
        _, _, fedavg, sign = page.bytes_table(federations, dict.fromkeys(federations, found)).split(
            "\n"
        )
        assert [cell.strip() for cell in fedavg.split("|")[2:-1]] == [
            *("4,000", "1.0", "400", "2.2", "22.0", "0.16")
        ]
        assert [cell.strip() for cell in sign.split("|")[2:-1]] == [
            *("1,000", "4.0", "400", "0.7", "7.0", "0.04")
        ]

    def test_a_target_is_a_share_of_fedavgs_end(self):
        federations = {"here": Federation(Setting(num_clients=10), (0,))}
        found = {
            "FedAvg": outcome(4000, 0.8),
            "near": outcome(1000, 0.77),
            "far": outcome(500, 0.75),
        }
        rows = page.target_table(federations, {"here": found}).split("\n")[2:]
        cells = [row.split("|")[2].strip() for row in rows]
        assert cells == ["2 / 0.08", "2 / 0.02", "–"]


class TestTheCommand:
    def test_it_writes_findings_a_figure_and_a_page_that_can_be_read_back(
        self, monkeypatch, tmp_path
    ):
        monkeypatch.setattr(command, "DOCS", tmp_path)

        def made_up(part):
            found = {
                peer: outcome(100 + number, 0.5, numbers=tried[0])
                for number, (peer, tried) in enumerate(part.tried.items())
            }
            return dict.fromkeys(part.federations, found)

        monkeypatch.setattr(command, "measure", made_up)
        command.main(["federations"])
        assert page.read(tmp_path / "bits", "federations") == made_up(PARTS["federations"])
        assert (tmp_path / "bits" / "federations.png").exists()
        written = (tmp_path / "bits.md").read_text()
        assert "## The frontier" in written
        assert "## A published hole" not in written
        command.main(["hole"])
        assert "## A published hole" in (tmp_path / "bits.md").read_text()

    def test_the_figure_has_a_panel_for_each_federation_with_a_point_for_each_peer(self):
        found = {peer: outcome(100 + number, 0.5) for number, peer in enumerate(PEERS)}
        federations = PARTS["federations"].federations
        panels = page.figure(federations, dict.fromkeys(federations, found)).axes
        assert [panel.get_title() for panel in panels] == list(federations)
        assert all(len(panel.lines) == len(PEERS) + 1 for panel in panels)

    def test_every_peer_is_explained(self):
        assert list(page.GOES_UP) == list(PEERS)


class TestDocuments:
    def test_the_page_has_the_numbers_that_were_found(self):
        assert (DOCS / "bits.md").read_text() == page.page(FOLDER)

    @pytest.mark.parametrize("name", list(PARTS))
    def test_what_was_found_is_of_the_studys_federations_and_peers(self, name):
        file, part = FOLDER / f"{name}.json", PARTS[name]
        if not file.exists():
            pytest.skip("the study has not been run")
        assert json.loads(file.read_text())["of"] == str(part)
        found = page.read(FOLDER, name)
        assert list(found) == list(part.federations)
        assert all(list(outcomes) == list(part.tried) for outcomes in found.values())
