"""Which way imports may point: clients → fedmedian ← strategies, and kernels below all of it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fedmedian"
SOURCES = sorted(PACKAGE.rglob("*.py"))

CLIENTS, STRATEGIES = "fedmedian.clients", "fedmedian.strategies"

ABOVE = [
    ("kernels",),
    ("wire",),
    ("secure",),
    ("rules",),
    ("model",),
    ("steps",),
    ("privacy",),
    ("aggregators",),
    ("rounds",),
    ("clients", "strategies"),
]
"""The packages from the lowest to the highest; each may import those below it, and itself."""


def imported_names(source, package):
    """Every module that the source imports, and every name that may be one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_within(name, *modules):
    return any(name == module or name.startswith(module + ".") for module in modules)


def level_of(package):
    """The index of a package in `ABOVE`; -1 for modules beside the packages, for all to import."""
    for level, names in enumerate(ABOVE):
        if is_within(package, *(f"fedmedian.{name}" for name in names)):
            return level
    return -1


def may_import(package, name, path=PACKAGE / "some_module.py"):
    """Whether a file of a package may import a module, or a name out of one."""
    if is_within(name, "fedmedian.strategies" if package == CLIENTS else CLIENTS):
        return package not in (CLIENTS, STRATEGIES) or is_within(name, package)
    if is_within(name, "torch"):
        return package == CLIENTS
    if is_within(name, "flwr"):
        return package in (CLIENTS, STRATEGIES) or path == PACKAGE / "records.py"
    if package == "fedmedian":
        return path.name == "__init__.py" or level_of(name) <= level_of("fedmedian.model")
    if package == "fedmedian.kernels":
        return is_within(name, package) or not is_within(name, "fedmedian")
    return level_of(name) <= level_of(package)


def package_of(path):
    return ".".join(path.relative_to(ROOT).parts[:-1])


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_a_file_imports_nothing_that_its_package_must_not_know(path):
    package = package_of(path)
    names = set(imported_names(path.read_text(encoding="utf-8"), package))
    assert not [name for name in sorted(names) if not may_import(package, name, path)]


def test_every_package_is_looked_at():
    found = {package_of(path) for path in SOURCES}
    assert found == {"fedmedian", *(f"fedmedian.{name}" for names in ABOVE for name in names)}


@pytest.mark.parametrize(
    ("package", "source"),
    [
        (CLIENTS, "from fedmedian import strategies"),
        (CLIENTS, "from fedmedian.strategies.sign import SignSGD"),
        (CLIENTS, "from ..strategies import SignSGD"),
        (CLIENTS, "from .. import strategies"),
        (STRATEGIES, "import torch"),
        (STRATEGIES, "import torch.nn as nn"),
        ("fedmedian", "def f():\n    from flwr.app import Array"),
        ("fedmedian.rounds", "from flwr.app import Array"),
        ("fedmedian.steps", "from fedmedian.rounds.recipe import Recipe"),
        ("fedmedian.rules", "from fedmedian.model.layout import Layout"),
        ("fedmedian.kernels", "from fedmedian.rules.noise import Gaussian"),
        ("fedmedian.kernels", "from .. import noise"),
    ],
)
def test_every_way_to_import_what_is_forbidden_is_seen(package, source):
    assert not all(may_import(package, name) for name in imported_names(source, package))


def test_a_module_of_a_similar_name_may_be_imported():
    assert may_import(STRATEGIES, "torchvision")


def test_importing_the_numerics_loads_neither_flower_nor_torch():
    code = "import sys, fedmedian; print(sorted({'flwr', 'torch'} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_importing_the_clients_loads_no_heavy_part_of_a_library():
    heavy = {"torch", "randomgen", *(f"scipy.{name}" for name in ("fft", "special", "optimize"))}
    code = f"import sys, fedmedian.clients; print(sorted({heavy} & sys.modules.keys()))"
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
