"""What `make` says that there is to make, and what it makes."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.tools.places import ROOT


def test_make_alone_lists_every_target_with_a_sentence():
    # A make that runs these tests tells the makes below it to print where they are.
    command = ["make", "--no-print-directory"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (targets,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    sentences = dict(line.split(maxsplit=1) for line in listed.splitlines())
    assert list(sentences) == targets.split()


class TestRelease:
    """`make release` in a repository with a changelog, and with this environment as its .venv."""

    @pytest.fixture
    def repository(self, tmp_path):
        files = [
            "Makefile",
            "pyproject.toml",
            "constraints.txt",
            "README.md",
            "LICENSE",
            ".gitignore",
        ]
        for name in files:
            shutil.copy(ROOT / name, tmp_path)
        shutil.copytree(ROOT / "fedmedian", tmp_path / "fedmedian")
        (tmp_path / "CHANGELOG.md").write_text("## [0.3.0]\n")
        (tmp_path / ".venv" / "bin").mkdir(parents=True)
        (tmp_path / ".venv" / "bin" / "python").write_text(
            f'#!/bin/sh\nexec {sys.executable} "$@"\n'
        )
        (tmp_path / ".venv" / "bin" / "python").chmod(0o755)
        (tmp_path / ".venv" / "installed").touch()
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        for words in (
            ["init", "--quiet"],
            ["add", "."],
            [*identity, "commit", "--quiet", "-m", "."],
        ):
            subprocess.run(["git", *words], cwd=tmp_path, check=True)
        return tmp_path

    def release(self, repository, *arguments):
        identity = {f"GIT_COMMITTER_{name}": "a@example.org" for name in ("NAME", "EMAIL")}
        command = ["make", "--no-print-directory", "release", *arguments]
        return subprocess.run(
            command, cwd=repository, capture_output=True, text=True, env={**os.environ, **identity}
        )

    @pytest.mark.slow
    def test_it_tags_and_builds_that_version(self, repository):
        done = self.release(repository, "VERSION=0.3.0")
        assert done.returncode == 0, done.stderr
        built = sorted(file.name for file in (repository / "dist").iterdir())
        assert built == ["fedmedian-0.3.0-py3-none-any.whl", "fedmedian-0.3.0.tar.gz"]
        tags = ["git", "tag", "--points-at", "HEAD"]
        assert subprocess.check_output(tags, cwd=repository, text=True) == "v0.3.0\n"

    @pytest.mark.parametrize(
        ("arguments", "file", "said"),
        [
            ([], None, "make release VERSION=0.1.0"),
            (["VERSION=0.3.0"], "new.py", "Commit first"),
            (["VERSION=0.4.0"], None, "CHANGELOG.md has no heading [0.4.0]"),
        ],
    )
    def test_it_says_what_is_missing_and_tags_nothing(self, repository, arguments, file, said):
        if file is not None:
            (repository / file).touch()
        done = self.release(repository, *arguments)
        assert done.returncode != 0
        assert said in done.stdout
        assert subprocess.check_output(["git", "tag"], cwd=repository) == b""
