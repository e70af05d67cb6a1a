"""Wrappers of methods that users override, so that what was really sent or heard counts."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

Method = Callable[..., Any]
"""A method that is bound to its strategy."""

Around = Callable[..., Any]
"""Takes the strategy, the method that it is to call, and that method's arguments."""


def wrap_override(cls: type, base: type, name: str, around: Around) -> None:
    """Wrap a method that a subclass or its mixin overrides.

    Parameters
    ----------
    cls : type
        The subclass.
    base : type
        The strategy. Its own methods, and those that its other subclasses had wrapped, stay.
    name : str
        The method's name.
    around : callable
        What takes the method's place.
    """
    definer = next(one for one in cls.__mro__ if name in vars(one))
    if definer is not cls and issubclass(definer, base):
        return
    own = vars(definer)[name]

    @wraps(getattr(cls, name))
    def method(self: Any, *given: Any, **named: Any) -> Any:
        # A static method does not take the strategy, nor does an object that can be called.
        bound = own.__get__(self) if hasattr(own, "__get__") else own
        return around(self, bound, *given, **named)

    setattr(cls, name, method)


def noting(note: Callable[[Any, Any, list[Any]], None]) -> Around:
    """Return what lets a strategy note the messages that a subclass's method returns.

    Parameters
    ----------
    note : callable
        Takes the strategy, the round that the method is called for, None if its name is not known,
        and the messages, which it may replace by others.
    """

    def configure_and_note(
        strategy: Any, configure: Method, /, *given: Any, **named: Any
    ) -> list[Any]:
        asked = [*(configure(*given, **named) or ())]
        # A subclass may build no strategy, and pass on what another one asks.
        if "recipe" in vars(strategy):
            note(strategy, given[0] if given else named.get("server_round"), asked)
        return asked

    return configure_and_note


def seeing_all(
    receiving: Callable[[Any, Sequence[Any]], AbstractContextManager[None]],
) -> Around:
    """Return what lets a strategy see all replies that a subclass's method is given.

    Parameters
    ----------
    receiving : callable
        Takes the strategy and the replies, and returns the context that the method runs in.
    """

    def see_and_aggregate(strategy: Any, aggregate: Method, /, *given: Any, **named: Any) -> Any:
        if len(given) > 1:
            server_round, replies, *others = given
            given = server_round, (all_replies := [*replies]), *others
        elif "replies" in named:
            named["replies"] = all_replies = [*named["replies"]]
        else:  # a subclass may name arguments its own way
            return aggregate(*given, **named)
        with receiving(strategy, all_replies):
            return aggregate(*given, **named)

    return see_and_aggregate
