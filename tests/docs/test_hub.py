"""The app for Flower Hub meets its rules, by Flower's own commands: all but the upload itself.

That it runs in simulation and in deployment, unchanged, is what `experiments/test_simulation.py`
and `experiments/test_deployment.py` show.
"""

import ast
import importlib
import re
import sys
import tomllib
import zipfile
from io import BytesIO
from itertools import chain

import pytest
from flwr.cli.auth_plugin.oidc_cli_plugin import OidcCliPlugin
from flwr.cli.build import build_fab_from_files
from flwr.cli.utils import collect_files
from flwr.supercore.constant import APP_VERSION_PATTERN
from packaging.requirements import Requirement

from experiments.apps import HETEROGENEOUS
from tests.tools.places import ROOT

publishing = importlib.import_module("flwr.cli.app_cmd.publish")  # Flower's name is the function's
# What is imported by another name than it is installed by; datasets is what flwr-datasets gives.
INSTALLED_AS = {"sklearn": "scikit-learn", "datasets": "flwr-datasets"}


def read(folder):
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def requirements(*lists):
    return {one.name: one.specifier for one in map(Requirement, chain(*lists))}


@pytest.fixture(scope="module")
def files():
    """The app's files, by their paths in its folder."""
    found = collect_files(HETEROGENEOUS)
    return {name: path for name, path in found.items() if "__pycache__" not in name}


class TestPublish:
    """`flwr app publish` of one who is logged in, up to what it would send."""

    @pytest.fixture
    def sent(self, monkeypatch):
        """What has been sent, as paths in the app and their content."""
        sent = {}

        class Account(OidcCliPlugin):
            def __init__(self):
                self.access_token = "token"

            def load_tokens(self):
                pass

        class Accepted:
            ok = True

        def post(url, files, **options):
            sent.update({name: content.read() for _, (name, content, _) in files})
            return Accepted()

        log_in = "load_cli_auth_plugin_from_connection"
        monkeypatch.setattr(publishing, log_in, lambda address: Account())
        monkeypatch.setattr(publishing.requests, "post", post)
        return sent

    def test_every_file_of_the_app_is_of_a_type_and_a_size_that_are_taken(self, sent, files):
        publishing.publish(HETEROGENEOUS)
        assert sent == {name: path.read_bytes() for name, path in files.items()}


class TestBundle:
    """The FAB, which the Hub makes of what was sent."""

    @pytest.fixture(scope="class")
    @classmethod
    def built(cls, files):
        bundle, metadata = build_fab_from_files(files)
        return zipfile.ZipFile(BytesIO(bundle)), metadata

    def test_it_is_of_the_format_with_strict_rules_and_names_the_tested_flower(self, built):
        _, metadata = built
        (pinned,) = re.findall(r"^flwr==(.*)$", (ROOT / "constraints.txt").read_text(), re.M)
        (oldest,) = (
            one.version
            for one in requirements(read(ROOT)["project"]["dependencies"])["flwr"]
            if one.operator == ">="
        )
        assert metadata.fab_format_version == 1
        assert (metadata.flwr_version_min, metadata.flwr_version_target) == (oldest, pinned)

    def test_it_has_every_file_that_was_sent(self, built, files):
        bundle, _ = built
        assert set(bundle.namelist()) == {*files, ".info/CONTENT"}

    def test_its_licence_is_the_projects(self, built):
        bundle, _ = built
        assert bundle.read("LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_the_apps_version_is_three_numbers():
    assert re.fullmatch(APP_VERSION_PATTERN, read(HETEROGENEOUS)["project"]["version"])


def test_the_app_depends_on_exactly_what_it_imports(files):
    """A SuperLink installs what is declared, and nothing else, for a run of an app of the Hub."""
    imported = set()
    for name, path in files.items():
        if name.endswith(".py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    imported.add(node.module.split(".")[0])
    needed = {INSTALLED_AS.get(one, one).replace("_", "-") for one in imported}
    declared = requirements(read(HETEROGENEOUS)["project"]["dependencies"])
    assert set(declared) == needed - {*sys.stdlib_module_names}


def test_the_app_admits_the_versions_that_the_package_does():
    project = read(ROOT)["project"]
    extras = project["optional-dependencies"]
    ours = requirements(project["dependencies"], extras["torch"], extras["experiments"])
    apps = requirements(read(HETEROGENEOUS)["project"]["dependencies"])
    del apps["fedmedian"]  # of which there may be any
    assert apps == {name: ours[name] for name in apps}
