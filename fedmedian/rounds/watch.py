"""What a run reports to its user: a line per round, warnings, and an error when it fails."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from typing import Any, Generic

import numpy as np

from fedmedian.aggregators.agreement import APART
from fedmedian.aggregators.diagnostics import Report
from fedmedian.logs import LOGGER, Once, as_line, without_addresses
from fedmedian.model.blocks import UNNAMED, Blocks
from fedmedian.model.layout import Arrays, is_finite
from fedmedian.rounds.recipe import Model, PlainWeightsError, Question
from fedmedian.rounds.roster import Roster
from fedmedian.rounds.screening import Answer, Node, Source
from fedmedian.rounds.state import RunState
from fedmedian.steps.encodings import Vector
from fedmedian.steps.noise import AddNoise, Measure

RUNAWAY = 10.0
"""A noise scale that has grown by this factor since its first rounds triggers a warning."""

_FIRST_ROUNDS = 10
"""Later scales are compared with the largest of a block's first nonzero ones, this many.

Arrays that start at zero, or train with a learning rate that warms up, move little at first.
"""

APART_ROUNDS = 3
"""The log names a client that others do not agree with in this many of its rounds in a row."""

_ENOUGH_TO_AGREE = 5
"""With fewer clients some are apart by chance, round after round."""

STILL_ROUNDS = 3
"""A client whose first updates, this many, are all zero triggers a warning."""

_START = 4096

_Block = tuple[tuple[str, ...], int]
"""The names of a block's arrays, and its size."""

_MOST_METRICS = 8
"""The number of the clients' metrics in a round's log line."""

# The older API passes on an error reply's text without its code.
_IN_ERROR_REPLY = r"(^error \d+: |\(reason: )"

_NUMBER = re.compile("[0-9]+")

_DEAD_WORKER = _IN_ERROR_REPLY + r".*ray\.exceptions\.\w*Actor\w*Error"

Remedies = Sequence[tuple[str, str]]

_REMEDIES: Remedies = (
    (
        _IN_ERROR_REPLY + ".* expects the keys in the ArrayRecord",
        "put perturb first in the ClientApp's mods; if NumPyClients train a model whose arrays "
        "have names, start with ArrayRecord(list_of_arrays)",
    ),
    (
        _IN_ERROR_REPLY + ".* requires the key 'clipping_norm'",
        'pass train_config=ConfigRecord({"clipping_norm": 1.0}) to start, or in the older API let '
        "on_fit_config_fn return it",
    ),
    (
        _IN_ERROR_REPLY + r".*KeyError.*(fit|evaluate)ins\.parameters",
        "its clients are NumPyClients: numpy_clients=True",
    ),
    (
        _IN_ERROR_REPLY + ".*KeyError.*'arrays'",
        "if its app reads message.content['arrays'], leave out numpy_clients=True, or any "
        "arrayrecord_key other than 'arrays'",
    ),
    (
        "(update of array|vector|array) .*holds NaN or infinity|"
        "^(scales|magnitudes) must be from 0 to ",
        "training diverges on that client; lower the clients' learning rate, or, if the noise "
        "scale is a number, that number, and the norm of Clip with it",
    ),
    (
        _IN_ERROR_REPLY + r".*perturb_with\(\) takes 1 positional argument",
        "give it the client's policy: mods=[perturb_with(Policy(…))]",
    ),
    (
        _IN_ERROR_REPLY + ".*secaggplus_configs",
        "remove secaggplus_mod from the clients' mods: it needs Flower's SecAggPlusWorkflow",
    ),
    (
        "^metric .* must be a number > 0, got None$",
        "let clients report it with their metrics, and a Policy send it, metrics=[…], or set "
        "weighted_by_key to their name for it",
    ),
    (
        "^expected one MetricRecord, got 0$",
        'let their app report {"num-examples": …} in a MetricRecord of its reply',
    ),
    (
        "^(answers (round|question)|replies to a message of round) ",
        "let a subclass send each message in the round that it was made in, pass on its reply "
        "there, and aggregate replies about two models one after the other",
    ),
    ("^no reply$", "are the nodes up, and is the timeout long enough?"),
    (
        _DEAD_WORKER,
        "a Ray worker has died, and Flower sends it most messages of later rounds too: look above "
        "for what ended the worker, such as sys.exit or too little memory",
    ),
    ("(instruction|payload) has version", "server and clients need the same release of fedmedian"),
    # Not where a subclass asks twice in a round, nor where clients share a ledger.
    (
        r"'one answer per round': round (\S+) came after round (?!\1(\D|$))(?!.* ledger)",
        "an earlier start, or another strategy, has asked for such rounds in this run of Flower, "
        "and a client with a policy answers each once: resume a run, or start a second one, by "
        "flwr run or with a new InProcessGrid",
    ),
    # An exception in the client's app, which Flower logs on the client.
    (
        r"^error [12]: |"
        r"\(reason: (<class '|An exception was raised|(?!Error: )[\w.]*[A-Z]\w*(: |\)))",
        "see the clients' own log",
    ),
)
"""Patterns of reasons, each with its remedy; the first match counts."""

_REMEDIES_OF_EVALUATION: Remedies = (
    (
        _IN_ERROR_REPLY + ".* (expects exactly one ArrayRecord|requires the key 'clipping_norm')",
        "list this mod for training alone, @app.train(mods=[…]), or set fraction_evaluate=0.0",
    ),
    (
        "No evaluate function registered|does not implement `evaluate`",
        "write one, or set fraction_evaluate=0.0",
    ),
    *_REMEDIES,
)
"""The same for replies to evaluation."""


class RunFailedError(RuntimeError):
    """Raised to stop a run whose rounds keep failing, which would otherwise look like success.

    Parameters
    ----------
    message : str
        The rounds, the most common reason, and its remedy.
    arrays : mapping of str to array
        The model.

    Attributes
    ----------
    arrays : mapping of str to array
        The model after the last successful round, or the initial model.
    """

    def __init__(self, message: str, arrays: Arrays) -> None:
        super().__init__(message)
        self.arrays = arrays

    def __reduce__(self) -> tuple[type["RunFailedError"], tuple[str, Arrays]]:
        """Pickle the error with its model, so that it can leave a worker process."""
        return type(self), (str(self), self.arrays)


@dataclass(frozen=True)
class Heard(Generic[Source]):
    """The outcome of a round.

    Parameters
    ----------
    question : Question
        The question that was answered.
    model : dict of str to array or None
        The new model; None if it is the one from before the round.
    state : RunState
        The state after the round.
    report : dict
        What to report about the round.
    usual : list of Answer
        The accepted answers whose metrics can be aggregated.
    asked : int
        The number of clients that were asked.
    reasons : list of str or Exception
        Why replies were not used or did not come, one for each.
    no_step : str
        Why there is no new model, if there is none.
    answers : list of Answer
        The accepted answers.
    """

    question: Question
    model: Model | None
    state: RunState
    report: Report
    usual: list[Answer[Source]]
    asked: int
    reasons: list[str | Exception]
    no_step: str
    answers: list[Answer[Source]]


class Watch:
    """Observes each finished round of a run: logs, warns, and stops a run that fails.

    Parameters
    ----------
    max_failed_rounds : int or None
        The number of rounds in a row without a new model that end the run.
    few : tuple of int and str
        The cohort size at or below which a warning is due, and its words.
    roster : Roster
        The names of the nodes.
    is_resumed : bool
        Whether the run has had rounds that this does not see.
    """

    def __init__(
        self,
        max_failed_rounds: int | None,
        few: tuple[int, str],
        roster: Roster,
        *,
        is_resumed: bool,
    ) -> None:
        self._max_failed_rounds, self._few, self._roster = max_failed_rounds, few, roster
        self._is_resumed = self._has_new_model = is_resumed
        self._once = Once()
        self._failed = set[int]()  # rounds in a row
        self._of_dead_workers = set[int]()
        self._reasons = Counter[str]()
        self._first_scales = dict[_Block, float]()
        self._rounds_scaled = Counter[_Block]()
        self._rounds = set[int]()
        self._moved = set[Node]()
        self._rounds_still = Counter[Node]()
        self._rounds_seen = 0
        self._apart = dict[Node, tuple[int, int]]()  # the first round, and how many
        self._sent = np.zeros(4)  # bytes up and down, and with FedAvg

    def see(self, heard: Heard[Any], report: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Observe a round: log its line, warn once about each problem, stop a failing run.

        Parameters
        ----------
        heard : Heard
            The round.
        report : dict
            What is reported of it.
        own : dict
            The clients' own metrics, aggregated, for the log.

        Raises
        ------
        RunFailedError
            If there was no new model for `max_failed_rounds` rounds in a row, if as many lost most
            replies to a Ray worker that has died, or if all clients sent unusable plain weights
            before the model first changed.
        """
        question, asked, refused = heard.question, heard.asked, heard.reasons
        number = question.server_round
        LOGGER.info("aggregate_train: %s", describe_round(report, own))
        self._rounds.add(number)  # a subclass may train several times in a round
        reasons, total = _counts_of(refused), len(refused) + len(heard.answers)
        self._look_at_reasons(number, "replies", reasons, total, _REMEDIES)
        dead = [reason for reason in reasons.elements() if re.search(_DEAD_WORKER, reason)]
        if 2 * len(dead) <= total:
            self._of_dead_workers = set()
        else:
            self._of_dead_workers.add(number)
        if not heard.no_step:
            self._failed, self._reasons, self._has_new_model = set(), Counter(), True
            few, cost = self._few
            if (accepted := len(heard.answers)) <= few:
                clients = _counted(accepted, "client")
                self._once.warn("few", "replies of %s in a round: %s", clients, cost)
            self._look_at_scales(question.blocks, report.get("noise-scale", ()))
            self._look_at_updates(question, heard.answers)
            self._look_at_agreement(number, heard.answers, report.get("agreement-per-client", ()))
            if len(self._of_dead_workers) == self._max_failed_rounds:
                raise RunFailedError(
                    f"{self._max_failed_rounds} rounds in a row have lost most replies, the last "
                    f"{len(dead)} of {total}: {dead[0]}{_remedy_of(dead[0])}",
                    question.model if heard.model is None else heard.model,
                )
            return
        self._reasons += reasons
        plain = bool(refused) and all(isinstance(one, PlainWeightsError) for one in refused)
        # One client's plain weights say nothing about the others' app.
        plain = plain and not heard.answers and asked > 1
        self.fail(question, heard.no_step, at_once=plain and not self._has_new_model)

    def see_evaluation(
        self, server_round: int, refused: Sequence[str | Exception], accepted: int
    ) -> None:
        """Observe a round of evaluation: warn once about a reason that loses most of its replies.

        Parameters
        ----------
        server_round : int
            The round.
        refused : sequence of str or Exception
            Why replies were not used or did not come, one for each.
        accepted : int
            The number of the others.
        """
        reasons, total = _counts_of(refused), len(refused) + accepted
        what = "replies to evaluation"
        self._look_at_reasons(server_round, what, reasons, total, _REMEDIES_OF_EVALUATION)

    def see_steps_in_vain(self) -> None:
        """Warn once that no client could evaluate a model that it was sent as coded steps."""
        self._once.warn(
            "in vain",
            "no client that was sent coded steps has evaluated the model; if the apps list perturb "
            "for training alone, list it in ClientApp(mods=[perturb])",
        )

    def fail(self, question: Question, no_step: str, *, at_once: bool = False) -> None:
        """Count a round without a new model.

        Raises
        ------
        RunFailedError
            If it is the last of `max_failed_rounds` in a row, or `at_once`.
        """
        self._failed.add(question.server_round)
        if at_once or len(self._failed) == self._max_failed_rounds:
            raise RunFailedError(self._failure(no_step), question.model)

    def count(self, up: float, down: float, up_with_fedavg: float, down_with_fedavg: float) -> None:
        """Count the bytes of a round of training or evaluation.

        Parameters
        ----------
        up : float
            Bytes of all replies.
        down : float
            Bytes of all messages to the clients.
        up_with_fedavg, down_with_fedavg : float
            The same for FedAvg.
        """
        self._sent += up, down, up_with_fedavg, down_with_fedavg

    def say_totals(self) -> None:
        """Log the bytes of this process's rounds, next to those of FedAvg."""
        up, down, up_with_fedavg, down_with_fedavg = self._sent.tolist()
        if up:
            LOGGER.info(
                "arrays sent in %s, without Flower's headers: %s up and %s down; FedAvg would "
                "send about %s up, %.1f times as much, and %s down, %.1f times as much",
                *(_counted(len(self._rounds), "round"), _in_units(up), _in_units(down)),
                *(_in_units(up_with_fedavg), up_with_fedavg / up),
                *(_in_units(down_with_fedavg), down_with_fedavg / max(down, 1)),
            )

    def _failure(self, no_step: str) -> str:
        first, last = min(self._failed), max(self._failed)
        rounds = f"round {first}" if first == last else f"rounds {first} to {last}"
        if not self._reasons:
            return f"{rounds} made no new model: {no_step}"
        (reason, count), total = _alike(self._reasons).most_common(1)[0], self._reasons.total()
        return (
            f"{rounds} made no new model; the most common reason, {count} of {total} replies: "
            f"{reason}{_remedy_of(reason)}"
        )

    def _look_at_reasons(
        self, number: int, what: str, reasons: Counter[str], total: int, remedies: Remedies
    ) -> None:
        for reason, count in _alike(reasons).items():
            if 2 * count > total:
                self._once.warn(
                    # The prefix keeps a client's text apart from other keys.
                    f"reason: {_NUMBER.sub('…', reason)}",
                    f"round %d: %d of %d {what} are lost for one reason: %s%s",
                    # The log truncates long words, so the remedy is a separate one.
                    *(number, count, total, reason, _remedy_of(reason, remedies)),
                )

    def _look_at_scales(self, blocks: Blocks, scales: Sequence[float]) -> None:
        growth = {}
        sized = zip(blocks.names, blocks.sizes, strict=True)  # an array that has grown is new
        for block, scale in zip(sized, scales, strict=False):
            self._rounds_scaled[block] += scale > 0
            first = self._first_scales.get(block, 0.0)
            if self._rounds_scaled[block] <= _FIRST_ROUNDS:
                self._first_scales[block] = first = max(first, scale)
            growth[block] = scale / (first or 1.0)
        most = max(growth, key=growth.__getitem__, default=None)
        if most is not None and growth[most] >= RUNAWAY:
            self._once.warn(
                "scales",
                "the noise scale of %s has grown to %s times that of its first rounds: clients' "
                "updates do not shrink there, for example because clients keep a local array but "
                "also send it, or because the noise of few clients is longer than their updates; "
                "do not send such arrays, train less per round, or use less noise",
                *(_name_of_block(most[0]), f"{growth[most]:.0f}"),
            )

    def _look_at_updates(self, question: Question, answers: Sequence[Answer[Any]]) -> None:
        moved = _who_has_moved(answers, question)
        # Earlier updates of a resumed run are unknown.
        if moved is None or self._is_resumed:
            return
        self._moved |= moved
        self._rounds_still.update({answer.node for answer in answers} - moved)
        self._rounds_seen += 1
        still = [answer.node for answer in answers if answer.node not in self._moved]
        if moved:
            still = [node for node in still if self._rounds_still[node] >= STILL_ROUNDS]
        # A finished model comes back unchanged too, but only after some client has moved it.
        elif self._moved or self._rounds_seen < STILL_ROUNDS:
            return
        if still:
            slots = ", ".join(["%s"] * len(still))
            self._once.warn(
                "still",
                f"%d of %d clients ({slots}) have returned the model unchanged in all rounds so "
                "far, as if they did not train: check that their app trains the model that it "
                "receives and returns the weights from after training",
                *(len(still), len(answers), *map(self._roster.name, still)),
            )

    def _look_at_agreement(
        self, number: int, answers: Sequence[Answer[Any]], counts: Sequence[float]
    ) -> None:
        if len(counts) < _ENOUGH_TO_AGREE:
            return
        for answer, count in zip(answers, counts, strict=False):
            since, rounds = self._apart.pop(answer.node, (number, 0))
            if count >= APART:
                continue
            self._apart[answer.node] = since, rounds + 1
            if rounds + 1 == APART_ROUNDS:
                self._once.warn(
                    f"apart: {answer.node}",
                    "few others have agreed with %s since round %d, "
                    "so it counts for little: it may be hostile, or hold data that others do not; "
                    "look into it; without Agreement it would count like the others",
                    *(self._roster.name(answer.node), since),
                )


def describe_round(metrics: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Return a round's log line: replies, ε, signal to noise, margin, bytes, clients' metrics."""
    accepted = _counted(metrics["replies-accepted"], "reply", "replies")
    replies = f"accepted {accepted}, dropped {metrics['replies-rejected']}"
    if missing := metrics["replies-missing"]:
        replies += f", missing {missing}"
    quality = [
        f"{name} {metrics[key]:.3g}"
        for key, name in (("signal-to-noise", "signal to noise"), ("margin", "margin"))
        if key in metrics
    ]
    size = [
        f"{metrics[key]:,.0f} bytes {name}"
        for key, name in (("uplink-bytes", "up"), ("downlink-bytes", "down"))
        if key in metrics
    ]
    spent = f"epsilon {metrics['epsilon']:.3g}" if "epsilon" in metrics else ""
    sent = " and ".join(size) + " per client" if size else ""
    # Labeled, because clients name their metrics as they like.
    said = f"clients report {described}" if (described := describe_metrics(own)) else ""
    return "; ".join(filter(None, [replies, spent, ", ".join(quality), sent, said]))


def describe_metrics(metrics: Mapping[str, Any]) -> str:
    """Return metrics as part of a log line: the first few single numbers."""
    numbers = islice(single_numbers(metrics).items(), _MOST_METRICS)
    text = ", ".join(f"{name} {x:.4g}" for name, x in numbers)
    return as_line(text) if text else ""


def single_numbers(metrics: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the metrics that are single numbers, by name, as they are shown.

    The user's own evaluation may return NumPy's numbers, and names that are not strings.
    """
    kinds = int | float | np.integer | np.floating
    return {str(name): value for name, value in metrics.items() if isinstance(value, kinds)}


def _name_of_block(names: tuple[str, ...]) -> str:
    first, *others = names
    if first.startswith(UNNAMED):
        return first.removeprefix(UNNAMED)
    if not others:
        return f"array {first!r}"
    more = f" and {len(others) - 2} more" if len(others) > 2 else ""
    return f"arrays {', '.join(map(repr, [first, *others[:2]]))}{more}"


def _who_has_moved(answers: Sequence[Answer[Any]], question: Question) -> set[Node] | None:
    """Return the clients whose update is not zero; None if that is not visible."""
    instruction, moved = question.instruction, set[Node]()
    if type(instruction.find(Measure)) is Measure:  # and not votes, which may be masked
        moved = {answer.node for answer in answers if answer.magnitudes.any()}
    elif isinstance(instruction.encoding, Vector) and instruction.find(AddNoise) is None:
        bodies = {answer.node: answer.payload.body for answer in answers}
        # The first entries nearly always do.
        moved = {node for node, body in bodies.items() if body[:_START].any() or body.any()}
    else:
        return None
    # An array that is not finite is never moved.
    can_move = bool(moved) or any(
        is_finite(question.model[spec.name]) for spec in question.layout.flat
    )
    return moved if can_move and question.blocks.dim else None


def _counted(number: int, thing: str, things: str = "") -> str:
    return f"{number} {thing if number == 1 else things or f'{thing}s'}"


def _in_units(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _counts_of(reasons: Sequence[str | Exception]) -> Counter[str]:
    return Counter(without_addresses(as_line(reason)) for reason in reasons)


def _alike(reasons: Counter[str]) -> Counter[str]:
    """Return reasons; those that differ only in numbers are one, with … for these numbers.

    A client's own number, or that of a round, must not hide that all fail in the same way.
    """
    forms: dict[tuple[str, ...], list[str]] = {}
    for reason in reasons:
        forms.setdefault(tuple(_NUMBER.split(reason)), []).append(reason)
    alike = Counter[str]()
    for form, members in forms.items():
        places = zip(*map(_NUMBER.findall, members), strict=True)
        numbers = (at[0] if len({*at}) == 1 else "…" for at in places)
        text = "".join(chain.from_iterable(zip_longest(form, numbers, fillvalue="")))
        alike[text] += sum(reasons[reason] for reason in members)
    return alike


def _remedy_of(reason: str, remedies: Remedies = _REMEDIES) -> str:
    """Return the remedy in parentheses, or nothing if none is known."""
    found = (f" ({remedy})" for pattern, remedy in remedies if re.search(pattern, reason))
    return next(found, "")
