"""Wherever the package comes from, all of it is there: for Python, and for tools that read files.

Nothing is downloaded: an environment of each test's own sees what this one has installed, but for
fedmedian itself and for torch, which a server does without.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.tools.places import ROOT

pytestmark = pytest.mark.slow

LINKS = {"clients": "fedmedian/clients", "strategies": "fedmedian/strategies"}

A_FLOWER_APP = """
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

def reply(message, **records):
    metrics = MetricRecord({"num-examples": 1, "loss": 0.0})
    return Message(RecordDict({"metrics": metrics, **records}), reply_to=message)

def train(message, context):
    return reply(message, arrays=ArrayRecord({"x": Array(np.zeros(9, np.float32))}))

def evaluate(message, context):
    return reply(message)
"""

A_RUN = """
from fedmedian.clients import InProcessGrid
app.train()(train)
app.evaluate()(evaluate)
arrays = ArrayRecord({"x": Array(np.ones(9, np.float32))})
strategy.start(InProcessGrid(app, 10), arrays, num_rounds=2)
"""

WHERE_IT_CAME_FROM = """
import pathlib
print(pathlib.Path(SignSGD.__init__.__code__.co_filename).resolve().parents[1])
"""

MISSPELT = """
import fedmedian
from fedmedian import Gausian
from fedmedian.clients import SignClint, perturb

fedmedian.strategies.SignSGD(sead=1)
perturb()
"""


def run(*command, cwd):
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def _no_other_copy_is_imported(monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A git repository of one commit: the files as they are now."""
    if not (ROOT / ".git").exists():
        pytest.skip("only git knows which files are the project's")
    folder = tmp_path_factory.mktemp("repository")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in listed.split("\0"):
        if name and ((ROOT / name).exists() or (ROOT / name).is_symlink()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    run("git", "init", "--quiet", cwd=folder)
    run("git", "add", "--all", cwd=folder)
    author = ("-c", "user.name=tests", "-c", "user.email=tests@example.org")
    plain = ("-c", "commit.gpgsign=false", "-c", "core.hooksPath=/dev/null")
    run("git", *author, *plain, "commit", "--quiet", "--message", "All files", cwd=folder)
    return folder


@pytest.fixture
def clone(repository, tmp_path):
    run("git", "clone", "--quiet", repository, "clone", cwd=tmp_path)
    return tmp_path / "clone"


@pytest.fixture(params=["no links", "links as text files"])
def tree_without_links(request, repository, tmp_path):
    """The files out of a zip: Python's zipfile writes a link as git does where there are none."""
    archive, folder = tmp_path / "fedmedian.zip", tmp_path / "tree"
    run("git", "archive", "--format=zip", f"--output={archive}", "HEAD", cwd=repository)
    with zipfile.ZipFile(archive) as zipped:
        zipped.extractall(folder)
    for name, target in LINKS.items():
        assert (folder / name).read_text() == target
        if request.param == "no links":
            (folder / name).unlink()
    return folder


@pytest.fixture
def sdist(clone, tmp_path):
    folder = tmp_path / "dist"
    build = ("-m", "hatchling", "build", "--target", "sdist", "--directory", folder)
    run(sys.executable, *build, cwd=clone)
    (archive,) = folder.iterdir()
    return archive


@pytest.fixture(scope="module")
def dependencies(tmp_path_factory):
    """A folder with all that is installed here but fedmedian and torch."""
    folder = tmp_path_factory.mktemp("dependencies")
    for installed in {Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}:
        for path in installed.iterdir():
            if not re.match(r"fedmedian|torch\b", path.name):
                (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture
def python(dependencies, tmp_path):
    """The interpreter of an environment that has the dependencies and no fedmedian."""
    folder = tmp_path / "environment"
    venv.create(folder, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", scheme="venv", vars={"base": folder}))
    (packages / "dependencies.pth").write_text(f"{dependencies}\n")
    return folder / "bin" / "python"


@pytest.fixture
def elsewhere(tmp_path):
    """A folder that has nothing to do with the package."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


def install(python, *what, cwd):
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", *options, *what, cwd=cwd)


def readme():
    return (ROOT / "README.md").read_text()


def readme_code():
    """The lines that the README's diff adds to an app, and a run of that app."""
    (diff,) = re.findall(r"^```diff\n(.*?)^```", readme(), re.DOTALL | re.MULTILINE)
    added = "\n".join(line[1:].strip() for line in diff.splitlines() if line.startswith("+"))
    return "\n".join([A_FLOWER_APP, added, A_RUN])


def run_readme(python, cwd):
    """Run the README's Python in a folder, and return the folder its fedmedian was found in."""
    shown = run(python, "-c", readme_code() + WHERE_IT_CAME_FROM, cwd=cwd)
    return Path(shown.splitlines()[-1])


def is_installed_in(python, package):
    return package.is_relative_to(python.parents[1])


class TestReadme:
    """The README's code runs where the package comes from …"""

    def test_runs_in_a_clone_with_nothing_installed(self, python, clone):
        assert run_readme(python, clone) == clone / "fedmedian"

    def test_runs_after_an_editable_install(self, python, clone, elsewhere):
        install(python, "--editable", ".", cwd=clone)
        assert run_readme(python, elsewhere) == clone / "fedmedian"

    def test_runs_after_pip_install_in_the_clone(self, python, clone):
        install(python, ".", cwd=clone)
        assert run_readme(python, clone) == clone / "fedmedian"

    def test_runs_after_pip_install_outside_the_clone(self, python, clone, elsewhere):
        install(python, ".", cwd=clone)
        shutil.rmtree(clone)
        assert is_installed_in(python, run_readme(python, elsewhere))

    def test_runs_after_the_pip_install_that_it_shows_for_other_projects(
        self, python, repository, elsewhere, monkeypatch
    ):
        # Git fetches from the folder where pip names an address.
        monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
        monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{repository.as_uri()}.insteadOf")
        monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://example.org/fedmedian")
        (shown,) = re.findall(r'^pip install "(.*)"$', readme(), re.MULTILINE)
        install(python, shown.replace("<this repository>", "example.org/fedmedian"), cwd=elsewhere)
        assert is_installed_in(python, run_readme(python, elsewhere))

    def test_runs_after_pip_install_of_an_sdist(self, python, sdist, elsewhere):
        install(python, sdist, cwd=elsewhere)
        assert is_installed_in(python, run_readme(python, elsewhere))

    def test_runs_in_a_tree_without_links(self, python, tree_without_links):
        assert run_readme(python, tree_without_links) == tree_without_links / "fedmedian"

    def test_runs_after_pip_install_of_a_tree_without_links(
        self, python, tree_without_links, elsewhere
    ):
        install(python, ".", cwd=tree_without_links)
        assert is_installed_in(python, run_readme(python, elsewhere))


class TestVersion:
    """The version is the last tag's, and the package knows it."""

    SHOW = "import fedmedian; print(fedmedian.__version__)"

    def test_is_the_tags_in_a_clone_and_in_an_sdist_of_it(self, python, clone, elsewhere, tmp_path):
        run("git", "tag", "v1.2.3", cwd=clone)
        build = ("-m", "hatchling", "build", "--target", "sdist", "--directory", tmp_path / "dist")
        run(sys.executable, *build, cwd=clone)
        (archive,) = (tmp_path / "dist").iterdir()
        assert archive.name == "fedmedian-1.2.3.tar.gz"
        install(python, archive, cwd=elsewhere)
        assert run(python, "-c", self.SHOW, cwd=elsewhere).strip() == "1.2.3"

    def test_is_one_in_development_between_tags(self, python, clone, elsewhere):
        run("git", "tag", "v1.2.3", "HEAD", cwd=clone)
        author = ("-c", "user.name=tests", "-c", "user.email=tests@example.org")
        run("git", *author, "commit", "--quiet", "--allow-empty", "--message", "More", cwd=clone)
        install(python, ".", cwd=clone)
        assert run(python, "-c", self.SHOW, cwd=elsewhere).startswith("1.2.4.dev1+g")

    def test_is_nought_where_nothing_tells(self, python, tree_without_links):
        assert run(python, "-c", self.SHOW, cwd=tree_without_links).strip() == "0.0.0"


def test_the_links_of_a_clone_lead_into_its_own_package(clone):
    for name, target in LINKS.items():
        assert (clone / name).resolve() == clone / target


def test_an_sdist_has_every_file_of_the_repository_but_the_links(clone, sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = set(run("git", "ls-files", cwd=clone).splitlines())
    assert names == tracked - set(LINKS) | {"PKG-INFO"}


@pytest.mark.parametrize(
    "checker",
    [
        pytest.param(("mypy", "--cache-dir=/dev/null", "--python-executable"), id="mypy"),
        pytest.param(("pyright", "--pythonpath"), id="pyright"),
    ],
)
def test_a_type_checker_outside_the_clone_reads_an_editable_install(
    python, clone, elsewhere, checker
):
    install(python, "--editable", ".", cwd=clone)
    (elsewhere / "user.py").write_text(MISSPELT)
    done = subprocess.run(
        [sys.executable, "-m", *checker, str(python), "user.py"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in done.stdout.splitlines() if "error:" in line]
    wrong = ["Gausian", "SignClint", "sead", "message"]
    assert len(errors) == len(wrong)
    assert all(name in error for name, error in zip(wrong, errors, strict=True))
