"""The examples in docstrings do what they say."""

import doctest
import importlib
import pkgutil
import re

import pytest

import fedmedian
from tests.tools.places import ROOT

MODULES = [
    "fedmedian",
    *(module.name for module in pkgutil.walk_packages(fedmedian.__path__, "fedmedian.")),
]
NEEDED = {
    "fedmedian.clients.torch_clients": "torch",
    "fedmedian.strategies.results": "matplotlib",
}
"""What the examples of a module need, and the package does not."""


REFERENCE = (ROOT / "docs/api").glob("*.md")
MEMBERS = [
    (owner, name.strip())
    for page in REFERENCE
    for owner, own in re.findall(r"^::: (\S+)\n((?: +.*\n)+)", page.read_text(), re.M)
    for listed in re.findall(r"members: \[(.*)\]", own)
    for name in listed.split(",")
]
"""What the pages of the reference list, each after the class that has it."""


def load(name):
    if name in NEEDED:
        pytest.importorskip(NEEDED[name])
    return importlib.import_module(name)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_work(name):
    assert doctest.testmod(load(name)).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    modules = [load(name) for name in MODULES]
    examples = [test.examples for module in modules for test in finder.find(module)]
    assert sum(map(len, examples)) > 10


@pytest.mark.parametrize(("owner", "name"), sorted({*MEMBERS}))
def test_a_class_has_each_member_that_the_reference_lists(owner, name):
    module, _, kind = owner.rpartition(".")
    assert hasattr(getattr(load(module), kind), name)
