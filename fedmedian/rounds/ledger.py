"""A run's privacy budget: what has been spent of it, and when it ends the run."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fedmedian.aggregators.diagnostics import Report
from fedmedian.logs import warn
from fedmedian.privacy.accounting import Draw, Mechanism, PrivacyBudget
from fedmedian.privacy.amplification import share_that_hides
from fedmedian.privacy.mechanism import NoMechanism
from fedmedian.rounds.checkpoint import Checkpoint
from fedmedian.rounds.core import Core, Round
from fedmedian.rounds.mechanism import against_model, mechanism_of_strategy
from fedmedian.rounds.screening import Reply
from fedmedian.steps.updates import Clip, DivideByLearningRate

_MEMORYLESS = (Clip, DivideByLearningRate)
"""Client steps that are known to remember nothing from round to round; a custom one may."""


class Ledger:
    """Counts the rounds that a run's clients may have answered, and what they have told by it.

    A client is taken to answer in every round, whichever are sampled: one that comes back under
    another name is still the same. Where the budget counts on sampling it is taken to be drawn
    like any other, and no client is taken to answer: see `fedmedian.privacy.amplification`.

    Parameters
    ----------
    budget : PrivacyBudget
        The most that may be told.
    mechanism : Mechanism or NoMechanism
        What clients release in a round.
    checkpoint : Checkpoint or None
        Where the count is kept. It is written before clients are asked: what a process that was
        killed has asked for has been told all the same.
    min_replies : int (default: 1)
        The number of replies without which a round keeps the model.

    Raises
    ------
    ValueError
        If it is no mechanism, or the budget does not afford one round.
    """

    def __init__(
        self,
        budget: PrivacyBudget,
        mechanism: Mechanism | NoMechanism,
        checkpoint: Checkpoint | None,
        min_replies: int = 1,
    ) -> None:
        if isinstance(mechanism, NoMechanism):
            raise ValueError(
                "privacy_budget must be None where clients do not run a mechanism, "
                f"got {budget!r}; there is none because of {mechanism}"
            )
        self._budget, self._mechanism, self._checkpoint = budget, mechanism, checkpoint
        self._draw = Draw(budget.sampling, min_replies)
        self._affordable = mechanism.rounds_within(budget, min_replies)
        if self._affordable == 0:
            raise ValueError(
                "privacy_budget must afford a round, which costs epsilon "
                f"{self._epsilon({self._draw: 1}):.4g}, "
                f"got {budget!r}; fedmedian.privacy.noise_multiplier_for finds the noise for one"
            )
        self._answered: Counter[Draw] = Counter()
        self._has_warned = False

    @classmethod
    def of_strategy(
        cls, core: Core, fraction_train: float, fraction_evaluate: float
    ) -> "Ledger | None":
        """Return a strategy's ledger, or None if it has no budget; see `mechanism_of_strategy`.

        Raises
        ------
        ValueError
            If there is no mechanism, the budget does not afford a round, or counts on hiding more
            than it does.
        """
        budget = core.settings.privacy_budget
        if budget is None:
            return None
        if fraction_train > budget.sampling:
            raise ValueError(
                f"privacy_budget must have sampling >= {fraction_train:g}, the share of clients "
                f"that is drawn in a round, got {budget!r}"
            )
        mechanism, settings = mechanism_of_strategy(core, fraction_evaluate), core.settings
        # That a round takes several answers counts if they do not depend on earlier draws.
        is_memoryless = all(type(step) in _MEMORYLESS for step in settings.client_steps)
        min_replies = settings.min_replies if is_memoryless else 1
        return cls(budget, mechanism, settings.checkpoint, min_replies)

    def __str__(self) -> str:
        rounds = "1 round" if self._affordable == 1 else f"{self._affordable} rounds"
        return f"{self._budget}, which affords {rounds}"

    @property
    def rounds_left(self) -> int:
        """The number of rounds that the budget still affords."""
        budget, draw = self._budget, self._draw
        return self._mechanism.rounds_within(budget, draw.min_replies, self._answered)

    @property
    def report(self) -> Report:
        """What to report about a round: ε of a client that has answered in every one."""
        return {"epsilon": self._epsilon(self._answered)}

    def open(self, done: int) -> None:
        """Begin a run, or resume one.

        Parameters
        ----------
        done : int
            The last round that need not be run again.

        Raises
        ------
        ValueError
            If the count is damaged.
        OSError
            If it cannot be read.
        """
        stored = Counter({} if self._checkpoint is None else self._checkpoint.answered_rounds())
        # Another run of this strategy's asks the same clients: what was spent before is spent.
        if stored.total() > self._answered.total():
            self._answered = stored
        # Rounds that nobody has counted may have been asked of all.
        if (others := done - self._answered.total()) > 0:
            self._answered[Draw()] += others

    def spend(self, current: Round) -> None:
        """Take note of a round, before clients are asked.

        Parameters
        ----------
        current : Round
            The round.

        Raises
        ------
        ValueError
            If something in the model is in the way of the mechanism.
        """
        if reasons := [*map(str, against_model(current))]:
            raise ValueError(
                f"privacy_budget must be None with this model, got {self._budget!r}; there is no "
                f"mechanism because of {NoMechanism(tuple(reasons))}"
            )
        self._answered[self._draw] += 1
        if self._checkpoint is None:
            return
        try:
            self._checkpoint.note_answered_rounds(self._answered)
        # The count in this process still holds, and the next one that is written has it all.
        except OSError as error:
            warn(
                "could not record in %s that round %d was asked (%s); if the process ends before a "
                "later round is recorded, a resumed run will not count it",
                *(self._checkpoint.folder, current.number, error),
            )

    def is_hidden(self, drawn: int, present: int) -> bool:
        """Tell whether the clients of a round are hidden as well as the budget counts on.

        Parameters
        ----------
        drawn : int
            The number of clients that were drawn.
        present : int
            The number of those that they were drawn from.

        Returns
        -------
        bool
            Whether the round may be asked.
        """
        sampling, min_replies = self._draw
        share = share_that_hides(drawn, present, min_replies) if sampling < 1 else 1.0
        if share <= sampling * (1 + 1e-12):
            return True
        is_least = share <= drawn / present
        warn(
            "nobody is asked in this round: %d clients of %d were drawn, which with min_replies=%d "
            "counts as a share of %s, more than the sampling of the privacy budget, %s; draw "
            "fewer, or set sampling to that share"
            + ("" if is_least else ", or min_replies to the number drawn"),
            *(drawn, present, min_replies, f"{share:.4g}", self._budget),
        )
        return False

    def look_at(self, replies: Sequence[Reply[Any]]) -> None:
        """Warn, once, if clients send what ε does not count."""
        if self._has_warned:
            return
        names = {key for one in replies for key, value in one.metrics.items() if value != 1}
        if not names and all(one.num_examples == 1 for one in replies):
            return
        self._has_warned = True
        warn(
            "clients send their number of examples or metrics of their own, %s, without noise, and "
            "epsilon does not count them; a client's Policy leaves them out",
            sorted(names),
        )

    def _epsilon(self, rounds: Mapping[Draw, int]) -> float:
        return self._mechanism.epsilon_of(rounds, self._budget.delta, self._budget.relation)
