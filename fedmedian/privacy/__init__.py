"""What clients' answers reveal about their updates, in ε and δ."""

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
