"""Flower strategies (Message API) that know their clients' noise."""

from fedmedian.privacy.mechanism import NoMechanism
from fedmedian.rounds.checkpoint import Checkpoint
from fedmedian.rounds.screening import Cohort
from fedmedian.rounds.watch import RunFailedError
from fedmedian.strategies.median import MedianSGD
from fedmedian.strategies.results import plot
from fedmedian.strategies.sign import SignSGD

__all__ = ["Checkpoint", "Cohort", "MedianSGD", "NoMechanism", "RunFailedError", "SignSGD", "plot"]


def __dir__() -> list[str]:
    return [*__all__, "legacy"]
