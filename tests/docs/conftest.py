"""The documentation site, built once."""

import os
import subprocess
import sys

import pytest

from tests.tools.places import ROOT


@pytest.fixture(scope="session")
def site_folder(tmp_path_factory):
    """The folder of the site; any warning is an error."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    config = ROOT / "docs" / "site" / "mkdocs.yml"
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    subprocess.run(
        [*build, "--config-file", config, "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    return folder
