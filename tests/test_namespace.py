"""The names of the package: where they are, and what `dir` lists."""

import importlib

import pytest

import fedmedian
from fedmedian import clients, privacy, strategies

ELSEWHERE = [
    (module.__name__, name) for module in (clients, privacy, strategies) for name in module.__all__
]


@pytest.mark.parametrize(("module", "name"), ELSEWHERE)
def test_a_name_that_is_elsewhere_is_answered_with_where_it_is(module, name):
    with pytest.raises(ImportError, match=f"^{name} is in {module}: from {module} import {name}$"):
        getattr(fedmedian, name)


def test_the_answer_reaches_whoever_imports():
    with pytest.raises(ImportError, match=r"from fedmedian\.strategies import SignSGD"):
        from fedmedian import SignSGD  # noqa: F401


def test_a_name_that_is_nowhere_is_no_attribute():
    assert not hasattr(fedmedian, "FedProx")


@pytest.mark.parametrize("module", [fedmedian, clients, strategies])
def test_dir_lists_what_is_public(module):
    listed = dir(module)
    assert set(module.__all__) <= set(listed)
    assert all(not name.startswith("_") for name in set(listed) - {"__version__"})
    for name in set(listed) - set(module.__all__) - {"__version__"}:
        importlib.import_module(f"{module.__name__}.{name}")
