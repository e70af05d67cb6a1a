"""docs/mistakes.md: what is typed is answered as the page says."""

import re

import pytest

from fedmedian import Gaussian, Majority
from fedmedian.clients import perturb
from fedmedian.strategies import MedianSGD, SignSGD, legacy
from tests.tools.places import DOCS

PAGE = DOCS / "mistakes.md"
TYPED = re.findall(r"^\| `(.*?)` \| (\w+Error): (.*) \|$", PAGE.read_text(), re.MULTILINE)
NAMES = {
    "Gaussian": Gaussian,
    "Majority": Majority,
    "MedianSGD": MedianSGD,
    "SignSGD": SignSGD,
    "grid": None,
    "legacy": legacy,
    "model": {},
    "perturb": perturb,
}


def test_the_page_has_mistakes():
    assert len(TYPED) == 16


@pytest.mark.parametrize(("typed", "error", "answer"), TYPED, ids=[typed for typed, _, _ in TYPED])
def test_what_is_typed_is_answered_as_the_page_says(typed, error, answer):
    expected = re.escape(answer).replace("…", ".*")
    with pytest.raises((TypeError, ValueError)) as refused:
        eval(typed, dict(NAMES))
    assert type(refused.value).__name__ == error
    assert re.fullmatch(expected, str(refused.value))
