"""Checks of constructor arguments: each error names the argument, its value and what is allowed."""

from collections.abc import Collection
from inspect import signature
from math import inf, isfinite
from numbers import Integral, Real
from types import UnionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmedian.logs import cut


def require_type(name: str, value: Any, allowed: type | UnionType, wanted: str) -> None:
    """Raise ``TypeError`` unless `value` is an instance of `allowed`.

    Parameters
    ----------
    name : str
        The argument's name.
    value : Any
        Its value.
    allowed : type or union of types
        The allowed types.
    wanted : str
        The same in words, for the message.

    Raises
    ------
    TypeError
        If `value` has another type.

    Examples
    --------
    >>> require_type("folder", 3, str, "a string")
    Traceback (most recent call last):
        ...
    TypeError: folder must be a string, got 3 (int)
    """
    if not isinstance(value, allowed):
        found = _with_type(value)
        if isinstance(value, type) and issubclass(value, allowed):
            example = f"{value.__name__}({'…' if _has_required_arguments(value) else ''})"
            found = f"{value!r}, not an instance, such as {example}"
        raise TypeError(f"{name} must be {wanted}, got {found}")


def _with_type(value: object) -> str:
    return f"{cut(repr(value))} ({type(value).__name__})"


def _has_required_arguments(made: type) -> bool:
    try:
        signature(made).bind()
    except (TypeError, ValueError):
        return True
    return False


def require_real(
    name: str,
    value: Any,
    *,
    low: float = -inf,
    high: float = inf,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """Return `value` as a float if it is a finite number within bounds.

    Parameters
    ----------
    name : str
        The argument's name.
    value : Any
        Its value; a bool does not count as a number.
    low, high : float
        The allowed range, ends included.
    open_low, open_high : bool
        Whether that end is excluded.

    Returns
    -------
    float
        The value.

    Raises
    ------
    TypeError
        If `value` is not a real number.
    ValueError
        If it is not finite or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {_with_type(value)}")
    try:
        number = float(value)
    except OverflowError:  # an integer or a fraction too large for a float
        number = inf
    too_low = number <= low if open_low else number < low
    too_high = number >= high if open_high else number > high
    if not isfinite(number) or too_low or too_high:
        bounds = [] if isfinite(number) else ["finite"]
        if low > -inf:
            bounds.append(f"{'>' if open_low else '>='} {low:g}")
        if high < inf:
            bounds.append(f"{'<' if open_high else '<='} {high:g}")
        raise ValueError(f"{name} must be {' and '.join(bounds)}, got {value!r}")
    return number


def require_integer(name: str, value: Any, *, low: int, high: int | None = None) -> int:
    """Return `value` as an int if it is an integer within bounds.

    Parameters
    ----------
    name : str
        The argument's name.
    value : Any
        Its value; a bool does not count as an integer.
    low : int
        The smallest allowed value.
    high : int, optional
        The largest allowed value.

    Returns
    -------
    int
        The value.

    Raises
    ------
    TypeError
        If `value` is not an integer.
    ValueError
        If it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {_with_type(value)}")
    number = int(value)
    if number < low or (high is not None and number > high):
        at_most = "" if high is None else f" and <= {high}"
        raise ValueError(f"{name} must be >= {low}{at_most}, got {value!r}")
    return number


def require_choice(name: str, value: Any, allowed: Collection[str]) -> None:
    """Raise unless `value` is one of the `allowed` strings.

    Parameters
    ----------
    name : str
        The argument's name.
    value : Any
        Its value.
    allowed : collection of str
        The allowed values.

    Raises
    ------
    TypeError
        If `value` is not a string.
    ValueError
        If it is not allowed.
    """
    require_type(name, value, str, "a string")
    if value not in allowed:
        raise ValueError(f"{name} must be one of {sorted(allowed)}, got {value!r}")


def require_result(
    rule: object, values: Any, size: int, dtype: type[np.floating] = np.float32
) -> NDArray[Any]:
    """Return what a rule has returned, as an array that may be written to.

    Raises
    ------
    ValueError
        If it is not an array of real numbers of shape (`size`,).
    """
    if not isinstance(values, np.ndarray):
        raise ValueError(f"{rule!r} must return an array of shape {(size,)}, got {values!r}")
    if values.shape != (size,) or values.dtype.kind not in "fiu":
        raise ValueError(
            f"{rule!r} must return real numbers of shape {(size,)}, got {values.dtype} of shape "
            f"{values.shape}"
        )
    return np.require(values, dtype, "W")
