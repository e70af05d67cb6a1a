"""What clients' answers reveal about their updates, in ε and δ."""

from typing import TYPE_CHECKING, NoReturn

from fedmedian.names import refuse_name
from fedmedian.privacy.accounting import (
    Draw,
    Mechanism,
    PrivacyBudget,
    honest_of,
    noise_multiplier_for,
)
from fedmedian.privacy.sums import limit_of_entries

__all__ = [
    "Draw",
    "Mechanism",
    "PrivacyBudget",
    "honest_of",
    "limit_of_entries",
    "noise_multiplier_for",
]


if not TYPE_CHECKING:  # or type checkers would take any name for one of these

    def __getattr__(name: str) -> NoReturn:
        refuse_name(__name__, name)
