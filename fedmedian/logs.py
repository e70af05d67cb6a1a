"""Flower's log, and how what others have said gets into it."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_LOGGER = logging.getLogger("flwr")

LONGEST = 300
"""The number of characters of a text that stand in the log, at most."""

_LONGEST_PART = 200
"""The number of characters of a text in a message of ours, at most."""


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
        Its text with all that is not printable escaped, and cut after `LONGEST` characters: no
        more of it is copied.
    """
    text = _text_of(source)
    start = text[:LONGEST]
    if not start.isprintable():
        start = "".join(c if c.isprintable() else _escaped(c) for c in start)
    if len(text) <= LONGEST and len(start) <= LONGEST:
        return start
    return f"{start[:LONGEST]}… (cut, of {len(text)} characters)"


def text_of(source: object) -> str:
    """Return the text of something, even if it cannot be printed, to become a part of another.

    Parameters
    ----------
    source : object
        A text, an exception, or anything else.

    Returns
    -------
    str
        What ``str`` makes of it, `cut`, with surrogates escaped: no encoding takes them.
    """
    return cut(_text_of(source)).encode(errors="backslashreplace").decode()


def cut(text: str) -> str:
    """Return a text, or its start and its length: a part of a message that is no line of its own.

    What is cut where a message is made need not be copied with it. 200 characters stay, so that
    the message is no more than a line may be.
    """
    if len(text) <= _LONGEST_PART:
        return text
    return f"{text[:_LONGEST_PART]}… (cut, of {len(text)} characters)"


def shown(value: object, most: int = _LONGEST_PART) -> str:
    """Return the ``repr`` of something that somebody else has sent, or the start of it.

    Parameters
    ----------
    value : object
        Numbers, texts and bytes, also in lists and mappings, of any length; or anything else whose
        ``repr`` is short.
    most : int (default: 200)
        The number of characters that are shown, about. No more than these are made.

    Returns
    -------
    str
        The ``repr``, cut if it is longer.
    """
    parts, length = [], 0
    for part in _repr_in_parts(value, most):
        parts.append(part)
        length += len(part)
        if length > most:
            return f"{''.join(parts)[:most]}…"
    return "".join(parts)


def _repr_in_parts(value: object, most: int) -> Iterator[str]:
    if isinstance(value, str | bytes):
        yield repr(value[: most + 1])
    elif isinstance(value, Mapping):
        yield "{"
        for number, (key, entry) in enumerate(value.items()):
            yield ", " if number else ""
            yield from _repr_in_parts(key, most)
            yield ": "
            yield from _repr_in_parts(entry, most)
        yield "}"
    elif isinstance(value, list):
        yield "["
        for number, entry in enumerate(value):
            yield ", " if number else ""
            yield from _repr_in_parts(entry, most)
        yield "]"
    elif isinstance(value, int) and value.bit_length() > 4 * most:
        yield f"an integer of {value.bit_length()} bits"  # Python refuses to print the longest
    else:
        yield repr(value)


def _text_of(source: object) -> str:
    try:
        return str(source)
    except KeyboardInterrupt:
        raise
    # An exception may be of a class of a client's own.
    except BaseException:
        return f"a {type(source).__name__} that cannot be printed"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
