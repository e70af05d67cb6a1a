"""Safe text from other parties in Flower's log and in error messages."""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import dropwhile

LOGGER = logging.getLogger("flwr")
"""Flower's logger."""

LONGEST = 300
"""The largest number of characters of a text in the log."""

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")

_LONGEST_PART = 200
"""The largest number of characters of a text within a message."""

_LONGEST_TRACE = 100_000
"""The largest number of characters of a traceback that is searched."""

_RAY_WORKER, _RAY_END = "<class 'ray.exceptions.RayTaskError(", "'>"

_CAUSE = "\n\nThe above exception was the direct cause of the following exception:\n\n"

_CONTEXT = "\n\nDuring handling of the above exception, another exception occurred:\n\n"

_FRAME = '\n  File "'

_LONGEST_INTEGER = 2000
"""The largest number of bits of an integer that is shown: Python refuses to print long ones."""


def warn(template: str, *words: object) -> None:
    """Log a warning whose words can neither forge a line nor fill the disk.

    Parameters
    ----------
    template : str
        The warning, with one %s or %d per word.
    *words : object
        The values: integers unchanged, all else through `as_line`.
    """
    LOGGER.warning(template, *(w if isinstance(w, int) else as_line(w) for w in words))


class Once:
    """Logs each warning once: a problem in one round usually recurs in all of them."""

    def __init__(self) -> None:
        self._said = set[object]()

    def is_first(self, topic: object) -> bool:
        """Return whether this is the first call for a topic."""
        is_first = topic not in self._said
        self._said.add(topic)
        return is_first

    def warn(self, topic: object, template: str, *words: object) -> None:
        """Log a warning if it is the first on its topic; see `warn`."""
        if self.is_first(topic):
            warn(template, *words)


@contextmanager
def warned_of(consequence: str) -> Iterator[None]:
    """Log any exception in this context instead of raising it, except Ctrl-C.

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
    """Return the text of any object as part of one log line.

    Parameters
    ----------
    source : object
        A text, an exception, or anything else.

    Returns
    -------
    str
        Its text, with unprintable characters escaped, truncated after `LONGEST` characters. No
        more than that is copied.

    Examples
    --------
    >>> as_line(KeyError("loss"))
    "'loss'"
    """
    text = _text_of(source)
    start = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:LONGEST])
    if len(text) <= LONGEST and len(start) <= LONGEST:
        return start
    return f"{start[:LONGEST]}… (cut, of {len(text)} characters)"


def without_addresses(text: str) -> str:
    """Return a text without the addresses of objects, which differ in each process.

    Examples
    --------
    >>> without_addresses("got <object object at 0x7f2a5c0d>")
    'got <object object>'
    """
    return _ADDRESS.sub("", text)


def text_of(source: object) -> str:
    """Return the text of any object as part of another text, even if it cannot be printed.

    Parameters
    ----------
    source : object
        A text, an exception, or anything else.

    Returns
    -------
    str
        Its ``str`` after `cut`, with surrogates escaped, which no encoding accepts.
    """
    return cut(_text_of(source)).encode(errors="backslashreplace").decode()


def failure_of(source: object) -> str:
    """Return the text of a failure that Flower reports, as `text_of` does.

    A Ray worker puts its own number and a traceback around the exception of the client's app. Only
    the exception is kept: it would be cut off otherwise, and one reason would count as several.

    Examples
    --------
    >>> failure_of(OSError("no camera"))
    'no camera'
    """
    text = _text_of(source)
    if str(type(source)).startswith(_RAY_WORKER):  # by start_simulation, as it is
        text = f"{type(source)}:<'{text}'>"
    before, worker, trace = text[:_LONGEST_TRACE].partition(_RAY_WORKER)
    trace, _, after = trace.rpartition(_RAY_END)
    if worker:
        trace = trace.rpartition(_CAUSE)[0] or trace  # the last exception is the worker's own
        trace = trace.rpartition(_CAUSE)[2].rpartition(_CONTEXT)[2]
        _, *lines = trace.rpartition(_FRAME)[2].split("\n")
        raised = "\n".join(dropwhile(lambda line: line.startswith("    "), lines))
        text = f"{before}{raised}{after}" if raised else text
    return text_of(text)


def cut(text: str) -> str:
    """Return a text as part of a message, truncated to 200 characters plus its length.

    Truncating early avoids copies of a long text, and lets the message fit one log line.
    """
    if len(text) <= _LONGEST_PART:
        return text
    return f"{text[:_LONGEST_PART]}… (cut, of {len(text)} characters)"


def shown(value: object, most: int = _LONGEST_PART) -> str:
    """Return the ``repr`` of a received value, or the start of it.

    Parameters
    ----------
    value : object
        Numbers, texts and bytes of any length, also in lists and mappings; or anything else with
        a short ``repr``.
    most : int (default: 200)
        The approximate number of characters to show. Not many more are ever built.

    Returns
    -------
    str
        The ``repr``, truncated if it is longer.

    Examples
    --------
    >>> shown([1, 2, 3], most=5)
    '[1, 2…'
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
    elif isinstance(value, Mapping | list):
        start, end = "[]" if isinstance(value, list) else "{}"
        yield start
        for number, entry in enumerate(value):
            yield ", " if number else ""
            yield from _repr_in_parts(entry, most)
            if isinstance(value, Mapping):
                yield ": "
                yield from _repr_in_parts(value[entry], most)
        yield end
    elif isinstance(value, int) and value.bit_length() > min(4 * most, _LONGEST_INTEGER):
        yield f"an integer of {value.bit_length()} bits"
    else:
        yield repr(value)


def _text_of(source: object) -> str:
    try:
        return str(source)
    except KeyboardInterrupt:
        raise
    # An exception may be of a custom class.
    except BaseException:
        return f"a {type(source).__name__} that cannot be printed"
