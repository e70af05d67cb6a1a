"""The versions of what we depend on: what is declared is what is tested."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def declared(folder):
    """The versions that a folder's pyproject.toml admits, by name."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {one.name: one.specifier for one in map(Requirement, project["dependencies"])}


def oldest(versions):
    """The version from which on others are admitted."""
    (version,) = (one.version for one in versions if one.operator == ">=")
    return version


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
        assert plan.rindex(f" {name}=={oldest(versions)}") < tests
        assert name in unpinned.split("|")


def test_the_experiment_admits_the_same_versions_of_flower_as_the_package():
    experiment = declared(ROOT / "experiments" / "apps" / "heterogeneous")
    assert experiment["flwr"] == declared(ROOT)["flwr"]


class TestDocuments:
    """The versions that README and docs name are those declared and tested."""

    @pytest.fixture(scope="class")
    @classmethod
    def pins(cls):
        lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        return dict(line.split("==") for line in lines if "==" in line)

    def test_the_readme_names_flower_as_declared_its_oldest_and_the_pinned_one(self, pins):
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        ((shown, *tested),) = re.findall(r"`(flwr\S+)`, tested with (\S+) and (\S+?)\. ", readme)
        versions = declared(ROOT)["flwr"]
        assert Requirement(shown).specifier == versions
        assert tested == [oldest(versions), pins["flwr"]]

    def test_the_table_has_what_is_admitted_and_what_is_pinned(self, pins):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = project["optional-dependencies"]
        admitted = declared(ROOT) | {
            one.name: one.specifier for one in map(Requirement, extras["torch"] + extras["privacy"])
        }
        page = (ROOT / "docs" / "support.md").read_text(encoding="utf-8")
        row = re.compile(r"^\| (\w+)[^|]*\| (\S+) or newer[^|]*\| (\S+) \|$", flags=re.MULTILINE)
        rows = {name.lower(): versions for name, *versions in row.findall(page)}
        assert rows.pop("python")[0] == project["requires-python"].removeprefix(">=")
        rows["flwr"] = rows.pop("flower")
        assert rows == {name: [oldest(admitted[name]), pins[name]] for name in admitted}
