"""Sign aggregation: one bit per parameter and client."""

from functools import partial
from typing import ClassVar, Unpack

import numpy as np
from numpy.typing import NDArray

from fedmedian.aggregation import Aggregate, Decode, Ties, aggregate_signs
from fedmedian.checks import require_choice, require_type
from fedmedian.noise import Gaussian, Noise
from fedmedian.randomness import server_rng
from fedmedian.scales import PayloadKind
from fedmedian.schedules import Schedule
from fedmedian.strategies.base import PerturbedStrategy
from fedmedian.strategies.core import Core, Round, Weights, theory_rate
from fedmedian.strategies.options import Settings, StrategyOptions
from fedmedian.wire import Payload

DEFAULT_NOISE = Gaussian()


class SignCore(Core):
    """The core of `SignSGD`, whose arguments it takes; `settings` are the rest of them."""

    kind: ClassVar[PayloadKind] = "signs"

    def __init__(
        self,
        noise: Noise | None,
        decode: Decode,
        learning_rate: float | Schedule | None,
        calibrated: bool,
        weighted: bool,
        ties: Ties,
        settings: Settings,
    ) -> None:
        require_choice("decode", decode, ("counts", "majority"))
        require_type("calibrated", calibrated, bool, "a bool")
        require_choice("ties", ties, ("random", "unchanged"))
        if noise is None and (decode == "counts" or calibrated):
            raise ValueError("noise must not be None with decode='counts' or calibrated=True")
        if calibrated and decode == "counts":
            raise ValueError("calibrated must be False with decode='counts', got True")
        if learning_rate is None:
            learning_rate = 1.0
            if decode == "majority" and not calibrated:
                learning_rate = theory_rate(noise, self.kind)
                if learning_rate is None:
                    raise ValueError("learning_rate must be given with decode='majority', got None")
        super().__init__(
            noise=noise,
            client_noise=noise,
            learning_rate=learning_rate,
            weighted=weighted,
            settings=settings,
        )
        self.decode = decode
        self.calibrated = calibrated
        self.ties = ties

    def aggregate_payloads(
        self,
        payloads: list[Payload],
        weights: Weights,
        scales: NDArray[np.float32] | None,
        current: Round,
    ) -> Aggregate:
        """Decode the votes; see `fedmedian.aggregation.aggregate_signs`."""
        return aggregate_signs(
            payloads,
            weights,
            current.layout,
            self.noise,
            self.decode,
            self.ties,
            server_rng(self.settings.seed, current.number),
            calibrated=self.calibrated,
            diagnostics=self.settings.diagnostics,
        )

    def combine_dense(self, stacked: NDArray[np.float64], weights: Weights) -> NDArray[np.float64]:
        """Return the weighted mean over clients."""
        return np.asarray(np.tensordot(weights, stacked, axes=1))


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
    learning_rate : float or callable, optional
        The server's step size δ, > 0, in x ← x − δ·step, or a schedule: a callable from the
        round to δ such as `Cosine` and `StepDecay`. If not given it is 1.0, which moves the model
        by the estimated mean update. A majority that is not calibrated moves each coordinate by
        exactly δ and must be given one, unless the noise scale is `Theory`'s, which knows it.
    calibrated : bool (default: False)
        With ``decode="majority"`` and noise: take a majority as an estimate of the mean update,
        b·sign/(2κ_M), so that learning rates mean the same as with counts.
    weighted : bool (default: True)
        Whether votes count in proportion to the clients' examples.
    ties : {"random", "unchanged"} (default: "random")
        What a tied majority means: a fair coin, or no step for that coordinate.
    **options
        optimizer : Optimizer, optional
            What is done to a direction before the learning rate: `Momentum`, `Adam`.
        average : float, optional
            The decay, in (0, 1), of an exponential average of the model over rounds, which
            ``start`` returns as ``averaged_arrays`` beside the last model.
        clip : float, optional
            The L2 norm to which clients clip their whole update before adding noise, > 0.
        client_learning_rate : float (default: 1.0)
            What clients divide their update by, > 0: their own learning rate makes gradients of
            one local step, or their sum over several.
        client_momentum : float (default: 0.0)
            The decay, in [0, 1), of an average that clients keep of their updates and send, with
            noise, in place of the last. It lives in the client's ``Context.state``.
        noise_from : {"server", "client"} (default: "server")
            Who chooses the noise scale. Clients that do are told the rule's factor, need not
            follow it, and weigh at most four times the median client.
        dense : sequence of str (default: names of normalisation layers' running statistics)
            Shell-style patterns of the names of floating-point arrays that are not voted on but
            sent in full and averaged, as arrays of integers always are.
        diagnostics : bool (default: True)
            Whether each round's report says how votes agree and what is noise in them.
        min_replies : int (default: 1)
            A round with fewer usable replies keeps the model as it is, and says so; >= 1.
        checkpoint : Checkpoint, optional
            Where the run is stored after every so many rounds; if it is there already, ``start``
            goes on from it. With a seed, all nodes and clients without a state of their own, the
            model is bit for bit that of a run that was not interrupted.
        numpy_clients : bool (default: False)
            Whether the clients are NumPyClients, for training and evaluation; their metrics are
            averaged as a Message-API app's would be.
        seed : int, optional
            Makes every random number of server and clients follow from it, >= 0, and which nodes
            are sampled where `fraction_train` is below 1; but on Ray Flower gives the nodes new
            names in each run. Without one, the right choice outside of simulation, noise comes
            from the operating system's entropy and the server cannot know it.

        And the arguments of `flwr.serverapp.strategy.FedAvg`: `fraction_train`,
        `fraction_evaluate`, `min_train_nodes`, `min_evaluate_nodes`, `min_available_nodes`,
        `weighted_by_key`, `arrayrecord_key`, `configrecord_key`, `train_metrics_aggr_fn`,
        `evaluate_metrics_aggr_fn`.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or is unknown.
    ValueError
        If an argument is out of range, if ``decode="counts"`` or ``calibrated`` has no noise, if
        ``calibrated`` goes with counts, or if a majority lacks its learning rate.

    Examples
    --------
    >>> strategy = SignSGD(fraction_train=0.5)
    >>> paper = SignSGD(noise=Gaussian(0.1), decode="majority", learning_rate=0.001)
    """

    def __init__(
        self,
        noise: Noise | None = DEFAULT_NOISE,
        decode: Decode = "counts",
        learning_rate: float | Schedule | None = None,
        *,
        calibrated: bool = False,
        weighted: bool = True,
        ties: Ties = "random",
        **options: Unpack[StrategyOptions],
    ) -> None:
        super().__init__(
            partial(SignCore, noise, decode, learning_rate, calibrated, weighted, ties), options
        )
