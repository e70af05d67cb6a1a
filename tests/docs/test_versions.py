"""The versions of what we depend on: what is declared is what is tested."""

import ast
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.tools.places import ROOT


def declared(folder):
    """The versions that a folder's pyproject.toml admits, by name."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {one.name: one.specifier for one in map(Requirement, project["dependencies"])}


def oldest(versions):
    """The version from which on others are admitted."""
    (version,) = (one.version for one in versions if one.operator == ">=")
    return version


def plan_of(*arguments):
    """What make would do."""
    command = ["make", "--dry-run", "--always-make", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_target_test_oldest_installs_the_oldest_of_each_dependency_before_it_tests():
    plan = plan_of("test-oldest")
    tests = plan.index(".venv-oldest/bin/python -m pytest")
    (unpinned,) = re.findall(r"grep -Ev '\^\((.*?)\)=='", plan)
    for name, versions in declared(ROOT).items():
        assert plan.rindex(f" {name}=={oldest(versions)}") < tests
        assert name in unpinned.split("|")


def test_the_target_test_newest_upgrades_all_dependencies_of_a_python_of_choice_before_it_tests():
    plan = plan_of("test-newest", "PYTHON=/opt/bin/python3.13")
    made = plan.index("/opt/bin/python3.13 -m venv .venv-newest-python3.13")
    upgraded = plan.index("--upgrade --upgrade-strategy eager --editable '.[test]'")
    assert made < upgraded < plan.index(".venv-newest-python3.13/bin/python -m pytest")
    assert "constraint" not in plan


def imported(path, seen):
    """The modules that a file's own lines import, and those that our files among them import."""
    seen.add(path)
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if "importorskip" in ast.dump(node):
            return
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
        for name in names:
            yield name.split(".")[0]
            if (file := ROOT / f"{name.replace('.', '/')}.py") not in seen and file.exists():
                yield from imported(file, seen)


def test_the_tests_that_target_test_newest_collects_import_only_what_it_installs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras, wanted = project["optional-dependencies"], [*project["dependencies"]]
    (own,) = (one for one in map(Requirement, extras["test"]) if one.name == "fedmedian")
    for extra in ("test", *own.extras):
        wanted += extras[extra]
    modules = {Requirement(one).name.replace("-", "_") for one in wanted}
    modules |= {"Crypto", "packaging"}  # pycryptodome's, and what pytest needs
    ours = {"benchmarks", "experiments", "fedmedian", "tests"}
    skipped, seen = ROOT / "tests" / "experiments", set()  # its conftest asks for torch
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if not path.is_relative_to(skipped):
            missing = {*imported(path, seen)} - sys.stdlib_module_names - modules - ours
            assert not missing, path


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

    def test_the_matrix_has_the_oldest_the_pinned_and_every_python_that_is_named(self, pins):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        page = (ROOT / "docs" / "support.md").read_text(encoding="utf-8")
        version = r"(\d[\d.]*)"
        row = rf"^\| {version} \| {version} \| {version} \| {version} \|.*`make (.*?)` \|$"
        rows = {command: of for *of, command in re.findall(row, page, flags=re.MULTILINE)}
        names = ("flwr", "numpy", "scipy")
        assert rows["test"][1:] == [pins[name] for name in names]
        for shown, name in zip(rows["test-oldest"][1:], names, strict=True):
            assert Version(shown) == Version(oldest(declared(ROOT)[name]))
        pythons = {f"Programming Language :: Python :: {of[0]}" for of in rows.values()}
        numbered = re.compile(r"Programming Language :: Python :: 3\.\d+")
        assert pythons == {one for one in project["classifiers"] if numbered.fullmatch(one)}
