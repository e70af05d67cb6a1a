"""The names of the package: where they are, and what `dir` lists."""

import importlib

import pytest

import fedmedian
from fedmedian import clients, privacy, strategies

PLACES = (fedmedian, clients, privacy, strategies)


@pytest.mark.parametrize(
    ("asked", "place", "name"),
    [
        (asked.__name__, place.__name__, name)
        for asked in PLACES
        for place in PLACES
        if place is not asked
        for name in place.__all__
    ],
)
def test_a_name_that_is_elsewhere_is_answered_with_where_it_is(asked, place, name):
    with pytest.raises(ImportError, match=f"^{name} is in {place}: from {place} import {name}$"):
        getattr(importlib.import_module(asked), name)


@pytest.mark.parametrize("package", [clients, privacy, strategies], ids=lambda one: one.__name__)
def test_a_package_need_not_be_imported_by_itself(package, monkeypatch):
    name = package.__name__.removeprefix("fedmedian.")
    monkeypatch.delattr(fedmedian, name)
    assert getattr(fedmedian, name) is package


def test_the_answer_reaches_whoever_imports():
    with pytest.raises(ImportError, match=r"from fedmedian\.strategies import SignSGD"):
        from fedmedian import SignSGD  # noqa: F401


@pytest.mark.parametrize("asked", PLACES, ids=lambda module: module.__name__)
def test_a_name_that_is_nowhere_is_no_attribute(asked):
    assert not hasattr(asked, "FedProx")


@pytest.mark.parametrize("module", [fedmedian, clients, strategies])
def test_dir_lists_what_is_public(module):
    listed = dir(module)
    assert set(module.__all__) <= set(listed)
    assert all(not name.startswith("_") for name in set(listed) - {"__version__"})
    for name in set(listed) - set(module.__all__) - {"__version__"}:
        importlib.import_module(f"{module.__name__}.{name}")
