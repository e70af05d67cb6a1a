"""What clients' answers reveal about their updates, in ε and δ."""

from fedmedian.privacy.accounting import (
    Draw,
    Mechanism,
    PrivacyBudget,
    honest_of,
    noise_multiplier_for,
)

__all__ = ["Draw", "Mechanism", "PrivacyBudget", "honest_of", "noise_multiplier_for"]
