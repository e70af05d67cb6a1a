"""The arguments of a run that may change when it resumes."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedmedian.checks import require_integer, require_type
from fedmedian.privacy.accounting import PrivacyBudget
from fedmedian.rounds.checkpoint import Checkpoint
from fedmedian.rounds.recipe import require_sequence
from fedmedian.rounds.screening import CohortRule


@dataclass(frozen=True)
class RunOptions:
    """Which replies a run accepts, what it reports and stores, and when it ends.

    `fedmedian.strategies.SignSGD` describes each.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.
    """

    cohort_rules: Sequence[CohortRule] = ()
    diagnostics: bool = True
    min_replies: int = 1
    max_failed_rounds: int | None = 3
    checkpoint: Checkpoint | None = None
    privacy_budget: PrivacyBudget | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        for rule in require_sequence("cohort_rules", self.cohort_rules, "callables"):
            if not callable(rule):
                raise TypeError(f"cohort_rules must be callables, got {rule!r}")
        require_type("diagnostics", self.diagnostics, bool, "a bool")
        least = require_integer("min_replies", self.min_replies, low=1)
        object.__setattr__(self, "min_replies", least)  # JSON has no integers of NumPy
        if self.max_failed_rounds is not None:
            require_integer("max_failed_rounds", self.max_failed_rounds, low=1)
        wanted = "a Checkpoint such as Checkpoint('runs/1'), or None"
        require_type("checkpoint", self.checkpoint, Checkpoint | None, wanted)
        wanted = "a PrivacyBudget, or None"
        require_type("privacy_budget", self.privacy_budget, PrivacyBudget | None, wanted)
        if self.threads is not None:
            require_integer("threads", self.threads, low=1)
