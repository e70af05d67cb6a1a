"""How the API reference reads our docstrings where numpydoc leaves a choice."""

import re
from collections.abc import Iterator
from typing import Any

from griffe import Alias, Class, Extension, Function, Module, Object

_DEFAULT = re.compile(r"^(\s*[*\w, ]+ : .+?) \(default: (.+)\)$", flags=re.MULTILINE)
_SEVERAL = re.compile(r"^( *)([a-z_]\w*(?:, \w+)+)\n((?:\1 +.*\n)+)", flags=re.MULTILINE)
_CHOICES = re.compile(r"^(\s*[*\w, ]+ : )\{(.+?)\}", flags=re.MULTILINE)


class Parameters(Extension):
    """Separates a parameter's default, which our docstrings put in brackets, from its type."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite an object's docstring before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = as_numpydoc(obj.docstring.value)


class Defaults(Extension):
    """Writes out the defaults of arguments that the code gives by a constant's name."""

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Rewrite the signatures of a package."""
        for function in _functions(pkg):
            for parameter in function.parameters:
                if (constant := _constant(str(parameter.default), function)) is not None:
                    parameter.default = str(constant.value)


def _constant(name: str, function: Function) -> Any:
    """Return a constant of ours that a function's default names, or None."""
    known = {**function.module.members, **(function.parent or function.module).members}
    found = known.get(name)
    if isinstance(found, Alias):
        return found.final_target if found.target_path.startswith("fedmedian.") else None
    return found


def _functions(scope: Module | Class) -> Iterator[Function]:
    for member in scope.members.values():
        if isinstance(member, Function):
            yield member
        elif isinstance(member, Module | Class):
            yield from _functions(member)


def as_numpydoc(docstring: str) -> str:
    """Return a docstring with each parameter's type and default as griffe's parser expects them.

    Parameters that are described together, without a type, become one each, or the parser gives all
    of them the type of the first.
    """
    text = _SEVERAL.sub(_one_each, docstring)
    text = _CHOICES.sub(lambda found: found[1] + " or ".join(found[2].split(", ")), text)
    return _DEFAULT.sub(lambda found: f"{found[1]}, default: {found[2].strip('`')}", text)


def _one_each(several: re.Match[str]) -> str:
    indent, names, description = several.groups()
    return "".join(f"{indent}{name}\n{description}" for name in names.split(", "))
