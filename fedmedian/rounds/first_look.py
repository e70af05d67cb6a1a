"""Warnings about a model and its arguments before the first round."""

from collections.abc import Iterator, Sequence

from fedmedian.model.layout import RUNNING_STATISTICS, is_finite, matches
from fedmedian.rounds.recipe import Question


def doubts(first: Question, names: Sequence[str], exact: tuple[str, ...]) -> Iterator[str]:
    """Yield probable mistakes, each with its remedy.

    Parameters
    ----------
    first : Question
        The run's first question.
    names : sequence of str
        The names of the model's arrays, of which that question may train a part.
    exact : tuple of str
        Patterns for the names of exact arrays.

    Yields
    ------
    str
        A warning: no array is trained; a pattern, other than a default, that matches nothing; or
        trained arrays that are not finite.
    """
    for pattern in exact:
        if pattern not in RUNNING_STATISTICS and not any(matches(pattern, one) for one in names):
            brackets = "; write [[] for a bracket in a pattern" if "[" in pattern else ""
            yield f"exact: {pattern!r} matches no array of the model, which has {names}{brackets}"
    flat = [spec.name for spec in first.layout.flat]
    if not flat:
        yield (
            "no array of the model is trained: clients send all of them exactly, which learns "
            "nothing from updates; use floating-point arrays, np.zeros(3) instead of np.zeros(3, "
            "int), and do not name all of them in exact"
        )
    if spoiled := [name for name in flat if not is_finite(first.model[name])]:
        yield (
            "arrays that hold NaN or infinity are not trained and stay as they are; leave them out "
            f"of the model, or match them in exact so that clients' values count: {spoiled}"
        )
