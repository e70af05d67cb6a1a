"""Registries of classes by their names on the wire."""

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from fedmedian.checks import require_type
from fedmedian.wire.scalars import WireError

Kind = TypeVar("Kind")
Subclass = TypeVar("Subclass")


class Registry(Generic[Kind]):
    """Maps names on the wire to classes of one kind.

    Parameters
    ----------
    base : type
        The base class of all of them.
    noun : str
        What errors call them.
    register : str
        The decorator that adds one, as errors name it.
    """

    def __init__(self, base: type[Any], noun: str, register: str) -> None:
        self._base = base
        self._noun = noun
        self._register = register
        self._classes: dict[str, type[Kind]] = {}

    def add(self, cls: type[Subclass]) -> type[Subclass]:
        """Add a class and return it, as a decorator does.

        A class that is defined again, as in a notebook, replaces the previous one.

        Raises
        ------
        TypeError
            If it does not derive from the base class, or has no name.
        ValueError
            If its name is not valid on the wire, or another class has it.
        """
        known: type[Any] = cls
        if not issubclass(known, self._base):
            raise TypeError(f"a {self._noun} must derive from {self._base.__name__}, got {cls!r}")
        name = getattr(cls, "name", None)
        if not isinstance(name, str):
            raise TypeError(f"{cls.__name__}.name must be a string, got {name!r}")
        if not name or not name.replace("-", "").isalnum() or not name.isascii():
            raise ValueError(
                f"{cls.__name__}.name must consist of letters, digits and hyphens, got {name!r}"
            )
        other = self._classes.get(name, cls)
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"{cls.__name__}.name must be unique, {name!r} is the name of {other.__name__}"
            )
        self._classes[name] = known
        return cls

    def find(self, name: str) -> type[Kind]:
        """Return the class with a name.

        Raises
        ------
        WireError
            If no class has it on this side.
        """
        if name not in self._classes:
            raise WireError(f"{self._noun} {name!r} is unknown here")
        return self._classes[name]

    def make(self, name: str, parameters: dict[str, Any]) -> Kind:
        """Return an instance of the class with a name, made from parameters on the wire.

        Raises
        ------
        WireError
            If there is no such class, or it rejects the parameters.
        """
        cls = self.find(name)
        try:
            return cls(**parameters)
        except (TypeError, ValueError) as error:
            raise WireError(f"{self._noun} {name!r} cannot be used: {error}") from error

    def require(self, argument: str, value: Any) -> None:
        """Raise unless `value` is an instance of a registered class.

        Raises
        ------
        TypeError
            If it is not an instance of the base class.
        ValueError
            If its class is not registered.
        """
        require_type(argument, value, self._base, f"a {self._noun}")
        if self._classes.get(getattr(value, "name", "")) is not type(value):
            raise ValueError(
                f"{argument} must be a {self._noun} that clients know, got {value!r}: decorate "
                f"{type(value).__name__} with {self._register} where both sides import it"
            )

    def __iter__(self) -> Iterator[type[Kind]]:
        return iter(self._classes.values())
