"""The command lines of studies that have several parts."""

import argparse
from collections.abc import Iterable, Sequence


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
    names = list(parts)
    parser = argparse.ArgumentParser(prog=f"python -m experiments.studies.{study}")
    parser.add_argument("part", nargs="*", choices=[*names, []])
    return parser.parse_args(arguments).part or names
