"""Median aggregation: robust to bad clients, in full precision."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, Unpack

import numpy as np

from fedmedian.aggregators.aggregation import Aggregate, aggregate_vectors
from fedmedian.checks import require_choice
from fedmedian.model.layout import RUNNING_STATISTICS
from fedmedian.privacy.accounting import PrivacyBudget
from fedmedian.randomness import server_rng
from fedmedian.rounds.checkpoint import Checkpoint
from fedmedian.rounds.core import Core, Round, Weights
from fedmedian.rounds.screening import CohortRule
from fedmedian.rounds.settings import (
    DEFAULT_NOISE,
    DEFAULT_ROTATION,
    ScaleFrom,
    Settings,
)
from fedmedian.rules.noise import Noise, Uniform
from fedmedian.rules.optimizers import Optimizer
from fedmedian.rules.schedules import Schedule
from fedmedian.rules.trust import agreed_size
from fedmedian.steps.base import ClientStep
from fedmedian.steps.encodings import Encoding, Vector
from fedmedian.steps.noise import top_up
from fedmedian.steps.payload import Payload
from fedmedian.steps.rotation import Rotation
from fedmedian.strategies.arguments import Argument
from fedmedian.strategies.message_api import MessageStrategy
from fedmedian.strategies.options import FedAvgOptions
from fedmedian.wire.scalars import Float32

Estimator = Literal["median", "smoothed"]
"""The centre of the clients' vectors: their median, or its limit under averaged noise."""

NoiseAt = Literal["client", "server"]
"""The side that adds the noise."""


class MedianCore(Core):
    """The core of `MedianSGD`, whose arguments it takes; `settings` are the rest of them."""

    encoding: ClassVar[Encoding] = Vector()

    def __init__(
        self,
        *,
        noise: Noise | None,
        noise_at: NoiseAt,
        learning_rate: float | Schedule | None,
        estimator: Estimator,
        settings: Settings,
    ) -> None:
        require_choice("noise_at", noise_at, ("client", "server"))
        require_choice("estimator", estimator, ("median", "smoothed"))
        noise = settings.scaled(noise)
        if estimator == "smoothed" and (noise is None or isinstance(noise, Uniform)):
            raise ValueError(f"noise must have a smooth CDF with estimator='smoothed', got {noise}")
        theory = None if noise is None else noise.rule.learning_rate(self.encoding.name)
        super().__init__(
            noise=noise,
            noise_at_client=noise_at == "client" and estimator == "median",
            learning_rate=learning_rate,
            usual_rate=theory or 1.0,
            weighted=False,
            settings=settings,
        )
        self.noise_at = noise_at
        self.estimator = estimator

    @property
    def identity(self) -> dict[str, Any]:
        """The arguments that a run's model depends on; see `Core.identity`."""
        return {**super().identity, "noise_at": self.noise_at, "estimator": self.estimator}

    def _arguments(self) -> Iterator[tuple[str, Any, Any]]:
        yield from super()._arguments()
        yield "noise_at", self.noise_at, "client"
        yield "estimator", self.estimator, "median"

    def aggregate_payloads(
        self,
        payloads: list[Payload],
        weights: Weights,
        scales: Float32 | None,
        used: Float32,
        magnitudes: Float32,
        current: Round,
    ) -> Aggregate:
        """Take the median; see `fedmedian.aggregators.aggregation.aggregate_vectors`."""
        smoothed, added = self.estimator == "smoothed", None
        if scales is not None and self.client_noise is None:
            added = scales
            if self.tops_up:
                added = top_up(scales, agreed_size(magnitudes) if smoothed else magnitudes)
        return aggregate_vectors(
            payloads,
            self.noise,
            current.blocks,
            smoothing=added if smoothed else None,
            added=None if smoothed else added,
            rng=server_rng(self.settings.seed, current.number),
            scales=used,
            magnitudes=magnitudes,
            diagnostics=self.settings.diagnostics,
        )

    @property
    def cost_of_few(self) -> tuple[int, str]:
        """Protection: the median of two is their mean."""
        return 2, "the median of so few does not keep a bad one out; that of three or more does"

    def centre(self, values: Weights, weights: Weights) -> Weights:
        """Return the median over clients, as robust as the rest."""
        return np.asarray(np.median(values, axis=0))


class MedianSGD(MessageStrategy):
    """Median aggregation with noise: the coordinate-wise median of the updates Q·u_i + b·ξ_i.

    With ``rotation=None`` it is Algorithm 4 of Chen et al. (arXiv 1906.01736), and with
    ``noise=None`` Algorithm 2, medianSGD. Rotation Q and noise draw the median towards the mean,
    which is where FedAvg goes, and leave it robust to bad clients. With noise the clients need
    `fedmedian.clients.perturb`, or are `fedmedian.clients.GradientClient`; with
    ``noise_at="server"``, ``estimator="smoothed"`` or without noise unmodified clients will do.

    Every client counts alike, whatever its number of examples. Arguments can be read as attributes,
    as those of `SignSGD`.

    Parameters
    ----------
    noise : Noise or None (default: ``Gaussian(TopUp())``)
        The noise: its family, and the scale b or the rule that sets it, in units of the
        update; a family without a scale has the default that `SignSGD` describes. None for the
        plain median.
    noise_at : {"client", "server"} (default: "client")
        The side that adds it. At the server it hides nothing from the server, and asks nothing
        of the clients.
    learning_rate : float or callable, optional
        The server's step size δ, > 0, in x ← x − δ·median, or a schedule of it. If not given it
        is 1.0, or `Theory`'s if the noise scale is.
    estimator : {"median", "smoothed"} (default: "median")
        ``"smoothed"`` is what the noisy median tends to when its noise is averaged out,
        `fedmedian.smoothed_median`: nobody adds any noise, and `noise_at` plays no part.
    exact : sequence of str (default: names of normalisation layers' running statistics)
        Shell-style patterns of the names of floating-point arrays that clients send exactly, to
        be replaced by their median, as arrays of integers always are.
    optimizer, average_decay, client_steps, rotation, scale_from, cohort_rules
        As for `SignSGD`.
    diagnostics, min_replies, max_failed_rounds, checkpoint, privacy_budget, numpy_clients, seed
        As for `SignSGD`.
    proximal_mu, **fedavg
        As for `SignSGD`.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or is unknown.
    ValueError
        If an argument is out of range, if a smoothed median has no noise or uniform noise, if
        clients cannot know the noise family or a client step, or for a privacy budget as `SignSGD`.

    Examples
    --------
    >>> strategy = MedianSGD(fraction_train=0.5)
    >>> for_unmodified_clients = MedianSGD(noise_at="server")
    """

    noise_at = Argument[NoiseAt]()
    estimator = Argument[Estimator]()

    def __init__(
        self,
        noise: Noise | None = DEFAULT_NOISE,
        noise_at: NoiseAt = "client",
        learning_rate: float | Schedule | None = None,
        *,
        estimator: Estimator = "median",
        optimizer: Optimizer | None = None,
        average_decay: float | None = None,
        client_steps: Sequence[ClientStep] = (),
        rotation: Rotation | None = DEFAULT_ROTATION,
        scale_from: ScaleFrom = "server",
        exact: Sequence[str] = RUNNING_STATISTICS,
        cohort_rules: Sequence[CohortRule] = (),
        diagnostics: bool = True,
        min_replies: int = 1,
        max_failed_rounds: int | None = 3,
        checkpoint: Checkpoint | None = None,
        privacy_budget: PrivacyBudget | None = None,
        numpy_clients: bool = False,
        seed: int | None = None,
        proximal_mu: float | None = None,
        **fedavg: Unpack[FedAvgOptions],
    ) -> None:
        settings = Settings(
            optimizer=optimizer,
            average_decay=average_decay,
            client_steps=client_steps,
            rotation=rotation,
            scale_from=scale_from,
            exact=exact,
            cohort_rules=cohort_rules,
            diagnostics=diagnostics,
            min_replies=min_replies,
            max_failed_rounds=max_failed_rounds,
            checkpoint=checkpoint,
            privacy_budget=privacy_budget,
            seed=seed,
            proximal_mu=proximal_mu,
        )
        core = MedianCore(
            noise=noise,
            noise_at=noise_at,
            learning_rate=learning_rate,
            estimator=estimator,
            settings=settings,
        )
        super().__init__(core, numpy_clients, fedavg)
