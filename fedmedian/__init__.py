"""fedmedian: sign and median aggregation for Flower that end where the mean does.

The numerics, which know neither Flower nor torch. `fedmedian.strategies` holds the server's side
and `fedmedian.clients` the client's.
"""

from fedmedian.decoding import mean_from_votes
from fedmedian.kernels.medians import coordinate_median
from fedmedian.kernels.signs import pack_signs, unpack_signs
from fedmedian.kernels.votes import count_votes, majority_vote
from fedmedian.layout import Layout
from fedmedian.noise import Gaussian, Laplace, Logistic, Noise, Uniform
from fedmedian.optimizers import Adam, Momentum, Optimizer
from fedmedian.scales import Adaptive, ScaleRule, Theory
from fedmedian.schedules import Cosine, StepDecay
from fedmedian.smoothing import smoothed_median
from fedmedian.wire import Instruction, Payload

__all__ = [
    "Adam",
    "Adaptive",
    "Cosine",
    "Gaussian",
    "Instruction",
    "Laplace",
    "Layout",
    "Logistic",
    "Momentum",
    "Noise",
    "Optimizer",
    "Payload",
    "ScaleRule",
    "StepDecay",
    "Theory",
    "Uniform",
    "coordinate_median",
    "count_votes",
    "majority_vote",
    "mean_from_votes",
    "pack_signs",
    "smoothed_median",
    "unpack_signs",
]
