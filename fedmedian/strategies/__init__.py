"""Flower strategies (Message API) that know their clients' noise."""

from fedmedian.strategies.checkpoint import Checkpoint
from fedmedian.strategies.cohort import Cohort
from fedmedian.strategies.mechanism import NoMechanism
from fedmedian.strategies.median import MedianSGD
from fedmedian.strategies.sign import SignSGD
from fedmedian.strategies.watch import RunFailedError

__all__ = ["Checkpoint", "Cohort", "MedianSGD", "NoMechanism", "RunFailedError", "SignSGD"]
