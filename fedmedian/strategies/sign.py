"""Sign aggregation: one bit per parameter and client."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Unpack

from fedmedian.aggregators.aggregation import Aggregate, aggregate_signs
from fedmedian.aggregators.decoding import Counts, DecodeRule
from fedmedian.checks import require_type
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
from fedmedian.rules.noise import Noise
from fedmedian.rules.optimizers import Optimizer
from fedmedian.rules.schedules import Schedule
from fedmedian.rules.trust import mean_in_proportion
from fedmedian.steps.base import ClientStep
from fedmedian.steps.encodings import Encoding, Signs
from fedmedian.steps.payload import Payload
from fedmedian.steps.rotation import Rotation
from fedmedian.strategies.arguments import Argument
from fedmedian.strategies.message_api import MessageStrategy
from fedmedian.strategies.options import FedAvgOptions
from fedmedian.wire.scalars import Float32

DEFAULT_DECODE = Counts()


class SignCore(Core):
    """The core of `SignSGD`, whose arguments it takes; `settings` are the rest of them."""

    encoding: ClassVar[Encoding] = Signs()

    def __init__(
        self,
        *,
        noise: Noise | None,
        decode: DecodeRule,
        learning_rate: float | Schedule | None,
        weighted: bool,
        settings: Settings,
    ) -> None:
        require_type("decode", decode, DecodeRule, "a rule such as Counts() or Majority()")
        noise = settings.scaled(noise)
        if noise is None and decode.needs_noise:
            raise ValueError(f"noise must not be None with decode={decode!r}")
        usual_rate = decode.learning_rate(noise)
        if learning_rate is None and usual_rate is None:
            raise ValueError(f"learning_rate must be given with decode={decode!r}, got None")
        super().__init__(
            noise=noise,
            noise_at_client=True,
            learning_rate=learning_rate,
            usual_rate=usual_rate or 1.0,
            weighted=weighted,
            settings=settings,
        )
        self.decode = decode

    @property
    def identity(self) -> dict[str, Any]:
        """The arguments that a run's model depends on; see `Core.identity`."""
        return {**super().identity, "decode": self.decode}

    def _arguments(self) -> Iterator[tuple[str, Any, Any]]:
        yield from super()._arguments()
        yield "decode", self.decode, DEFAULT_DECODE
        yield "weighted", self.weighted, True

    def aggregate_payloads(
        self,
        payloads: list[Payload],
        weights: Weights,
        scales: Float32 | None,
        used: Float32,
        magnitudes: Float32,
        current: Round,
    ) -> Aggregate:
        """Decode the votes; see `fedmedian.aggregators.aggregation.aggregate_signs`."""
        return aggregate_signs(
            payloads,
            weights,
            current.blocks,
            self.noise,
            self.decode,
            server_rng(self.settings.seed, current.number),
            scales=used,
            magnitudes=magnitudes,
            diagnostics=self.settings.diagnostics,
        )

    @property
    def cost_of_few(self) -> tuple[int, str]:
        """Steps that are shorter, where they are; see `Ballot.step_lengths`."""
        return 3 * self.tops_up, (
            "the votes of so few are noisy, so that steps are shorter; with four or more they have "
            "their full length"
        )

    def centre(self, values: Weights, weights: Weights) -> Weights:
        """Return the weighted mean over clients; see `fedmedian.rules.trust.mean_in_proportion`."""
        return mean_in_proportion(values, weights)


class SignSGD(MessageStrategy):
    """Sign aggregation with noise: clients send sign(Q·u_i + b·ξ_i), one bit per parameter.

    With ``decode=Counts()`` the server, which knows the noise and the rotation Q, estimates the
    mean of the clients' updates u_i from their votes, so that it can take FedAvg's place at a
    thirtieth of its uplink. With ``decode=Majority()`` and ``rotation=None`` it steps along the
    majority's sign: Algorithm 3 of Chen et al. (arXiv 1906.01736), and with ``noise=None``
    Algorithm 1, signSGD with majority vote. Clients need `fedmedian.clients.perturb`, or are
    `fedmedian.clients.SignClient`.

    Each argument can be read as an attribute of its name, and only FedAvg's can be set.

    Parameters
    ----------
    noise : Noise or None (default: ``Gaussian(TopUp())``)
        The clients' noise: its family, and the scale b or the rule that sets it, in units of
        the update. A family without a scale, such as ``Gaussian()``, has the default of the basis:
        ``TopUp()`` for Gaussian noise where there is a `rotation`, else ``Adaptive(3.0)``. None
        for plain signs, which `Counts` cannot decode.
    decode : DecodeRule (default: ``Counts()``)
        The rule by which votes become a direction: `Counts`, `Majority`, or one of your own.
    learning_rate : float or callable, optional
        The server's step size δ, > 0, in x ← x − δ·step, or a schedule: a callable from the
        round to δ, such as `Cosine`. If not given it is 1.0, which moves the model
        by the estimated mean update, and with `Adam` 0.01. A majority that is not calibrated
        moves each coordinate by exactly δ and must be given one, unless the noise scale is
        `Theory`'s, which knows it.
    weighted : bool (default: True)
        Whether votes count in proportion to the clients' examples. No client of M counts for more
        than 1.25/M of the vote, nor for more than the (t + 1)-th largest number of examples, where
        t is a fifth of M, and at least 1 of two or more.
    optimizer : Optimizer, optional
        What is done to a direction before the learning rate: `Momentum`, `Adam`.
    average_decay : float, optional
        The decay, in (0, 1), of an exponential average of the model over rounds, which
        ``start`` returns as ``averaged_arrays`` beside the last model.
    client_steps : sequence of ClientStep (default: none)
        What clients do to their update before the noise, in order: `DivideByLearningRate`,
        `ClientMomentum`, `Clip`, or steps of your own. No two of one kind.
    rotation : Rotation or None (default: ``Rotation()``)
        The rotation Q of the updates, after these steps and before the noise, undone on the
        aggregate: a random basis, another each round, in which a little noise is enough. None
        for votes on the parameters themselves, for which `Adaptive` chooses a noise scale.
    scale_from : {"server", "client"} (default: "server")
        The side that chooses the noise scale. Clients that do are told the factor of a rule by
        which they can measure, such as `Adaptive`, and need not follow it. Examples included, none
        counts for more than four median clients, nor for more than two of the (t + 1)-th largest.
    exact : sequence of str (default: names of normalisation layers' running statistics)
        Shell-style patterns of the names of floating-point arrays that clients send exactly, as
        arrays of integers always are, to be averaged; values out of line are moved in first.
    cohort_rules : sequence of callables (default: none)
        Rules by which a round's usable answers are judged together before they are aggregated:
        each maps a `fedmedian.strategies.Cohort` to the answers to refuse, by their index, with
        the reason. "One reply per node that was asked" always comes first.
    diagnostics : bool (default: True)
        Whether each round's report says how votes agree and what is noise in them.
    min_replies : int (default: 1)
        A round with fewer usable replies keeps the model as it is, and says so; >= 1.
    max_failed_rounds : int or None (default: 3)
        After so many rounds in a row that keep the model as it is, ``start`` raises
        `RunFailedError` with the commonest reason; >= 1. None for never. It raises after the first
        round, too, if all clients have sent plain weights.
    checkpoint : Checkpoint, optional
        Where the run is stored after every so many rounds; if it is there already, ``start``
        goes on from it. With a seed, all nodes and clients without a state of their own, the
        model is bit for bit that of a run that was not interrupted. Of the arguments above and of
        the seed it must be the same ones, but for `cohort_rules`, `diagnostics`, `min_replies`
        and `max_failed_rounds`; a function is known by its name.
    privacy_budget : PrivacyBudget, optional
        The most that clients' answers may tell about their updates. What they are asked for must
        be a mechanism, as `privacy` says. Each round reports ``epsilon``, and the run ends with
        its Result before a round would exceed the budget. What was spent is spent, too, when the
        run goes on from a checkpoint or ``start`` is called again; the budget may be another.
    numpy_clients : bool (default: False)
        Whether the clients are NumPyClients, for training and evaluation; their metrics are
        averaged as a Message-API app's would be.
    seed : int, optional
        Makes every random number of server and clients follow from it, >= 0, and which nodes
        are sampled where `fraction_train` is below 1; but on Ray Flower gives the nodes new
        names in each run. Without one, the right choice outside of simulation, noise comes
        from the operating system's entropy and the server cannot know it.
    proximal_mu : float, optional
        The weight of FedProx's proximal term, >= 0, told to clients that ask for it in their
        config as ``"proximal-mu"``, as Flower's FedProx does; the term is theirs to add.
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
        If an argument is out of range, if the rule needs noise and there is none, if clients
        cannot know the noise family or a client step, if they are to choose a scale that is
        fixed, if a majority lacks its learning rate, or if there is a privacy budget and clients do
        not run a mechanism, or one whose first round exceeds it.

    Examples
    --------
    >>> from fedmedian import Gaussian, Majority
    >>> strategy = SignSGD(fraction_train=0.5)
    >>> paper = SignSGD(Gaussian(0.1), Majority(), learning_rate=0.001, rotation=None)
    """

    decode = Argument[DecodeRule]()
    weighted = Argument[bool]()

    def __init__(
        self,
        noise: Noise | None = DEFAULT_NOISE,
        decode: DecodeRule = DEFAULT_DECODE,
        learning_rate: float | Schedule | None = None,
        *,
        weighted: bool = True,
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
        core = SignCore(
            noise=noise,
            decode=decode,
            learning_rate=learning_rate,
            weighted=weighted,
            settings=settings,
        )
        super().__init__(core, numpy_clients, fedavg)
