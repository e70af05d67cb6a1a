"""The experiments are run from the repository and not installed."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def root():
    """The repository."""
    return ROOT
