"""Server optimizers: they turn a round's direction into the model's step.

An optimizer is a frozen value. Its caller keeps its state, a mapping of arrays, so that a run can
be stored and resumed. The caller also applies the learning rate: x ← x − δ·step.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedmedian.checks import require_real
from fedmedian.wire.scalars import Float32, require_positive

State = dict[str, NDArray[Any]]
"""An optimizer's state by name; empty before the first round."""


class Optimizer(ABC):
    """A rule that turns directions into steps."""

    usual_rate: ClassVar[float] = 1.0
    """The factor on the default learning rate that fits its steps."""

    @abstractmethod
    def step(self, direction: Float32, state: State) -> Float32:
        """Return the step for a direction, and update the state.

        Parameters
        ----------
        direction : (d,) float32
            The round's direction, pointing uphill.
        state : dict of str to array
            The state as this method left it in the last round; empty at first. It is updated with
            new arrays; the old ones do not change, because the step may be discarded.

        Returns
        -------
        (d,) float32
            The step, still without the learning rate.
        """


@dataclass(frozen=True)
class Momentum(Optimizer):
    """An exponential moving average of the directions, corrected for its start at zero.

    m ← β₁·m + (1 − β₁)·ĝ, step m/(1 − β₁ᵗ). Steps are as large as ĝ, so the learning rate means the
    same as without momentum. It divides the noise variance by (1 + β₁)/(1 − β₁).

    Parameters
    ----------
    beta_1 : float (default: 0.9)
        The decay β₁, in [0, 1).

    Raises
    ------
    TypeError, ValueError
        If `beta_1` has the wrong type or is out of range.
    """

    beta_1: float = 0.9

    def __post_init__(self) -> None:
        require_real("beta_1", self.beta_1, low=0.0, high=1.0, open_high=True)

    def step(self, direction: Float32, state: State) -> Float32:
        """Return the corrected average; see `Optimizer.step`."""
        rounds = _count_round(state)
        mean = _decay(state, "m", direction, self.beta_1)
        return mean / np.float32(1 - self.beta_1**rounds)


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam on the server: FedAdam of Reddi et al. (arXiv 2003.00295), with bias corrections.

    m ← β₁·m + (1 − β₁)·ĝ, v ← β₂·v + (1 − β₂)·ĝ², step m̂/(√v̂ + τ). Parameters have the names of
    Flower's FedAdam. Steps are of order 1 where ĝ is much larger than τ, whatever its size, and
    ĝ/τ where it is much smaller; the default learning rate is 0.01.

    Parameters
    ----------
    beta_1 : float (default: 0.9)
        The decay of the first moment, in [0, 1).
    beta_2 : float (default: 0.99)
        The decay of the second moment, in [0, 1).
    tau : float (default: 0.001)
        The degree of adaptivity, > 0, in units of the update.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.
    """

    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3

    usual_rate: ClassVar[float] = 0.01

    def __post_init__(self) -> None:
        require_real("beta_1", self.beta_1, low=0.0, high=1.0, open_high=True)
        require_real("beta_2", self.beta_2, low=0.0, high=1.0, open_high=True)
        require_positive("tau", self.tau)

    def step(self, direction: Float32, state: State) -> Float32:
        """Return the adaptive step; see `Optimizer.step`."""
        rounds = _count_round(state)
        first = _decay(state, "m", direction, self.beta_1)
        second = _decay(state, "v", np.square(direction), self.beta_2)
        spread = np.sqrt(second / np.float32(1 - self.beta_2**rounds)) + np.float32(self.tau)
        return np.asarray(first / np.float32(1 - self.beta_1**rounds) / spread)


def _count_round(state: State) -> int:
    state["rounds"] = state.get("rounds", np.zeros(1, dtype=np.int64)) + 1
    return int(state["rounds"][0])


def _decay(state: State, name: str, value: Float32, decay: float) -> Float32:
    old = state.get(name)
    state[name] = value * np.float32(1 - decay)
    if old is not None:
        state[name] += np.float32(decay) * old
    return state[name]
