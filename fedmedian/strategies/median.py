"""Median aggregation: robust to bad clients, in full precision."""

from functools import partial
from typing import ClassVar, Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from fedmedian.aggregation import Aggregate, aggregate_vectors
from fedmedian.checks import require_choice
from fedmedian.noise import Gaussian, Noise, Uniform
from fedmedian.randomness import server_rng
from fedmedian.scales import Adaptive, PayloadKind
from fedmedian.schedules import Schedule
from fedmedian.strategies.base import PerturbedStrategy
from fedmedian.strategies.core import Core, Round, Weights, theory_rate
from fedmedian.strategies.options import Settings, StrategyOptions
from fedmedian.wire import Payload

Estimator = Literal["median", "smoothed"]
"""The centre of the clients' vectors: their median, or its limit under averaged noise."""

NoiseAt = Literal["client", "server"]
"""Who adds the noise."""

# Twice SignSGD's: a median follows outlying clients, one class each, less than votes do.
DEFAULT_NOISE = Gaussian(Adaptive(6.0))


class MedianCore(Core):
    """The core of `MedianSGD`, whose arguments it takes; `settings` are the rest of them."""

    kind: ClassVar[PayloadKind] = "vector"

    def __init__(
        self,
        noise: Noise | None,
        noise_at: NoiseAt,
        learning_rate: float | Schedule | None,
        estimator: Estimator,
        settings: Settings,
    ) -> None:
        require_choice("noise_at", noise_at, ("client", "server"))
        require_choice("estimator", estimator, ("median", "smoothed"))
        if estimator == "smoothed" and (noise is None or isinstance(noise, Uniform)):
            raise ValueError(f"noise must have a smooth CDF with estimator='smoothed', got {noise}")
        if learning_rate is None:
            learning_rate = theory_rate(noise, self.kind) or 1.0
        super().__init__(
            noise=noise,
            client_noise=noise if noise_at == "client" and estimator == "median" else None,
            learning_rate=learning_rate,
            weighted=False,
            settings=settings,
        )
        self.estimator = estimator

    def aggregate_payloads(
        self,
        payloads: list[Payload],
        weights: Weights,
        scales: NDArray[np.float32] | None,
        current: Round,
    ) -> Aggregate:
        """Take the median; see `fedmedian.aggregation.aggregate_vectors`."""
        at_server = scales if self.client_noise is None else None
        smoothed = self.estimator == "smoothed"
        return aggregate_vectors(
            payloads,
            self.noise,
            current.layout,
            smoothing=at_server if smoothed else None,
            added=None if smoothed else at_server,
            rng=server_rng(self.settings.seed, current.number),
            diagnostics=self.settings.diagnostics,
        )

    def combine_dense(self, stacked: NDArray[np.float64], weights: Weights) -> NDArray[np.float64]:
        """Return the median over clients, as robust as the rest."""
        return np.asarray(np.median(stacked, axis=0))


class MedianSGD(PerturbedStrategy):
    """Median aggregation with noise: the coordinate-wise median of the updates u_i + b·ξ_i.

    Algorithm 4 of Chen et al. (arXiv 1906.01736), and with ``noise=None`` Algorithm 2, medianSGD.
    The noise draws the median towards the mean, which is where FedAvg goes; its scale trades
    that against robustness to bad clients. With noise the clients need
    `fedmedian.clients.perturb`, or are `fedmedian.clients.GradientClient`; with
    ``noise_at="server"``, ``estimator="smoothed"`` or without noise unmodified clients will do.

    Every client counts alike, whatever its number of examples.

    Parameters
    ----------
    noise : Noise or None (default: ``Gaussian(Adaptive(6.0))``)
        The noise: its family, and the scale b or the rule that sets it, in units of the
        update. None for the plain median.
    noise_at : {"client", "server"} (default: "client")
        Who adds it. At the server it hides nothing from the server, and asks nothing of the
        clients.
    learning_rate : float or callable, optional
        The server's step size δ, > 0, in x ← x − δ·median, or a schedule of it. If not given it
        is 1.0, or `Theory`'s if the noise scale is.
    estimator : {"median", "smoothed"} (default: "median")
        ``"smoothed"`` is what the noisy median tends to when its noise is averaged out,
        `fedmedian.smoothed_median`: nobody adds any noise, and `noise_at` plays no part.
    **options
        As for `SignSGD`, but for `dense`: the clients' arrays that match are replaced by their
        median.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or is unknown.
    ValueError
        If an argument is out of range, or if a smoothed median has no noise or uniform noise.

    Examples
    --------
    >>> strategy = MedianSGD(fraction_train=0.5)
    >>> for_unmodified_clients = MedianSGD(noise_at="server")
    """

    def __init__(
        self,
        noise: Noise | None = DEFAULT_NOISE,
        noise_at: NoiseAt = "client",
        learning_rate: float | Schedule | None = None,
        *,
        estimator: Estimator = "median",
        **options: Unpack[StrategyOptions],
    ) -> None:
        super().__init__(partial(MedianCore, noise, noise_at, learning_rate, estimator), options)
