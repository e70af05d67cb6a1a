"""The examples in docstrings do what they say."""

import doctest
import importlib
import pkgutil

import pytest

import fedmedian

MODULES = [
    "fedmedian",
    *(module.name for module in pkgutil.walk_packages(fedmedian.__path__, "fedmedian.")),
]
NEEDED = {
    "fedmedian.clients.torch_clients": "torch",
    "fedmedian.strategies.results": "matplotlib",
}
"""What the examples of a module need, and the package does not."""


def load(name):
    needed = {
        "fedmedian.clients.torch_clients": "torch",
        "fedmedian.strategies.results": "matplotlib",
    }
    if name in needed:
        pytest.importorskip(needed[name])
    return importlib.import_module(name)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_work(name):
    assert doctest.testmod(load(name)).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    modules = [load(name) for name in MODULES]
    examples = [test.examples for module in modules for test in finder.find(module)]
    assert sum(map(len, examples)) > 10
