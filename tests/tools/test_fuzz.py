"""Mutated replies, half of each cohort: seconds of what ``tests.tools.fuzz`` does."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fedmedian.rounds.state import ArrayState, KnownModels, RunState
from tests.tools import fuzz
from tests.tools.apis import protocol_of
from tests.tools.fuzz import ACCEPTED, APIS, HOSTILE, REFUSED, STRATEGIES, play

both_apis = pytest.mark.parametrize("api", APIS)


@both_apis
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_whatever_half_of_a_cohort_sends_nothing_raises_and_model_and_scales_are_finite(
    api, strategy
):
    outcomes = play(api, strategy, rounds=8, seed=0)
    assert set(outcomes) == {ACCEPTED, REFUSED}
    assert outcomes.total() == 8 * HOSTILE
    assert min(outcomes.values()) > 8 * HOSTILE / 5


@both_apis
def test_the_same_seed_mutates_alike(api):
    assert play(api, "SignSGD()", 3, 5) == play(api, "SignSGD()", 3, 5)


def poison_the_model(cohort, model, report):
    return {name: array * np.float32(np.nan) for name, array in model.items()}, report


def overflow_the_scales(cohort, model, report):
    broken = RunState({"of a later round": ArrayState((1,), 1e39)})
    protocol_of(cohort.strategy)._models = KnownModels({}, broken)
    return model, report


def lose_an_honest_reply(cohort, model, report):
    return model, {**report, "replies-accepted": fuzz.COHORT - HOSTILE - 1}


class TestDefects:
    """What a strategy that gives way would be told of."""

    @both_apis
    def test_an_exception_is_told_and_the_next_round_is_played(self, api, monkeypatch):
        def fail(cohort, server_round, sent):
            raise KeyError("no such block")

        monkeypatch.setattr(APIS[api], "hear", fail)
        assert dict(play(api, "MedianSGD()", 2, 0)) == {"raised KeyError: 'no such block'": 2}

    @both_apis
    @pytest.mark.parametrize(
        ("spoil", "told"),
        [
            (poison_the_model, "the model is not finite"),
            (overflow_the_scales, "a noise scale is not finite"),
            (lose_an_honest_reply, "an honest reply was dropped"),
        ],
    )
    def test_what_is_wrong_after_a_round_is_told(self, api, spoil, told, monkeypatch):
        hear = APIS[api].hear

        def spoiled(cohort, server_round, sent):
            return spoil(cohort, *hear(cohort, server_round, sent))

        monkeypatch.setattr(APIS[api], "hear", spoiled)
        assert play(api, "SignSGD()", 1, 0)[told] == 1


@pytest.mark.slow
def test_the_command_prints_a_row_for_each_strategy_and_api(monkeypatch, capsys):
    # A thread for the processes that import all of this again.
    monkeypatch.setattr(fuzz, "process_pool", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr(fuzz, "PIECES", 2)
    monkeypatch.setattr("sys.argv", ["fuzz", "1", "3"])
    fuzz.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == len(STRATEGIES) * len(APIS)
    assert all(row.rstrip(" |").endswith("| none") for row in rows)


@pytest.mark.parametrize("words", [[], ["policy"]], ids=["replies", "policy"])
def test_the_command_says_what_it_takes(words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fuzz", *words, "--help"])
    with pytest.raises(SystemExit, match="0"):
        fuzz.main()
    assert "seed" in capsys.readouterr().out
