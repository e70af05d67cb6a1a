"""The accounting of a run's privacy budget, which ends the run when it is spent."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedmedian.aggregators.diagnostics import Report
from fedmedian.logs import Once, shown, warn
from fedmedian.privacy.accounting import MOST_ANSWERS, Draw, Mechanism, honest_of
from fedmedian.privacy.amplification import share_that_hides
from fedmedian.privacy.mechanism import NoMechanism, mechanism_of
from fedmedian.rounds.mechanism import UNKNOWN_MODEL, against_model, mechanism_of_strategy
from fedmedian.rounds.options import RunOptions
from fedmedian.rounds.recipe import Question, Recipe
from fedmedian.rounds.screening import Node, Reply
from fedmedian.secure.cohort import MOST_CLIENTS
from fedmedian.steps.updates import Clip, DivideByLearningRate

_MEMORYLESS = (Clip, DivideByLearningRate)
"""Client steps that are known to keep no state between rounds; a custom step may."""


@dataclass(frozen=True)
class _Charge:
    """What a question was charged: how and which clients were drawn, and how often one answers.

    Several `groups` of clients may have a secure sum each. All count as the smallest; `fewest` are
    the votes in the smallest of the `opened` ones. Groups may share clients: `heard` are the
    answers of each so far.
    """

    draw: Draw
    nodes: frozenset[Node]
    times: int = 1
    groups: int = 0
    opened: int = 0
    fewest: int = MOST_CLIENTS
    heard: Counter[Node] = field(default_factory=Counter)


class Ledger:
    """Counts the rounds that a run's clients may have answered, and the ε they have spent.

    Each client counts as answering every round, whichever are sampled: a client that returns under
    another name is the same client. If the budget relies on sampling, each client counts as drawn
    like any other, and none is relied on to answer: see `fedmedian.privacy.amplification`.

    Parameters
    ----------
    recipe : Recipe
        What the strategy asks of clients, and so what they release in a round. With secure sums
        that is known in the first round.
    options : RunOptions
        The other arguments of the strategy, among them the budget. The count is stored with its
        checkpoint, if any, before clients are asked, because their answers count even if the
        process is killed.
    fraction_train, fraction_evaluate : float
        The shares of nodes that are asked to train, and to evaluate the model.

    Raises
    ------
    ValueError
        If clients do not run a mechanism, the budget does not afford a round, or its sampling is
        below the share of clients drawn.
    """

    def __init__(
        self, recipe: Recipe, options: RunOptions, fraction_train: float, fraction_evaluate: float
    ) -> None:
        budget = options.privacy_budget
        assert budget is not None  # `of_strategy` asks
        if fraction_train > budget.sampling:
            raise ValueError(
                f"privacy_budget must have sampling >= {fraction_train:g}, the share of clients "
                f"that is drawn in a round, got {budget!r}"
            )
        self._budget, self._checkpoint, self._secure = budget, options.checkpoint, recipe.secure
        # That a round takes several answers counts if they do not depend on earlier draws.
        is_memoryless = all(type(step) in _MEMORYLESS for step in recipe.client_steps)
        self._draw = Draw(budget.sampling, options.min_replies if is_memoryless else 1)
        self._mechanism: Mechanism | None = None
        self._affordable = MOST_ANSWERS
        self._answered: Counter[Draw] = Counter()
        self._until = 0
        self._charged: dict[tuple[int, int], _Charge] = {}
        self._once = Once()
        mechanism = mechanism_of_strategy(recipe, fraction_evaluate)
        if recipe.secure is None or mechanism != NoMechanism((UNKNOWN_MODEL,)):
            self._take(mechanism)

    @classmethod
    def of_strategy(
        cls, recipe: Recipe, options: RunOptions, fraction_train: float, fraction_evaluate: float
    ) -> "Ledger | None":
        """Return a strategy's ledger, or None if it has no budget."""
        if options.privacy_budget is None:
            return None
        return cls(recipe, options, fraction_train, fraction_evaluate)

    def _take(self, mechanism: Mechanism | NoMechanism, remedy: str = "") -> None:
        """Count by a mechanism from now on; the error for too small a budget names the remedy.

        Raises
        ------
        ValueError
            If there is no mechanism, earlier rounds had a different one, or the budget does not
            afford one round.
        """
        budget = self._budget
        if isinstance(mechanism, NoMechanism):
            raise ValueError(
                "privacy_budget must be None where clients do not run a mechanism, "
                f"got {budget!r}; they do not because of {mechanism}"
            )
        if (earlier := self._mechanism) is not None:
            if replace(earlier, limit=mechanism.limit) != mechanism:
                assert self._checkpoint is not None  # a strategy's own rounds have one mechanism
                raise ValueError(
                    f"{self._checkpoint.folder} counts rounds in which clients sent {earlier}; in "
                    f"this run they send {mechanism}; continue with the noise and the clipping of "
                    "that run, or use another folder and a privacy_budget that allows for both"
                )
            if earlier.limit > mechanism.limit:
                mechanism = earlier  # earlier rounds had larger entries
        self._mechanism = mechanism
        self._affordable = self._rounds_after({})
        if self._affordable == 0 and not self._answered:
            raise ValueError(
                "privacy_budget must afford a round, which costs epsilon "
                f"{self._epsilon({self._draw: 1}):.4g}, "
                f"got {budget!r}; fedmedian.privacy.noise_multiplier_for finds the noise for one"
                f"{remedy}"
            )

    def _rounds_after(self, spent: Mapping[Draw, int], draw: Draw | None = None) -> int:
        """Return how many rounds of a draw, by default the current one, are still affordable."""
        assert self._mechanism is not None  # rounds are counted once it is known
        (draw,) = self._of_honest({draw or self._draw: 1})
        return self._mechanism.rounds_within(
            self._budget, draw.min_replies, self._of_honest(spent), draw.summed
        )

    def _of_honest(self, rounds: Mapping[Draw, int]) -> Counter[Draw]:
        """Return the rounds with the honest among the votes that their sums have."""
        found: Counter[Draw] = Counter()
        for draw, number in rounds.items():
            summed = honest_of(self._budget.honest, draw.summed)
            found[draw._replace(summed=summed)] += number
        return found

    def __str__(self) -> str:
        if self._mechanism is None:
            return str(self._budget)
        rounds = "1 round" if self._affordable == 1 else f"{self._affordable} rounds"
        sums = "" if self._secure is None else " of the smallest possible sums"
        return f"{self._budget}, which affords {rounds}{sums}"

    @property
    def rounds_left(self) -> int:
        """The number of rounds that the budget still affords.

        With secure sums it depends on the clients that are drawn, which `spend` knows.
        """
        return MOST_ANSWERS if self._secure else self._rounds_after(self._answered)

    @property
    def report(self) -> Report:
        """The report of a round: ε of a client that has answered in every one so far."""
        return {"epsilon": self._epsilon(self._answered)}

    def open(self, done: int) -> None:
        """Start a run, or resume one.

        Parameters
        ----------
        done : int
            The last round that does not run again.

        Raises
        ------
        ValueError
            If the count is damaged, or of rounds with other noise or clipping.
        OSError
            If it cannot be read.
        """
        until, self._charged = self._until, {}  # a question of that key is another one
        if self._checkpoint is not None:
            stored, until_stored, earlier = self._checkpoint.answered_rounds()
            until = max(until, until_stored)
            # An earlier run of this strategy asked the same clients, so its rounds count too.
            if sum(stored.values()) > self._answered.total():
                self._answered = Counter(stored)
            if earlier is not None:
                own, self._mechanism = self._mechanism, earlier
                if own is not None:
                    self._take(own)
        # Uncounted rounds may have asked all clients.
        if (others := done - until) > 0:
            self._answered[Draw()] += others
        self._until = done

    def affords(self, question: Question, drawn: Collection[Node]) -> bool:
        """Return whether the budget affords a round; log a warning if not.

        While there are `rounds_left` it always does, except for a secure sum.

        Parameters
        ----------
        question : Question
            What clients would be asked.
        drawn : collection of int or str
            The clients drawn.

        Raises
        ------
        ValueError
            If the model does not fit the mechanism.
        """
        return self._afforded(question, drawn, again=self._draw.sampling < 1) is not None

    def _afforded(
        self, question: Question, drawn: Collection[Node], *, again: bool
    ) -> _Charge | None:
        """Return what a question is charged if these clients are asked, too; None for too much.

        `again` says whether a client may answer it once more.
        """
        if reasons := [*map(str, against_model(question))]:
            raise ValueError(
                f"privacy_budget must be None with this model, got {self._budget!r}; there is no "
                f"mechanism because of {NoMechanism(tuple(reasons))}"
            )
        remedy = ""
        if self._secure is not None:
            self._draw = self._draw._replace(summed=self._secure.least(len(drawn)))
            steps, seed = question.instruction.steps, question.instruction.seed
            cheaper = "; all arrays in one block, Rotation(smallest=10**9), cost less"
            remedy = cheaper if len(question.blocks) > 1 else ""
            # A model of another size has other limits of its entries.
            self._take(mechanism_of(steps, seed=seed), remedy)
        charge, spent = _Charge(self._draw, frozenset(drawn)), self._answered
        if (earlier := self._charged.get(question.key)) is not None:
            fewest = min(earlier.draw.summed, self._draw.summed)
            charge = replace(
                earlier,
                draw=earlier.draw._replace(summed=fewest),
                nodes=earlier.nodes.union(drawn),
                times=earlier.times + again,
            )
            spent = spent - Counter({earlier.draw: earlier.times})
        is_known = self._secure is None  # by `rounds_left`
        if is_known or self._rounds_after(spent, charge.draw) >= charge.times:
            return charge
        warn(
            "no client is asked in round %d: another answer in a sum of %d clients would exceed "
            "the privacy budget, %s%s",
            *(question.server_round, charge.draw.summed, self, remedy),
        )
        return None

    def spend(
        self, question: Question, drawn: Collection[Node], sent: Collection[Node] = ()
    ) -> bool:
        """Charge a round, before clients are asked, if the budget affords it.

        Parameters
        ----------
        question, drawn
            As for `affords`.
        sent : collection of int or str
            Those that may have been sent this question before, and then answer it again.

        Returns
        -------
        bool
            Whether it does.

        Raises
        ------
        ValueError
            As for `affords`.
        """
        # A client that several calls of a subclass have drawn answers once, unless it was sent the
        # question before. But two draws do not hide it as well as one.
        again = self._draw.sampling < 1 or not {*sent}.isdisjoint(drawn)
        if (charge := self._afforded(question, drawn, again=again)) is None:
            return False
        now = question.server_round
        self._charged = {key: one for key, one in self._charged.items() if key[0] == now}
        self._recount(question, replace(charge, groups=charge.groups + 1))
        return True

    def recharge(self, question: Question, nodes: Collection[Node]) -> bool:
        """Charge a secure sum that was charged for other nodes, if the budget affords it.

        Returns
        -------
        bool
            Whether it does.

        Raises
        ------
        ValueError
            As for `affords`.
        """
        if (charge := self._afforded(question, nodes, again=False)) is None:
            return False
        self._recount(question, replace(charge, nodes=self._charged[question.key].nodes))
        return True

    def settle(self, question: Question, votes: int) -> None:
        """Charge a secure sum for the votes in it, at least as many as `spend` assumed.

        The sum of another group may still be opened with the fewest votes, or was of no use when it
        was, as where a hostile client has spoiled it.
        """
        charge = self._charged[question.key]
        opened, fewest = charge.opened + 1, min(votes, charge.fewest)
        known = fewest if opened >= charge.groups else min(fewest, charge.draw.summed)
        draw = charge.draw._replace(summed=known)
        self._recount(question, replace(charge, draw=draw, opened=opened, fewest=fewest))

    def correct_charge(self, question: Question, nodes: Sequence[Node]) -> None:
        """Correct the charge if the answers are not those that `spend` assumed, as with a subclass.

        Parameters
        ----------
        question : Question
            The question.
        nodes : sequence of int or str
            The node of each answer.
        """
        charge = self._charged.get(question.key)
        if charge is None:
            return
        heard = charge.heard + Counter(nodes)
        times = max([charge.times, *heard.values()])
        is_drawn = charge.draw.sampling == 1 or {*nodes} <= charge.nodes
        draw = charge.draw if is_drawn else Draw()
        now = replace(charge, draw=draw, times=times, heard=heard)
        if (draw, times) == (charge.draw, charge.times):
            self._charged[question.key] = now
            return
        self._recount(question, now)
        self._once.warn(
            "answers",
            "round %d: %s, and epsilon counts that; a subclass must ask each client once, and with "
            "sampling < 1 only clients that were drawn",
            question.server_round,
            "a client has answered twice" if is_drawn else "clients answer that were not drawn",
        )

    def _recount(self, question: Question, charge: _Charge) -> None:
        """Replace what a question was charged, if anything."""
        if (before := self._charged.get(question.key)) is not None:
            self._answered[before.draw] -= before.times
        self._answered[charge.draw] += charge.times
        self._answered += Counter()  # without those that are zero
        self._charged[question.key] = charge
        self.store(question)

    def store(self, question: Question) -> None:
        """Store what has been charged until a question, whether or not a client was asked it."""
        self._until = max(self._until, question.server_round)
        if self._checkpoint is None:
            return
        try:
            self._checkpoint.note_answered_rounds(self._answered, self._until, self._mechanism)
        # This process still has the count, and the next write contains all of it.
        except OSError as error:
            warn(
                "could not record in %s that round %d was asked (%s); if the process ends before a "
                "later round is recorded, a resumed run will not count it",
                *(self._checkpoint.folder, question.server_round, error),
            )

    def is_hidden(self, drawn: int, present: int) -> bool:
        """Return whether a round hides its clients as well as the budget assumes.

        Parameters
        ----------
        drawn : int
            The number of clients drawn.
        present : int
            The number of clients that they were drawn from.

        Returns
        -------
        bool
            Whether clients may be asked.
        """
        sampling, min_replies, _ = self._draw
        share = share_that_hides(drawn, present, min_replies) if sampling < 1 else 1.0
        if share <= sampling * (1 + 1e-12):
            return True
        is_least = share <= drawn / present
        warn(
            "no client is asked in this round: %d clients of %d were drawn, which with "
            "min_replies=%d counts as a share of %s, more than the privacy budget's sampling of "
            "%s; draw fewer, or set sampling to that share"
            + ("" if is_least else ", or min_replies to the number drawn"),
            *(drawn, present, min_replies, f"{share:.4g}", self._budget),
        )
        return False

    def warn_of_metrics(self, replies: Sequence[Reply[Any]], phase: str) -> None:
        """Warn once in each phase if clients send values that ε does not cover."""
        names = {key for one in replies for key, value in one.metrics.items() if value != 1}
        if names or any(one.num_examples != 1 for one in replies):
            self._once.warn(
                f"metrics of {phase}",
                "clients send their number of examples or their own metrics, %s, without noise, "
                "and epsilon does not count them; a client's Policy leaves them out",
                shown(sorted(names)),
            )

    def _epsilon(self, rounds: Mapping[Draw, int]) -> float:
        assert self._mechanism is not None  # rounds are counted once it is known
        budget, counted = self._budget, self._of_honest(rounds)
        return self._mechanism.epsilon_of(counted, budget.delta, budget.relation)
