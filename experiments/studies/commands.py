"""The command lines of studies, and the tables that documents have from them."""

import argparse
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from experiments.studies.progress import say, tracked

DOCS = Path(__file__).resolve().parents[2] / "docs"


def chosen_parts(
    study: str, parts: Iterable[str], arguments: Sequence[str] | None = None
) -> list[str]:
    """Return the parts of a study that the command line names, or all.

    Parameters
    ----------
    study : str
        The study's module.
    parts : iterable of str
        The names of its parts.
    arguments : sequence of str, optional
        The command line; this process's if not given.

    Returns
    -------
    list of str
        The names.
    """
    return parse_names(make_parser(study), "part", parts, arguments)[0]


def show_tables(
    study: str,
    tables: Mapping[str, Callable[[], str]],
    arguments: Sequence[str] | None = None,
) -> None:
    """Print the tables that the command line names, or all; ``--document`` also documents them.

    Parameters
    ----------
    study : str
        The study's module.
    tables : mapping of str to callable
        What makes the tables, by their names.
    arguments : sequence of str, optional
        The command line; this process's if not given.
    """
    names, options = parse_names(make_documenting_parser(study), "table", tables, arguments)
    for name in tracked(names, "table"):
        text = tables[name]()
        say(f"### {name}\n\n{text}\n")
        if options.document:
            document(f"{study}-{name}", text)


def make_parser(study: str) -> argparse.ArgumentParser:
    """Return an argument parser that knows only the study's name."""
    return argparse.ArgumentParser(prog=f"python -m experiments.studies.{study}")


def make_documenting_parser(study: str) -> argparse.ArgumentParser:
    """Return the parser of a study whose tables are in documents, with ``--document``."""
    parser = make_parser(study)
    parser.add_argument(
        "--document", action="store_true", help="also write what is printed into docs/"
    )
    return parser


def document(name: str, text: str) -> None:
    """Keep what a command printed in docs/tables, and replace its last tables in all pages.

    A page shows a table as soon as it has a copy of what is kept; a test holds it to that.

    Parameters
    ----------
    name : str
        The name of the command, and of the file.
    text : str
        What it printed.
    """
    file = DOCS / "tables" / f"{name}.md"
    if file.exists():
        pairs = list(zip(tables_of(file.read_text()), tables_of(text), strict=True))
        for page in DOCS.glob("*.md"):
            shown = page.read_text()
            for before, after in pairs:
                shown = shown.replace(before, after)
            page.write_text(shown)
    file.parent.mkdir(exist_ok=True)
    file.write_text(text + "\n")


def tables_of(text: str) -> list[str]:
    """Return the tables of a text in Markdown, each as its lines."""
    return [found.rstrip("\n") for found in re.findall(r"(?:^\|.*(?:\n|\Z))+", text, re.MULTILINE)]


def printed_table(name: str) -> tuple[list[str], list[list[str]]]:
    """Return the only table in a file of docs/tables; see `printed_tables`."""
    (found,) = printed_tables(name)
    return found


def printed_tables(name: str) -> list[tuple[list[str], list[list[str]]]]:
    """Return the head and the rows of each table in a file of docs/tables, as their cells."""
    found = []
    for table in tables_of((DOCS / "tables" / f"{name}.md").read_text()):
        head, _, *rows = (
            [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
        )
        found.append((head, rows))
    return found


def parse_names(
    parser: argparse.ArgumentParser,
    what: str,
    names: Iterable[str],
    arguments: Sequence[str] | None = None,
    usual: Iterable[str] | None = None,
) -> tuple[list[str], argparse.Namespace]:
    """Return the names on a command line, and its other options.

    Parameters
    ----------
    parser : ArgumentParser
        The parser of the other options.
    what : str
        The word for one of them.
    names : iterable of str
        The names.
    arguments : sequence of str, optional
        The command line; this process's if not given.
    usual : iterable of str, optional
        The names that a command line without names stands for; all if not given.

    Returns
    -------
    list of str
        The names on the command line, each once.
    Namespace
        The other options.
    """
    known = list(names)
    left = sorted({*known}.difference(known if usual is None else usual))

    def one(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"must be among {', '.join(known)}, got {text!r}")
        return text

    but = f" but {', '.join(left)}" if left else ""
    told = f"{', '.join(known)}; without any, all{but}"
    parser.add_argument("names", nargs="*", type=one, metavar=what.upper(), help=told)
    options = parser.parse_args(arguments)
    return [*dict.fromkeys(options.names or (n for n in known if n not in left))], options
