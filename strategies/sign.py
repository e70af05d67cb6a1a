"""Sign aggregation: one bit per parameter and client."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

import numpy as np
from numpy.typing import NDArray

from fedmedian.aggregation import Aggregate, Decode, Ties, aggregate_signs
from fedmedian.checks import require_choice
from fedmedian.layout import RUNNING_STATISTICS
from fedmedian.noise import Gaussian, Noise
from fedmedian.randomness import server_rng
from fedmedian.scales import PayloadKind
from fedmedian.strategies.base import PerturbedStrategy, Round, Weights
from fedmedian.strategies.options import FedAvgOptions
from fedmedian.wire import Payload

_DEFAULT_NOISE = Gaussian()


class SignSGD(PerturbedStrategy):
    """Sign aggregation with noise: clients send sign(u_i + b·ξ_i), one bit per parameter.

    With ``decode="counts"`` the server, which knows the noise, estimates the mean of the
    clients' updates u_i from their votes, so that it can take FedAvg's place at a thirtieth of
    its uplink. With ``decode="majority"`` it steps along the majority's sign: Algorithm 3 of
    Chen et al. (arXiv 1906.01736), and with ``noise=None`` Algorithm 1, signSGD with majority
    vote. Clients need `fedmedian.clients.perturb`, or are `fedmedian.clients.SignClient`.

    Parameters
    ----------
    noise : Noise or None (default: ``Gaussian(Adaptive(3.0))``)
        The clients' noise: its family, and the scale b or the rule that sets it, in units of
        the update. None for plain signs, which ``decode="counts"`` cannot do with.
    decode : {"counts", "majority"} (default: "counts")
        How votes become a step; see above.
    learning_rate : float, optional
        The server's step size δ, > 0, in x ← x − δ·direction. 1.0 if not given, which moves the
        model by the estimated mean update; ``decode="majority"`` moves each coordinate by
        exactly δ and must be given one.
    weighted : bool (default: True)
        Whether votes count in proportion to the clients' examples.
    ties : {"random", "unchanged"} (default: "random")
        What a tied majority means: a fair coin, or no step for that coordinate.
    clip : float, optional
        The L2 norm to which clients clip their whole update before adding noise, > 0.
    dense : sequence of str (default: names of normalisation layers' running statistics)
        Shell-style patterns of the names of floating-point arrays that are not voted on but
        sent in full and averaged, as arrays of integers always are.
    seed : int, optional
        Makes every random number of server and clients follow from it, >= 0. Without one, the
        right choice outside of simulation, noise comes from the operating system's entropy and
        the server cannot know it.
    **fedavg
        The arguments of `flwr.serverapp.strategy.FedAvg`: `fraction_train`,
        `fraction_evaluate`, `min_train_nodes`, `min_evaluate_nodes`, `min_available_nodes`,
        `weighted_by_key`, `arrayrecord_key`, `configrecord_key`, `train_metrics_aggr_fn`,
        `evaluate_metrics_aggr_fn`.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or is unknown.
    ValueError
        If an argument is out of range, if ``decode="counts"`` has no noise, or if
        ``decode="majority"`` has no learning rate.

    Examples
    --------
    >>> strategy = SignSGD(fraction_train=0.5)
    >>> paper = SignSGD(noise=Gaussian(0.1), decode="majority", learning_rate=0.001)
    """

    kind: ClassVar[PayloadKind] = "signs"

    def __init__(
        self,
        noise: Noise | None = _DEFAULT_NOISE,
        decode: Decode = "counts",
        learning_rate: float | None = None,
        *,
        weighted: bool = True,
        ties: Ties = "random",
        clip: float | None = None,
        dense: Sequence[str] = RUNNING_STATISTICS,
        seed: int | None = None,
        **fedavg: Unpack[FedAvgOptions],
    ) -> None:
        require_choice("decode", decode, ("counts", "majority"))
        require_choice("ties", ties, ("random", "unchanged"))
        if decode == "counts" and noise is None:
            raise ValueError("noise must not be None with decode='counts', which decodes with it")
        if decode == "majority" and learning_rate is None:
            raise ValueError("learning_rate must be given with decode='majority', got None")
        super().__init__(
            noise=noise,
            client_noise=noise,
            learning_rate=1.0 if learning_rate is None else learning_rate,
            weighted=weighted,
            clip=clip,
            dense=dense,
            seed=seed,
            **fedavg,
        )
        self.decode = decode
        self.ties = ties

    def aggregate_payloads(
        self, payloads: list[Payload], weights: Weights, current: Round
    ) -> Aggregate:
        """Decode the votes; see `fedmedian.aggregation.aggregate_signs`."""
        rng = server_rng(self.seed, current.number)
        return aggregate_signs(
            payloads, weights, current.layout, self.noise, self.decode, self.ties, rng
        )

    def combine_dense(self, stacked: NDArray[np.float64], weights: Weights) -> NDArray[np.float64]:
        """Return the weighted mean over clients."""
        return np.asarray(np.tensordot(weights, stacked, axes=1))
