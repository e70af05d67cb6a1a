"""How the API reference reads our docstrings where numpydoc leaves a choice."""

import re
from typing import Any

from griffe import Extension, Object

_DEFAULT = re.compile(r"^(\s*[*\w, ]+ : .+?) \(default: (.+)\)$", flags=re.MULTILINE)
_SEVERAL = re.compile(r"^( *)([a-z_]\w*(?:, \w+)+)\n((?:\1 +.*\n)+)", flags=re.MULTILINE)
_CHOICES = re.compile(r"^(\s*[*\w, ]+ : )\{(.+?)\}", flags=re.MULTILINE)


class Parameters(Extension):
    """Tells a parameter's default, which our docstrings put in brackets, from its type."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite an object's docstring before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = as_numpydoc(obj.docstring.value)


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
