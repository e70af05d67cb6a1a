"""Warnings about a model and its arguments before the first round."""

from collections.abc import Iterator, Sequence

from fedmedian.model.layout import RUNNING_STATISTICS, is_by_position, is_finite, matches
from fedmedian.rounds.recipe import Question

_FRESH = (1, 0, 0, 1)
"""Initial values of a normalization layer: weight, bias, running mean and variance, in order."""

_STATISTICS = (*RUNNING_STATISTICS, "*moving_mean", "*moving_variance", "*batch_stats*")
"""Name patterns of running statistics in torch, Keras and Flax."""


def doubts(
    first: Question, names: Sequence[str], exact: tuple[str, ...]
) -> Iterator[tuple[str, ...]]:
    """Yield probable mistakes, each with its remedy, as the template and the words of a warning.

    Parameters
    ----------
    first : Question
        The run's first question.
    names : sequence of str
        The names of all of the model's arrays; the first question may train a part of them.
    exact : tuple of str
        Patterns for the names of exact arrays.

    Yields
    ------
    tuple of str
        A warning: no array is trained; a pattern, other than a default, that matches nothing;
        trained arrays that are not finite, or that look like running statistics.
    """
    for pattern in exact:
        if pattern not in RUNNING_STATISTICS and not any(matches(pattern, one) for one in names):
            brackets = "; write [[] for a bracket in a pattern" if "[" in pattern else ""
            said = f"exact: {pattern!r} matches no array of the model, which has {names}{brackets}"
            yield "%s", said
    flat = [spec.name for spec in first.layout.flat]
    if not flat and first.model.keys() == {*names}:  # later rounds may train the others
        yield (
            "%s",
            "no array of the model is trained: clients send all of them exactly, as counters are "
            "sent; use floating-point arrays, np.zeros(3) instead of np.zeros(3, int), and do not "
            "name all of them in exact",
        )
    if spoiled := [name for name in flat if not is_finite(first.model[name])]:
        yield (
            "%s",
            "arrays that hold NaN or infinity are not trained and stay as they are; leave them out "
            f"of the model, or match them in exact so that clients' values count: {spoiled}",
        )
    if exact and (statistics := [*_running_statistics(first)]):
        wanted = statistics if exact == RUNNING_STATISTICS else [*exact, *statistics]
        slots = ", ".join(["%s"] * len(wanted))  # one word would be truncated
        yield (
            "arrays that look like BatchNorm's running statistics are trained: noise can make a "
            "variance negative, and outputs NaN; unless they are something else, pass "
            f"exact=[{slots}]",
            *map(repr, wanted),
        )


def _running_statistics(first: Question) -> Iterator[str]:
    """Yield the names of trained arrays that look like running statistics.

    Without names they are recognized by their places: before a counter, as in torch, or among a
    layer's initial values, as in Keras.
    """
    specs, model = first.layout.specs, first.model
    if not is_by_position(model):
        names = (spec.name for spec in first.layout.flat)
        yield from (n for n in names if any(matches(one, n) for one in _STATISTICS))
        return
    for place in range(2, len(specs) + 1):
        pair = specs[place - 2 : place]
        if any(spec.exact or spec.shape != pair[0].shape or len(spec.shape) != 1 for spec in pair):
            continue
        is_counted = any(one.exact and one.shape == () for one in specs[place : place + 1])
        layer = specs[max(place - len(_FRESH), 0) : place]
        is_fresh = len(layer) == len(_FRESH) and all(
            spec.shape == pair[0].shape and (model[spec.name] == value).all()
            for spec, value in zip(layer, _FRESH, strict=True)
        )
        if is_counted or is_fresh:
            yield from (spec.name for spec in pair)
