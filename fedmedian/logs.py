"""Flower's log, and how what others have said gets into it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGER = logging.getLogger("flwr")

LONGEST = 300
"""The number of characters of a text that stand in the log, at most."""


def warn(template: str, *words: object) -> None:
    """Log a warning; whatever its words are, they can neither forge a line nor fill the disk.

    Parameters
    ----------
    template : str
        The warning, with a %s or %d for each word.
    *words : object
        What goes into it: integers as they are, all else by `as_line`.
    """
    _LOGGER.warning(template, *(w if isinstance(w, int) else as_line(w) for w in words))


@contextmanager
def warned_of(consequence: str) -> Iterator[None]:
    """Log whatever is raised in this context instead of raising it; Ctrl-C alone is raised.

    Parameters
    ----------
    consequence : str
        What happens instead.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    # Custom code may raise anything.
    except BaseException as error:
        warn("perturb: %s; %s", error, consequence)


def as_line(source: object) -> str:
    """Return the text of something as a part of one line of the log.

    Parameters
    ----------
    source : object
        A text, an exception, or anything else.

    Returns
    -------
    str
        Its `text_of` with all that is not printable escaped, and cut after `LONGEST` characters.
    """
    text = text_of(source)
    start = text[:LONGEST]
    if not start.isprintable():
        start = "".join(c if c.isprintable() else _escaped(c) for c in start)
    if len(text) <= LONGEST and len(start) <= LONGEST:
        return start
    return f"{start[:LONGEST]}… (cut, of {len(text)} characters)"


def text_of(source: object) -> str:
    """Return the text of something, even if it cannot be printed.

    Parameters
    ----------
    source : object
        A text, an exception, or anything else.

    Returns
    -------
    str
        What ``str`` makes of it, with surrogates escaped: no encoding takes them.
    """
    try:
        text = str(source)
    except KeyboardInterrupt:
        raise
    # An exception may be of a class of a client's own.
    except BaseException:
        return f"a {type(source).__name__} that cannot be printed"
    return text.encode(errors="backslashreplace").decode()


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
