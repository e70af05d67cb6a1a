"""Checkpoints that are damaged and processes that are killed in a save: the study, in small.

Its command does 10,000 flips and 100 kills.
"""

import pytest

from tests.tools.damage import (
    FOUND,
    WHOLE,
    WHOLE_WITH_DRAFT,
    WITHOUT_EFFECT,
    flip_bits,
    is_same,
    kill_in_saves,
    main,
    saved_after,
)


def test_no_flipped_bit_of_a_checkpoint_gives_another_one(tmp_path):
    outcomes = flip_bits(300, tmp_path)
    assert set(outcomes) <= {FOUND, WITHOUT_EFFECT}
    assert outcomes[FOUND] > 250


def test_a_process_that_is_killed_in_a_save_leaves_whole_checkpoints_and_no_lock(tmp_path):
    outcomes = kill_in_saves(5, tmp_path)
    assert set(outcomes) <= {WHOLE, WHOLE_WITH_DRAFT}
    assert outcomes.total() == 5


def test_what_is_saved_after_two_rounds_is_not_the_same():
    assert is_same(saved_after(1, 9), saved_after(1, 9))
    assert not is_same(saved_after(1, 9), saved_after(2, 9))


def test_the_command_says_what_it_takes(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["damage", "--help"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "[flips] [kills]" in capsys.readouterr().out
