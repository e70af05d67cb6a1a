"""The tables of studies: printed, and kept with the pages that show them."""

import pytest

from experiments.studies import commands
from experiments.studies.commands import (
    document,
    make_parser,
    parse_names,
    show_tables,
    tables_of,
)

FIRST = "| who | how |\n| --- | --: |\n| we  | 0.1 |"
SECOND = FIRST.replace("0.1", "0.2")


@pytest.fixture
def docs(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "DOCS", tmp_path)
    return tmp_path


def test_tables_are_found_wherever_they_stand_in_a_text():
    assert tables_of(f"{FIRST}\n\nWords | and\n\n{SECOND}") == [FIRST, SECOND]
    assert tables_of("No table") == []


def test_tables_are_printed_with_their_names_and_kept_only_on_request(docs, capsys):
    tables = {"first": lambda: FIRST, "second": lambda: SECOND}
    show_tables("study", tables, ["second"])
    assert capsys.readouterr().out == f"### second\n\n{SECOND}\n\n"
    assert list(docs.iterdir()) == []
    show_tables("study", tables, ["--document"])
    kept = {file.name: file.read_text() for file in (docs / "tables").iterdir()}
    assert kept == {"study-first.md": f"{FIRST}\n", "study-second.md": f"{SECOND}\n"}


def test_a_new_table_takes_the_place_of_the_last_in_the_pages_that_show_it(docs):
    document("study", FIRST)
    shows, other = docs / "shows.md", docs / "other.md"
    shows.write_text(f"Before\n\n{FIRST}\n\nafter")
    other.write_text("| who | how |\n| --- | --: |\n| you | 0.1 |")
    document("study", SECOND)
    assert shows.read_text() == f"Before\n\n{SECOND}\n\nafter"
    assert other.read_text() == "| who | how |\n| --- | --: |\n| you | 0.1 |"


def test_a_table_that_a_study_does_not_have_is_refused_with_those_it_has(capsys):
    with pytest.raises(SystemExit):
        show_tables("study", {"first": lambda: FIRST, "second": lambda: SECOND}, ["third"])
    said = capsys.readouterr().err
    assert said.endswith("argument TABLE: must be among first, second, got 'third'\n")


def test_a_table_that_is_named_twice_is_made_once(docs, capsys):
    tables = {"first": lambda: FIRST, "second": lambda: SECOND}
    show_tables("study", tables, ["second", "second"])
    assert capsys.readouterr().out == f"### second\n\n{SECOND}\n\n"


@pytest.mark.parametrize(
    ("usual", "names", "told"),
    [
        (None, ["first", "long"], "first, long; without any, all\n"),
        (["first"], ["first"], "first, long; without any, all but long\n"),
    ],
    ids=["all", "some"],
)
def test_the_help_lists_the_names(usual, names, told, capsys):
    def parse(*arguments):
        return parse_names(make_parser("study"), "part", ["first", "long"], arguments, usual)[0]

    assert parse() == names
    assert parse("long") == ["long"]
    with pytest.raises(SystemExit):
        parse("--help")
    assert told in capsys.readouterr().out
