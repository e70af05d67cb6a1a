"""A client's own rules about what it sends, whatever a server asks."""

import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import MISSING, dataclass, fields
from typing import Any, NoReturn

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict

from fedmedian.checks import require_integer, require_real, require_type
from fedmedian.clients.holding import MODEL_STATE
from fedmedian.clients.ledger import HAS_LOCKS, Answered, Ledger
from fedmedian.clients.summing import SUM_STATE
from fedmedian.logs import warn
from fedmedian.model.layout import Layout, matches
from fedmedian.privacy.accounting import (
    MOST_ANSWERS,
    Mechanism,
    PrivacyBudget,
    PrivacyLoss,
    honest_of,
    require_share,
)
from fedmedian.privacy.mechanism import SHORTEST, largest_entry, least_scale, limit_of, obstacles
from fedmedian.randomness import secret_rng
from fedmedian.secure.cohort import FEWEST, Place
from fedmedian.steps.encodings import Signs
from fedmedian.steps.instruction import Instruction
from fedmedian.wire.scalars import FLOAT32_MAX, FLOAT32_TINY, POLICY_RULE, PREFIX

VARIABLE = "FEDMEDIAN_POLICY"
"""The environment variable that may hold a policy."""

CONFIG_KEY = "fedmedian-policy"
"""The key of the run config that may hold a policy."""

EXAMPLES = ("num-examples", "num_examples")
"""The names of the number of examples in the two APIs."""

_STATE = "fedmedian-policy"
"""The record in ``Context.state``; no client step stores its memory under this name."""

_STATUS = tuple(f"{what}res.status" for what in ("fit", "evaluate", "getproperties"))
"""The records in which a client of the older API reports whether it failed; not metrics."""


class PolicyError(ValueError):
    """Raised when a client's policy refuses something; the message names the rule."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Rules that a client enforces, whatever server it is connected to.

    In each round the client releases its update, clipped to an L2 norm of at most `clip`, with
    Gaussian noise of scale at least `noise_scale`. This is a Gaussian mechanism with a noise
    multiplier of at least ``noise_scale / clip``. The client clips right before it adds the noise,
    so that no earlier step makes the update longer. The noise is drawn by `secret_rng`.

    The client refuses the following with an error reply that names the rule. It refuses before the
    app trains if the server's message is enough to decide:

    - ``instruction``: training without an instruction, which would be answered with exact weights,
      and arrays in an answer to anything but training;
    - ``seed``: noise that the server can draw again;
    - ``magnitudes``: the size of the update, without noise;
    - ``tied``: whether arrays have the same update, without noise;
    - ``reports``: anything else that a custom step reports about the update, without noise;
    - ``vectors``: any encoding of the noisy update but its signs, unless `vectors` allows it;
    - ``noise_scale``: no noise, too little noise, noise that depends on the update, noise that is
      not Gaussian, or another step between the noise and the encoding;
    - ``exact``, ``rounds``, ``epsilon``, ``metrics``, ``cohort``, ``ledger``: see the parameters;
    - ``one answer per round``: a round that does not come after the last one.

    If an update is not finite, or a step of the server fails on it, the client sends only noise.
    An error would reveal something about the data, without noise, whenever a server can cause one.
    The client logs the reason, and its memory stays unchanged. Errors after training depend only on
    the names, shapes and dtypes of what the app returns, or are raised by the app. For the same
    reason, training that fails counts as an answer.

    Answers are counted in ``Context.state``, which Flower keeps for a run, and loses when a
    SuperNode ends; or in a `ledger`, which counts those of all runs.

    Parameters
    ----------
    clip : float
        C, the largest L2 norm of an update, >= 1e-30, in units of the vector that gets the noise.
    noise_scale : float
        The smallest noise scale b = σ·C, > 0, in the same units.
    rounds : int
        The largest number of rounds that are answered, >= 1.
    epsilon, delta : float, optional
        The bound on what all answers together reveal about which of any two updates they are from,
        as ε and δ; both or neither. An answer that would exceed it is refused. The cost of an
        answer follows from the noise that the server asks for, see `fedmedian.privacy`: more noise
        than `noise_scale` allows more answers.
    exact : sequence of str (default: ())
        Shell-style patterns of the names of arrays that may be sent exactly, without noise. The
        names are those of the app; for a NumPyClient they are the positions, "0", "1", ….
    metrics : sequence of str (default: ())
        Shell-style patterns of the names of metrics that may be sent, of training and of
        evaluation. Others are removed, and a "num-examples" that may not be sent becomes 1.
        Evaluation is refused if none of its metrics may be sent.
    vectors : bool (default: False)
        Whether more of the noisy update than its signs may be sent. Its cost is that of ideal
        noise. Noise in floating point hides less; see `fedmedian.kernels.encoding`. It is drawn and
        added in float64.
    cohort : int, optional
        The smallest number of clients, including this one, whose votes are in a secure sum, >= 3.
        Votes that are not summed are refused. Without it, the server may see every vote.
    honest : float (default: 0.8)
        The smallest honest share of this client and those that it shares masks with, in (0, 1]; a
        lying server chooses these clients. With `cohort`, the cost of an answer follows from the
        honest ones that must be in its sum; see `fedmedian.privacy.sums`. They count only if the
        server's steps bound every client's entries, by `Clip` or the `Limit` of a strategy with
        it.
    ledger : str, optional
        The absolute path of a folder of this SuperNode alone, made if missing, in which answers are
        counted: those of all runs together, for as long as it exists. Answers are refused if it
        cannot be written or is damaged. A policy in the run config must not have one.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.
    ImportError
        If randomgen is not installed, which the extra ``privacy`` requires.

    Examples
    --------
    >>> policy = Policy(clip=1.0, noise_scale=0.5, rounds=100, metrics=["loss"])
    """

    clip: float
    noise_scale: float
    rounds: int
    exact: Sequence[str] = ()
    metrics: Sequence[str] = ()
    vectors: bool = False
    epsilon: float | None = None
    delta: float | None = None
    cohort: int | None = None
    honest: float = 0.8
    ledger: str | None = None

    def __post_init__(self) -> None:
        # Float32 is the precision of the arithmetic, and on the wire.
        require_real("clip", self.clip, low=SHORTEST, high=FLOAT32_MAX)
        require_real("noise_scale", self.noise_scale, low=FLOAT32_TINY, high=FLOAT32_MAX)
        require_integer("rounds", self.rounds, low=1, high=MOST_ANSWERS)
        for name in ("exact", "metrics"):
            patterns = getattr(self, name)
            is_list = isinstance(patterns, list | tuple)
            if not is_list or not all(isinstance(pattern, str) for pattern in patterns):
                raise TypeError(f"{name} must be a list or tuple of strings, got {patterns!r}")
            object.__setattr__(self, name, tuple(patterns))
        require_type("vectors", self.vectors, bool, "a bool")
        if self.cohort is not None:
            require_integer("cohort", self.cohort, low=FEWEST)
        require_share("honest", self.honest)
        require_type("ledger", self.ledger, str | None, "a string")
        if self.ledger is not None and not os.path.isabs(self.ledger):
            raise ValueError(f"ledger must be an absolute path, got {self.ledger!r}")
        if self.ledger is not None and not HAS_LOCKS:
            raise ValueError(f"ledger must be None on a system without flock, got {self.ledger!r}")
        self._require_budget()
        secret_rng()

    @classmethod
    def from_text(cls, text: str) -> "Policy":
        """Return the policy that a text describes.

        Parameters
        ----------
        text : str
            The parameters as in a TOML inline table, with dashes or underscores, each once.

        Returns
        -------
        Policy
            The policy.

        Raises
        ------
        TypeError, ValueError
            If the text is malformed, or a parameter is missing, unknown, repeated or out of range.

        Examples
        --------
        >>> policy = Policy.from_text('clip = 1.0, noise-scale = 0.5, rounds = 100')
        >>> policy == Policy(clip=1.0, noise_scale=0.5, rounds=100)
        True
        """
        require_type("text", text, str, "a string")
        try:
            document = tomllib.loads(f"policy = {{{text}}}")
        except tomllib.TOMLDecodeError as error:
            example = "clip = 1.0, noise-scale = 0.5, rounds = 100"
            raise ValueError(f"it must be a text such as {example!r}: {error}") from error
        if len(document) > 1:
            raise ValueError(f"the text of a policy must be one table, got {text!r}")
        spelled: dict[str, str] = {}
        for key in document["policy"]:
            other = spelled.setdefault(key.replace("-", "_"), key)
            if other != key:
                raise ValueError(f"{other!r} and {key!r} are one parameter, give only one")
        known = {one.name: one.name.replace("_", "-") for one in fields(cls)}
        if unknown := spelled.keys() - known.keys():
            raise ValueError(
                f"there is no parameter {spelled[min(unknown)]!r}, only {', '.join(known.values())}"
            )
        needed = (one.name for one in fields(cls) if one.default is MISSING)
        if missing := [known[name] for name in needed if name not in spelled]:
            raise ValueError(f"it must also have {', '.join(missing)}")
        return cls(**{name: document["policy"][key] for name, key in spelled.items()})

    def require_permission(self, instruction: Instruction, layout: Layout) -> None:
        """Raise if an instruction asks for something that may not be sent.

        Parameters
        ----------
        instruction : Instruction
            What the server asks for.
        layout : Layout
            The model's layout, with the names that the server gives its arrays.

        Raises
        ------
        PolicyError
            Naming the rule.
        """
        if type(instruction.encoding) is not Signs and not self.vectors:
            _refuse("vectors", "the server asks for the update, not for its signs")
        names = [spec.name for spec in layout.specs]
        # The names are the server's; `Policies.require_exact` looks at the client's own.
        refused = [
            names[position]
            for position in instruction.exact
            if not _matches(self.exact, names[position], str(position))
        ]
        for obstacle in obstacles(
            instruction.steps, seed=instruction.seed, clip=self.clip, exact=refused, layout=layout
        ):
            _refuse(obstacle.rule, str(obstacle))
        low, scale = np.float32(self.noise_scale), np.float32(least_scale(instruction.steps))
        if not scale >= low:
            _refuse("noise_scale", f"must be >= {low!s}, the server asks for {scale!s}")

    def require_cohort(self, place: Place | None) -> None:
        """Raise if too few clients' votes are summed.

        Parameters
        ----------
        place : Place or None
            This client's place in a secure sum; None without one.

        Raises
        ------
        PolicyError
            Naming the rule.
        """
        if self.cohort is None:
            return
        if place is None:
            _refuse("cohort", "the server asks for votes without a secure sum")
        if (least := place.least) < self.cohort:
            remedy = "SecureSum's threshold and neighbors raise that"
            _refuse(
                "cohort", f"must be >= {self.cohort}, the sum may have {least} clients; {remedy}"
            )

    def require_budget_for(self, loss: PrivacyLoss) -> None:
        """Raise if answers reveal more than the budget allows.

        Parameters
        ----------
        loss : PrivacyLoss
            What all answers reveal, including the next one.

        Raises
        ------
        PolicyError
            Naming the rule.
        """
        if self.epsilon is None or self.delta is None:
            return
        if (spent := loss.epsilon(self.delta)) > self.epsilon:
            limit = f"{float(self.epsilon):g} at delta {float(self.delta):g}"
            _refuse("epsilon", f"this answer would raise it to {spent:.4g}; the limit is {limit}")

    def _require_budget(self) -> None:
        if (self.epsilon is None) != (self.delta is None):
            raise ValueError(
                f"epsilon and delta must be given together, got {self.epsilon!r} and {self.delta!r}"
            )
        if self.epsilon is not None and self.delta is not None:
            budget = PrivacyBudget(self.epsilon, self.delta)
            if self.cohort is not None:
                return  # the cost depends on the limit that the server asks for
            least = Mechanism(self.clip, self.noise_scale, "vector" if self.vectors else "signs")
            if not least.rounds_within(budget):
                price = least.epsilon(self.delta)
                raise ValueError(
                    f"epsilon must afford an answer with the least noise, which costs {price:.4g}, "
                    f"got {self.epsilon!r}"
                )


@dataclass(frozen=True)
class Policies:
    """All policies that a client enforces: what any of them refuses is refused.

    Parameters
    ----------
    members : tuple of Policy
        The policies; without any, everything may be sent.
    """

    members: tuple[Policy, ...] = ()

    @classmethod
    def in_force(cls, context: Context, *own: Policy) -> "Policies":
        """Return the policies in a client's code, its environment and the run config.

        Parameters
        ----------
        context : Context
            The client's context.
        *own : Policy
            The policies in its code.

        Returns
        -------
        Policies
            The policies.

        Raises
        ------
        PolicyError
            If a policy cannot be read, or the run config has one under a misspelled key.
        """
        sources = {
            f"environment variable {VARIABLE}": os.environ.get(VARIABLE),
            f"run config {CONFIG_KEY}": context.run_config.get(CONFIG_KEY),
        }
        for key in context.run_config:
            spelled = re.sub(r"[_.]", "-", key).casefold()
            if key != CONFIG_KEY and spelled.startswith(CONFIG_KEY):
                raise PolicyError(f"run config {key} is not {CONFIG_KEY}, the key of a policy")
        found = list(own)
        for source, text in sources.items():
            if text is not None:
                try:
                    found.append(Policy.from_text(text))  # type: ignore[arg-type]
                except (TypeError, ValueError) as error:
                    raise PolicyError(f"{source} holds no valid policy: {error}") from error
                if CONFIG_KEY in source and found[-1].ledger is not None:
                    raise PolicyError(f"{source} must not have a ledger, a folder on the client")
        ledgers = {os.path.realpath(one.ledger) for one in found if one.ledger is not None}
        if len(ledgers) > 1:
            raise PolicyError(f"all policies must have one ledger, got {len(ledgers)}")
        return cls(tuple(found))

    @property
    def clip(self) -> float | None:
        """The largest L2 norm of the vector that noise is added to; None without a policy."""
        return min((float(policy.clip) for policy in self.members), default=None)

    def admit(
        self, instruction: Instruction, layout: Layout, context: Context, place: Place | None = None
    ) -> None:
        """Count an instruction's round as answered, unless a policy refuses it.

        Parameters
        ----------
        instruction : Instruction
            What the server asks for.
        layout : Layout
            The model's layout.
        context : Context
            The client's context; its count of answers is updated.
        place : Place, optional
            This client's place in a secure sum. Without it, the server sees every vote.

        Raises
        ------
        PolicyError
            If a policy refuses it, naming the rule.
        """
        for policy in self.members:
            policy.require_permission(instruction, layout)
            policy.require_cohort(place)
        if self.members:
            # Before training: a failure reveals something about the data, too.
            self._count(context, instruction, place)

    def require_exact(self, instruction: Instruction, names: Sequence[str]) -> None:
        """Raise if an array would be sent exactly that may not be.

        Parameters
        ----------
        instruction : Instruction
            What the server asks for.
        names : sequence of str
            The client's names of the model's arrays, in the model's order.

        Raises
        ------
        PolicyError
            Naming the rule.
        """
        for name in (names[position] for position in instruction.exact):
            if not all(_matches(policy.exact, name) for policy in self.members):
                _refuse("exact", f"array {name!r} may not be sent without noise")

    def withhold(self, content: RecordDict) -> None:
        """Remove from a reply, in place, what may not be sent with its answer."""
        if not self.members:
            return
        for name, record in list(content.items()):
            if isinstance(record, ConfigRecord) and name not in _STATUS:
                content[name] = ConfigRecord(self._permitted(record))
            elif isinstance(record, MetricRecord):
                examples = {key: 1 for key in record if key in EXAMPLES}
                content[name] = MetricRecord(examples | self._permitted(record))

    def _permitted(self, record: ConfigRecord | MetricRecord) -> dict[str, Any]:
        return {
            key: value
            for key, value in record.items()
            if all(_matches(policy.metrics, key) for policy in self.members)
        }

    def admit_uninstructed(self, is_training: bool) -> None:
        """Raise if a message without an instruction must not be answered.

        Parameters
        ----------
        is_training : bool
            Whether it asks for training.

        Raises
        ------
        PolicyError
            Naming the rule.
        """
        if self.members and is_training:
            _refuse("instruction", "the server asks for exact weights")
        if not all(policy.metrics for policy in self.members):
            _refuse(
                "metrics", "none may be sent: list some, or set fraction_evaluate=0.0 on the server"
            )

    def withhold_uninstructed(self, content: RecordDict) -> None:
        """Remove from an answer to anything but training, in place, what may not be sent.

        Raises
        ------
        PolicyError
            If it holds arrays, or nothing of a record may be sent, naming the rule.
        """
        if not self.members:
            return
        if any(isinstance(record, ArrayRecord) for record in content.values()):
            _refuse("instruction", "arrays may be sent only as an answer to an instruction")
        full = [name for name, record in content.items() if record]
        self.withhold(content)
        for name in full:
            if isinstance(content[name], MetricRecord) and not content[name]:
                _refuse("metrics", f"nothing in record {name!r} may be sent")

    def _count(self, context: Context, instruction: Instruction, place: Place | None) -> None:
        loss = self._loss_of_answer(instruction, place)
        run, server_round = str(context.run_id), instruction.server_round

        def counted(answers: Answered, members: Sequence[Policy]) -> Answered:
            last = answers.rounds.get(run, -1)
            if server_round <= last:
                shared = "; does another client use its ledger?" if members[0].ledger else ""
                why = f"round {server_round} came after round {last}{shared}"
                _refuse("one answer per round", why)
            most = min(policy.rounds for policy in members)
            if answers.number >= most:
                _refuse("rounds", f"this client's limit of answers, {most}, is reached")
            total = answers.loss + loss
            for policy in members:
                policy.require_budget_for(total)
            return Answered(answers.number + 1, {**answers.rounds, run: server_round}, total)

        # A refusal must leave both counts as they are.
        if of_run := [policy for policy in self.members if policy.ledger is None]:
            kept = context.state.config_records.get(_STATE)
            in_state = counted(Answered() if kept is None else Answered.decode(kept), of_run)
        of_all = [policy for policy in self.members if policy.ledger is not None]
        path = next((policy.ledger for policy in of_all), None)
        if path is not None:
            try:
                with Ledger(path) as ledger:
                    ledger.write(counted(ledger.read(), of_all))
            except PolicyError:
                raise
            except (OSError, ValueError) as error:  # its path is not for the server
                warn(
                    "nothing is answered: the ledger %s cannot be used: %s; make it writable, "
                    "restore it, or remove it to count from 0",
                    *(path, error),
                )
                _refuse("ledger", "it cannot be used; the client's log says why")
        if of_run:
            context.state[_STATE] = ConfigRecord(in_state.encode())

    def _loss_of_answer(self, instruction: Instruction, place: Place | None) -> PrivacyLoss:
        clip, steps = self.clip, instruction.steps
        assert clip is not None
        summed = 0
        # A policy without a cohort relies on no other client.
        if place is not None and all(policy.cohort is not None for policy in self.members):
            share = min(policy.honest for policy in self.members)
            together = len(place.neighbors) + 1
            summed = place.honest(together - honest_of(share, together))
        return PrivacyLoss.of_answer(
            instruction.encoding.name,
            least_scale(steps) / clip,
            limit=limit_of(steps) / clip,
            summed=summed,
            # It knows of the others only what all were asked, or masks would not cancel.
            others=largest_entry(steps) / clip,
        )


_ENFORCING: ContextVar[bool] = ContextVar("enforcing", default=False)


@contextmanager
def enforcing(context: Context) -> Iterator[None]:
    """Mark calls in this context as made by a mod that enforces the policies, and keep its state.

    An app may replace its whole state, and fail afterwards.
    """
    token, state = _ENFORCING.set(True), context.state
    kept = {
        # Arrays are not copied: those of the model and of client steps are large.
        name: record if isinstance(record, ArrayRecord) else deepcopy(record)
        for name, record in state.items()
        if name in (_STATE, SUM_STATE, MODEL_STATE) or name.startswith(PREFIX)
    }
    try:
        yield
    finally:
        _ENFORCING.reset(token)
        context.state.update(kept)


def are_enforced() -> bool:
    """Return whether a mod that enforces the policies is making the current call."""
    return _ENFORCING.get()


def require_enforcement(context: Context) -> None:
    """Raise if a policy is set and no mod enforces it.

    Raises
    ------
    PolicyError
        Saying what to do.
    """
    if not are_enforced() and Policies.in_force(context).members:
        raise PolicyError("a policy is set, but no mod enforces it: add mods=[perturb]")


def _refuse(rule: str, why: str) -> NoReturn:
    raise PolicyError(f"{POLICY_RULE} {rule!r}: {why}")


def _matches(patterns: Sequence[str], *names: str) -> bool:
    return any(matches(pattern, name) for name in names for pattern in patterns)
