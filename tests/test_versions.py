"""The versions of what we depend on: what is declared is what is tested."""

import re
import subprocess
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def declared(folder):
    """The versions that a folder's pyproject.toml admits, by name."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {one.name: one.specifier for one in map(Requirement, project["dependencies"])}


def test_the_target_test_oldest_installs_the_oldest_of_each_dependency_before_it_tests():
    plan = subprocess.run(
        ["make", "--dry-run", "--always-make", "test-oldest"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    tests = plan.index(".venv-oldest/bin/python -m pytest")
    (unpinned,) = re.findall(r"grep -Ev '\^\((.*?)\)=='", plan)
    for name, versions in declared(ROOT).items():
        (oldest,) = (one.version for one in versions if one.operator == ">=")
        assert plan.rindex(f" {name}=={oldest}") < tests
        assert name in unpinned.split("|")


def test_the_experiment_admits_the_same_versions_of_flower_as_the_package():
    experiment = declared(ROOT / "experiments" / "apps" / "heterogeneous")
    assert experiment["flwr"] == declared(ROOT)["flwr"]
