"""The progress of long commands: a bar in a terminal, and nothing elsewhere."""

import io
import re
import sys

import pytest

from experiments.studies.progress import say, tracked


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def open_terminal(monkeypatch):
    """Makes a terminal of this process's errors; pytest would take it away before the test."""

    def open_terminal():
        monkeypatch.setattr(sys, "stderr", Terminal())
        return sys.stderr

    return open_terminal


def test_a_terminal_shows_how_many_are_done_and_the_time_left(open_terminal):
    terminal = open_terminal()
    for done, _ in enumerate(tracked(iter("abcd"), "run", total=4)):
        shown = terminal.getvalue().split("\r")[-1]
        assert re.search(rf"\b{done}/4 \[\d\d:\d\d<(\?|\d\d:\d\d)", shown)


def test_elsewhere_nothing_is_shown(capsys):
    assert list(tracked([1, 2], "run")) == [1, 2]
    assert capsys.readouterr().err == ""


def test_what_is_said_is_not_behind_a_bar(capsys, open_terminal):
    terminal = open_terminal()
    for number in tracked([1, 2], "run"):
        before = len(terminal.getvalue())
        say(f"number {number}")
        assert terminal.getvalue()[before:].startswith("\r")  # the bar is wiped first
    assert capsys.readouterr().out == "number 1\nnumber 2\n"
