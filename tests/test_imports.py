"""Which way imports may point, clients → fedmedian ← strategies, and what numerics do without."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FORBIDDEN = {
    "fedmedian": ("flwr", "torch", "fedmedian.clients", "fedmedian.strategies"),
    "clients": ("fedmedian.strategies",),
    "strategies": ("fedmedian.clients", "torch"),
}

SOURCES = [
    (path, forbidden)
    for folder, forbidden in FORBIDDEN.items()
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def imported_names(source, package):
    """Every module that the source imports, and every name that may be one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_within(name, module):
    return name == module or name.startswith(module + ".")


def package_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts[:-1]
    return ".".join(parts if parts[0] == "fedmedian" else ("fedmedian", *parts))


@pytest.mark.parametrize(
    ("path", "forbidden"), SOURCES, ids=[str(path.relative_to(ROOT)) for path, _ in SOURCES]
)
def test_a_file_imports_nothing_that_its_package_must_not_know(path, forbidden):
    names = set(imported_names(path.read_text(encoding="utf-8"), package_of(path)))
    bad = sorted(name for name in names if any(is_within(name, module) for module in forbidden))
    assert not bad


def test_all_three_packages_are_looked_at():
    assert {path.relative_to(ROOT).parts[0] for path, _ in SOURCES} == set(FORBIDDEN)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import torch", "torch"),
        ("import torch.nn as nn", "torch"),
        ("def f():\n    from flwr.app import Array", "flwr"),
        ("from fedmedian import strategies", "fedmedian.strategies"),
        ("from fedmedian.strategies.core import Round", "fedmedian.strategies"),
        ("from ..strategies import SignSGD", "fedmedian.strategies"),
        ("from .. import strategies", "fedmedian.strategies"),
    ],
)
def test_every_way_to_import_is_seen(source, name):
    assert any(is_within(found, name) for found in imported_names(source, "fedmedian.clients"))


def test_a_similar_name_is_not_taken_for_it():
    assert not is_within("torchvision", "torch")


def test_importing_the_numerics_loads_neither_flower_nor_torch():
    code = "import sys, fedmedian; print(sorted({'flwr', 'torch'} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_client_classes_say_what_they_need_where_there_is_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from fedmedian.clients import InProcessGrid, perturb\n"
        "from fedmedian.clients import SignClient"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith("needs torch: pip install 'fedmedian[torch]'")
