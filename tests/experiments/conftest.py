"""The experiments are run from the repository and not installed."""

import logging
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def root():
    """The repository."""
    return ROOT


@pytest.fixture(autouse=True)
def quiet_flower():
    """Keep Flower's log for caplog, and off the terminal."""
    logger = logging.getLogger("flwr")
    handlers, logger.handlers = logger.handlers, []
    yield
    logger.handlers = handlers
