"""Flower strategies (Message API) that know their clients' noise."""

from typing import TYPE_CHECKING, NoReturn

from fedmedian.names import refuse_name
from fedmedian.privacy.mechanism import NoMechanism
from fedmedian.rounds.checkpoint import Checkpoint
from fedmedian.rounds.screening import Cohort
from fedmedian.rounds.watch import RunFailedError
from fedmedian.strategies.median import MedianSGD
from fedmedian.strategies.results import plot
from fedmedian.strategies.sign import SignSGD

__all__ = ["Checkpoint", "Cohort", "MedianSGD", "NoMechanism", "RunFailedError", "SignSGD", "plot"]


if not TYPE_CHECKING:  # or type checkers would take any name for one of these

    def __getattr__(name: str) -> NoReturn:
        refuse_name(__name__, name)


def __dir__() -> list[str]:
    return [*__all__, "legacy"]
