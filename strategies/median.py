"""Median aggregation: robust to bad clients, in full precision."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from fedmedian.aggregation import Aggregate, aggregate_vectors
from fedmedian.checks import require_choice
from fedmedian.layout import RUNNING_STATISTICS
from fedmedian.noise import Gaussian, Noise
from fedmedian.perturbation import add_noise
from fedmedian.randomness import server_rng
from fedmedian.scales import Adaptive, PayloadKind
from fedmedian.strategies.base import PerturbedStrategy, Round, Weights
from fedmedian.strategies.options import FedAvgOptions
from fedmedian.wire import Payload

NoiseAt = Literal["client", "server"]
"""Who adds the noise."""

# Twice SignSGD's: a median follows outlying clients, one class each, less than votes do.
_DEFAULT_NOISE = Gaussian(Adaptive(6.0))


class MedianSGD(PerturbedStrategy):
    """Median aggregation with noise: the coordinate-wise median of the updates u_i + b·ξ_i.

    Algorithm 4 of Chen et al. (arXiv 1906.01736), and with ``noise=None`` Algorithm 2, medianSGD.
    The noise draws the median towards the mean, which is where FedAvg goes; its scale trades
    that against robustness to bad clients. With noise the clients need
    `fedmedian.clients.perturb`, or are `fedmedian.clients.GradientClient`; with
    ``noise_at="server"`` or without noise unmodified clients will do.

    Every client counts alike, whatever its number of examples.

    Parameters
    ----------
    noise : Noise or None (default: ``Gaussian(Adaptive(6.0))``)
        The noise: its family, and the scale b or the rule that sets it, in units of the
        update. None for the plain median.
    noise_at : {"client", "server"} (default: "client")
        Who adds it. At the server it hides nothing from the server, and asks nothing of the
        clients.
    learning_rate : float (default: 1.0)
        The server's step size δ, > 0, in x ← x − δ·median.
    clip : float, optional
        The L2 norm to which each client's whole update is clipped before noise is added, > 0.
    dense : sequence of str (default: names of normalisation layers' running statistics)
        Shell-style patterns of the names of floating-point arrays that are no part of the update
        but replaced by the clients' median, as arrays of integers always are.
    seed : int, optional
        Makes every random number of server and clients follow from it, >= 0. Without one, the
        right choice outside of simulation, noise comes from the operating system's entropy.
    **fedavg
        The arguments of `flwr.serverapp.strategy.FedAvg`; see `SignSGD`.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or is unknown.
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> strategy = MedianSGD(fraction_train=0.5)
    >>> for_unmodified_clients = MedianSGD(noise_at="server")
    """

    kind: ClassVar[PayloadKind] = "vector"

    def __init__(
        self,
        noise: Noise | None = _DEFAULT_NOISE,
        noise_at: NoiseAt = "client",
        learning_rate: float = 1.0,
        *,
        clip: float | None = None,
        dense: Sequence[str] = RUNNING_STATISTICS,
        seed: int | None = None,
        **fedavg: Unpack[FedAvgOptions],
    ) -> None:
        require_choice("noise_at", noise_at, ("client", "server"))
        super().__init__(
            noise=noise,
            client_noise=noise if noise_at == "client" else None,
            learning_rate=learning_rate,
            weighted=False,
            clip=clip,
            dense=dense,
            seed=seed,
            **fedavg,
        )
        self.noise_at = noise_at

    def aggregate_payloads(
        self, payloads: list[Payload], weights: Weights, current: Round
    ) -> Aggregate:
        """Take the median; see `fedmedian.aggregation.aggregate_vectors`."""
        if self.noise is not None and self.noise_at == "server":
            payloads = self._with_noise(payloads, self.noise, current)
        return aggregate_vectors(payloads, self.noise, current.layout)

    def combine_dense(self, stacked: NDArray[np.float64], weights: Weights) -> NDArray[np.float64]:
        """Return the median over clients, as robust as the rest."""
        return np.asarray(np.median(stacked, axis=0))

    def _with_noise(self, payloads: list[Payload], noise: Noise, current: Round) -> list[Payload]:
        scales = self._scales
        if scales is None:
            magnitudes = np.stack([payload.magnitudes for payload in payloads])
            scales = noise.rule.following(None, magnitudes.astype(np.float64))
        assert scales is not None  # a rule knows its scales once it has seen magnitudes
        used = scales.astype(np.float32)
        rng = server_rng(self.seed, current.number)
        noisy = []
        for payload in payloads:
            body = payload.body.astype(np.float32)
            add_noise(current.layout, body, noise, used, rng)
            noisy.append(replace(payload, body=body, scales=used))
        return noisy
