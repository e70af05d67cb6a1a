"""Random servers against random policies: seconds of ``tests.tools.fuzz policy``."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from fedmedian.clients import answering
from fedmedian.model.blocks import Part
from fedmedian.steps import instruction as instructions
from fedmedian.steps.instruction import perturb_update
from tests.tools import fuzz, policies
from tests.tools.policies import ALONE, NOISED, REFUSED, play


@pytest.mark.slow
def test_what_a_server_gets_depends_on_the_update_through_noise_within_the_clip_alone():
    outcomes, longest = play(500, seed=1)
    assert set(outcomes) == {NOISED, ALONE, REFUSED}
    assert outcomes.total() == 500
    assert min(outcomes.values()) > 33
    assert 0.99 < longest <= 1


def whole(layout, update):
    vector = np.empty(layout.dim, np.float32)
    for index, part in enumerate(layout.blocks.split(vector)):
        update(Part(index, 0, part.size), part)
    return vector


class TestDefects:
    """What a client that gives something away would be reported for."""

    def test_a_vector_that_is_too_long(self, monkeypatch):
        monkeypatch.setattr(instructions, "shorten", lambda vector, norm: None)
        outcomes, longest = play(40, 0)
        assert outcomes["what was noised exceeds the clip"] > 5
        assert longest > 1

    def test_an_error_that_one_update_alone_meets(self, monkeypatch):
        def fail(instruction, layout, update, *rest):
            if not np.isfinite(whole(layout, update)).all():
                raise ValueError("not finite")
            return perturb_update(instruction, layout, update, *rest)

        monkeypatch.setattr(answering, "perturb_update", fail)
        outcomes, _ = play(40, 0)
        assert any(one.startswith("answers differ") and "not finite" in one for one in outcomes)

    def test_an_answer_that_says_more(self, monkeypatch):
        def report_sizes(instruction, layout, update, *rest):
            size = np.float32([np.nan_to_num(np.abs(whole(layout, update))).max(initial=0)])
            payload = perturb_update(instruction, layout, update, *rest)
            return replace(payload, reports={**payload.reports, "measure": size})

        monkeypatch.setattr(answering, "perturb_update", report_sizes)
        outcomes, _ = play(40, 0)
        assert any(one.startswith("answers differ") for one in outcomes)


@pytest.mark.parametrize("arguments", [["20"], ["20", "7"]])
def test_the_command_prints_a_row(arguments, monkeypatch, capsys):
    # A thread for the processes that import all of this again.
    monkeypatch.setattr(policies, "process_pool", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr("sys.argv", ["fuzz", "policy", *arguments])
    fuzz.main()
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert row.split("|")[1].strip() == "40"
    assert row.rstrip(" |").endswith("| none")
