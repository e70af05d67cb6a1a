"""Claims, the paper's and this package's: measured, checked, written down as they were found."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from experiments.claims import __main__ as command
from experiments.claims import text, theorems, toy
from experiments.claims.__main__ import IF_NAMED, PAGES
from experiments.claims.claim import Page
from experiments.studies.commands import DOCS

CLAIMS = [
    (page, claim)
    for page in PAGES
    for claim in page.claims
    if claim.name not in {one.name for one in IF_NAMED}
]


def stored(claim, page="paper"):
    return json.loads((DOCS / page / f"{claim.name}.json").read_text())


TOYS = stored(toy.TOY)["found"]

every_claim = pytest.mark.parametrize(
    ("page", "claim"), CLAIMS, ids=[claim.name for _, claim in CLAIMS]
)


class TestDocuments:
    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
    def test_a_page_has_the_numbers_that_were_found(self, page):
        assert (DOCS / f"{page.name}.md").read_text() == page.text(DOCS)

    @every_claim
    def test_what_was_found_is_of_this_setting_in_full_and_passes_its_check(self, page, claim):
        found = stored(claim, page.name)
        assert found["of"] == {"setting": claim.setting, "quick": False}
        assert claim.check(found["found"]) == []
        assert (DOCS / page.name / f"{claim.name}.png").exists()

    def test_the_page_says_where_a_check_fails(self, tmp_path):
        failing = replace(toy.TOY, check=lambda found: ["it is wrong", "so is this"])
        (tmp_path / "paper").mkdir()
        (tmp_path / "paper" / "toy.json").write_text(json.dumps(stored(toy.TOY)))
        page = Page("paper", "# Claims", (failing,))
        assert "`make figures ARGS=toy` fails: it is wrong; so is this" in page.text(tmp_path)


class TestFinding:
    """What is there is not measured again; a run that was killed begins with what is missing."""

    @pytest.fixture
    def claim(self):
        self.measured = 0

        def measure(quick):
            self.measured += 1
            return stored(toy.TOY)["found"]

        return replace(toy.TOY, measure=measure, draw=lambda found: Figure())

    def test_a_second_call_measures_nothing(self, claim, tmp_path):
        first = claim.find(tmp_path, quick=False)
        assert claim.find(tmp_path, quick=False) == first
        assert self.measured == 1

    def test_another_setting_or_a_missing_figure_is_measured_again(self, claim, tmp_path):
        claim.find(tmp_path, quick=True)
        claim.find(tmp_path, quick=False)
        replace(claim, setting={"data": "another"}).find(tmp_path, quick=False)
        (tmp_path / "toy.png").unlink()
        claim.find(tmp_path, quick=False)
        assert self.measured == 4

    def test_nothing_is_left_of_a_measurement_that_was_interrupted(self, claim, tmp_path):
        def interrupted(quick):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            replace(claim, measure=interrupted).find(tmp_path, quick=False)
        assert list(tmp_path.iterdir()) == []


class TestTheToy:
    @pytest.mark.parametrize(
        ("algorithm", "ends"),
        [
            ("median", {5: 3.752, 10: 4.162, 20: 4.289, 30: 4.313}),
            ("signs, majority", {5: 3.767, 10: 4.173, 20: 4.292, 30: 4.315}),
            ("signs, counts", {5: 4.021, 10: 4.259, 20: 4.315, 30: 4.325}),
        ],
    )
    def test_the_exact_ends_are_those_of_an_independent_computation(self, algorithm, ends):
        for scale, end in ends.items():
            assert toy.fixed_point(algorithm, scale) == pytest.approx(end, abs=1.1e-3)

    def test_the_exact_bias_is_that_of_an_independent_computation(self):
        for scale, expected in ((5, 0.581), (10, 0.172), (20, 0.0449), (80, 0.00284)):
            assert toy.bias(scale) == pytest.approx(expected, rel=3e-3)

    def test_the_check_tells_an_end_a_bias_and_a_slope_that_are_wrong(self):
        def spoiled(change):
            found = stored(toy.TOY)["found"]
            change(found)
            return " ".join(toy.check(found))

        assert "ends at 3" in spoiled(lambda f: f["ends"]["median"][2].update(end=3.0))
        assert "not at 2" in spoiled(lambda f: f["plain"].update(median=2.5))
        assert "the bias at b = 5 is" in spoiled(lambda f: f["measured bias"][1].update(bias=0.4))
        assert "to the -1.00" in spoiled(lambda f: f.update(slope=-1.0))
        assert "closer" in spoiled(lambda f: f["ends"]["median"].reverse())


class TestTheTheorems:
    def test_the_check_tells_a_slope_that_is_too_flat(self):
        found = stored(theorems.THEOREMS)["found"]
        found["exponent"]["signs (Theorem 5)"] = -0.1
        (wrong,) = theorems.check(found)
        assert wrong == "signs (Theorem 5) falls as T to the -0.10, proven is -0.25"

    def test_the_clients_medians_are_far_from_their_mean(self):
        gap = np.median(theorems.MINIMA, axis=0) - theorems.MINIMA.mean(axis=0)
        assert np.linalg.norm(gap) > 1


@pytest.mark.slow
@every_claim
@pytest.mark.usefixtures("jobs_in_this_process")
def test_the_command_finds_a_claim_to_hold_in_its_quick_variant(page, claim, tmp_path, capsys):
    command.main([claim.name, "--quick", "--into", str(tmp_path)])
    assert capsys.readouterr().out.count(": holds") == 1
    written = (tmp_path / f"{page.name}.md").read_text()
    assert f"({page.name}/{claim.name}.png)" in written


def test_the_command_tries_all_claims_unless_some_are_named(tmp_path, monkeypatch, capsys):
    toys = replace(toy.TOY, measure=lambda quick: TOYS, draw=lambda found: Figure())
    claims = [replace(toys, name=name) for name in ("one", "two")]
    monkeypatch.setattr(command, "PAGES", (Page("paper", "# Claims", tuple(claims)),))
    command.main(["--into", str(tmp_path)])
    assert capsys.readouterr().out.count(": holds") == 2


def test_a_check_that_fails_is_the_commands_exit_status(tmp_path, monkeypatch):
    failing = replace(
        toy.TOY, measure=lambda quick: stored(toy.TOY)["found"], check=lambda found: ["wrong"]
    )
    monkeypatch.setattr(command, "PAGES", (Page("paper", "# Claims", (failing,)),))
    with pytest.raises(SystemExit, match="1"):
        command.main(["toy", "--into", str(tmp_path)])


def test_claims_on_data_that_is_not_everywhere_are_tried_only_if_they_are_named(
    tmp_path, monkeypatch
):
    def measure(quick):
        raise AssertionError

    claim = replace(toy.TOY, measure=measure)
    monkeypatch.setattr(command, "PAGES", (Page("paper", "# Claims", (claim,)),))
    monkeypatch.setattr(command, "IF_NAMED", (claim,))
    command.main(["--into", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(AssertionError):
        command.main(["toy", "--into", str(tmp_path)])


class TestText:
    def test_an_adapter_adds_nothing_until_it_is_trained(self):
        model = text.Writer(16)
        characters = torch.arange(20).reshape(2, 10)
        before = model(characters)
        text.adapt(model)
        assert torch.equal(model(characters), before)
        assert {name.rsplit("_", 1)[0].rsplit(".", 1)[1] for name in text.what_travels(model)} == {
            "lora"
        }

    def test_what_comes_later_does_not_change_what_is_written_before(self):
        model, characters = text.Writer(16), torch.arange(20).reshape(1, 20)
        changed = characters.clone()
        changed[0, 10:] += 1
        before, after = model(characters), model(changed)
        assert torch.allclose(before[0, :10], after[0, :10], atol=1e-6)
        assert not torch.allclose(before[0, 10:], after[0, 10:], atol=1e-3)

    def test_no_paragraph_that_is_tested_on_is_a_clients_or_known_before(self):
        parts, before, tested = text.load()
        held = [bytes(part.tolist()) for part in (*parts, before)]
        windows = [bytes(window.tolist()) for window in tested]
        known = [window for window in windows if any(window in part for part in held)]
        assert len(windows) > 100
        assert len(known) < 0.1 * len(windows)  # rules and sentences that recur

    def test_the_check_tells_a_loss_and_a_message_that_are_too_large(self):
        run = {"loss": [4.5, 4.0, 3.0, 2.5, 2.0], "uplink": 1000, "parameters": 250}
        ours = {**run, "uplink": 50}
        found = {"all": {"FedAvg": run, "SignSGD()": ours, "MedianSGD()": run}}
        assert text.check(found) == []
        late = {**ours, "loss": [4.5, 4.3, 4.2, 4.1, 4.0], "uplink": 500}
        found["all"]["SignSGD()"] = late
        behind, saved = text.check(found)
        assert behind.startswith("SignSGD() is 2.000 behind FedAvg (all)")
        assert saved.startswith("votes save a factor of 2.0 only")
