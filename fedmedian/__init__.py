"""fedmedian: sign and median aggregation for Flower that reaches FedAvg's accuracy.

This namespace holds the numerics, which need neither Flower nor torch. `fedmedian.strategies` holds
the server's side and `fedmedian.clients` the client's.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import TYPE_CHECKING

from fedmedian.aggregators.agreement import Agreement
from fedmedian.aggregators.base import Aggregator, Answers, coordinatewise
from fedmedian.aggregators.means import ClippedMean
from fedmedian.aggregators.medians import Median, SmoothedMedian
from fedmedian.aggregators.smoothing import smoothed_median
from fedmedian.aggregators.votes import Counts, Majority, VoteAggregator, mean_from_votes
from fedmedian.kernels.medians import coordinate_median
from fedmedian.kernels.signs import pack_signs, unpack_signs
from fedmedian.kernels.votes import count_votes, majority_vote
from fedmedian.model.blocks import Blocks
from fedmedian.model.layout import Layout
from fedmedian.names import refuse_name
from fedmedian.rounds.downlink import CodedSteps
from fedmedian.rules.noise import Gaussian, Laplace, Logistic, Noise, Uniform, register_noise
from fedmedian.rules.optimizers import Adam, Momentum, Optimizer
from fedmedian.rules.scales import Adaptive, ScaleRule, Theory, TopUp
from fedmedian.rules.schedules import Cosine
from fedmedian.secure.cohort import SecureSum
from fedmedian.steps.base import ClientStep, register_client_step
from fedmedian.steps.instruction import Instruction
from fedmedian.steps.payload import Payload
from fedmedian.steps.rotation import Rotation
from fedmedian.steps.updates import ClientMomentum, Clip, DivideByLearningRate

try:
    __version__ = version("fedmedian")
except PackageNotFoundError:
    __version__ = "0.0.0"  # not installed

__all__ = [
    "Adam",
    "Adaptive",
    "Aggregator",
    "Agreement",
    "Answers",
    "Blocks",
    "ClientMomentum",
    "ClientStep",
    "Clip",
    "ClippedMean",
    "CodedSteps",
    "Cosine",
    "Counts",
    "DivideByLearningRate",
    "Gaussian",
    "Instruction",
    "Laplace",
    "Layout",
    "Logistic",
    "Majority",
    "Median",
    "Momentum",
    "Noise",
    "Optimizer",
    "Payload",
    "Rotation",
    "ScaleRule",
    "SecureSum",
    "SmoothedMedian",
    "Theory",
    "TopUp",
    "Uniform",
    "VoteAggregator",
    "coordinate_median",
    "coordinatewise",
    "count_votes",
    "majority_vote",
    "mean_from_votes",
    "pack_signs",
    "register_client_step",
    "register_noise",
    "smoothed_median",
    "unpack_signs",
]


_PACKAGES = ("clients", "privacy", "strategies")
"""They are imported on first use, because two of them need Flower."""


if TYPE_CHECKING:
    from fedmedian import clients as clients
    from fedmedian import privacy as privacy
    from fedmedian import strategies as strategies
else:  # or type checkers would take any name for a package

    def __getattr__(name: str) -> ModuleType:
        if name in _PACKAGES:
            return import_module(f"{__name__}.{name}")
        refuse_name(__name__, name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", *_PACKAGES])
