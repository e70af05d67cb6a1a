"""The versions of Flower: what is declared is what is tested."""

import subprocess
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def declared_flower(folder):
    """The versions of Flower that a folder's pyproject.toml admits."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = map(Requirement, project["dependencies"])
    (flower,) = (one for one in requirements if one.name == "flwr")
    return flower.specifier


def test_the_target_test_oldest_installs_the_oldest_declared_flower_before_it_tests():
    (oldest,) = (one.version for one in declared_flower(ROOT) if one.operator == ">=")
    plan = subprocess.run(
        ["make", "--dry-run", "--always-make", "test-oldest"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert plan.index(f"'flwr=={oldest}'") < plan.index(".venv-oldest/bin/python -m pytest")


def test_the_experiment_admits_the_same_versions_of_flower_as_the_package():
    assert declared_flower(ROOT / "experiments" / "apps" / "heterogeneous") == declared_flower(ROOT)
