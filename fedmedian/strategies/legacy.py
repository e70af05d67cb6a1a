"""The strategies for Flower's older API, `flwr.server.strategy.Strategy`.

They are `fedmedian.strategies.SignSGD` and `MedianSGD` for a ``ServerApp(server_fn=…)`` and
NumPyClients. Arrays have no names there: wherever names are asked for or reported, an array's is
its position, "0", "1", and so on.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from statistics import fmean
from typing import Any, NoReturn, TypeVar

from flwr.common import (
    Code,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    MetricsAggregationFn,
    Parameters,
    Scalar,
)
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.strategy.aggregate import weighted_loss_avg
from numpy.typing import NDArray

from fedmedian.aggregators.diagnostics import without_lists
from fedmedian.logs import LOGGER, Once, failure_of, shown, warn
from fedmedian.model.layout import forms_of
from fedmedian.records import arrays_to_parameters, parameters_to_arrays
from fedmedian.rounds.downlink import Content, Held
from fedmedian.rounds.ledger import Ledger
from fedmedian.rounds.metrics import (
    LARGEST,
    fair_examples,
    is_averageable,
    is_number,
    require_examples,
    try_to_aggregate,
)
from fedmedian.rounds.options import RunOptions
from fedmedian.rounds.protocol import RoundProtocol, paused_collector
from fedmedian.rounds.recipe import Question, Recipe
from fedmedian.rounds.screening import Answer, Node, Reply, Said, all_or_none
from fedmedian.steps.downlink import HELD, are_steps, has_steps, target_of, without_steps
from fedmedian.steps.instruction import Instruction
from fedmedian.steps.payload import MOST_ARRAYS, Payload, as_version
from fedmedian.strategies.arguments import MedianArguments, ShowsArguments, SignArguments, usual_of
from fedmedian.strategies.log import log_last_evaluation, shorten_older_run
from fedmedian.strategies.options import FlowerOptions, LegacyFedAvgOptions, require_fedavg_options
from fedmedian.strategies.overrides import noting, wrap_override
from fedmedian.strategies.wrappers import require_no_unfit_wrapper
from fedmedian.wire.scalars import PREFIX, WireError, refuse_our_keys

__all__ = ["MedianSGD", "SignSGD"]


Trained = tuple[ClientProxy, FitRes]
Evaluated = tuple[ClientProxy, EvaluateRes]
Result = TypeVar("Result", FitRes, EvaluateRes)
Ins = TypeVar("Ins", bound=FitIns | EvaluateIns)

_BY_SERVER = "evaluate-fn"
"""The phase of a checkpoint that holds what `evaluate_fn` returned; the Message API has another."""


class LegacyStrategy(ShowsArguments, FedAvg):
    """A strategy of the older API whose clients perturb their updates as the server instructs them.

    It samples clients and aggregates metrics as FedAvg does. Each result is screened on its own. A
    result that cannot be used is counted, logged with the reason, and dropped.

    Parameters
    ----------
    recipe : Recipe
        What a run's model depends on.
    options : RunOptions
        The arguments that may change when a run resumes.
    fedavg : dict
        The arguments of `flwr.server.strategy.FedAvg`.

    Attributes
    ----------
    recipe : Recipe
        See above.
    options : RunOptions
        See above.
    metrics_per_block : dict of int to dict
        Each round's values per block, as lists by name. They are not in Flower's History, because
        Flower prints all of it at the end of a run. Of a round without a usable reply it has all
        metrics: `aggregate_fit` returns none, as FedAvg's.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let the strategy see what a subclass sends."""
        super().__init_subclass__(**kwargs)
        for name, around in (
            ("configure_fit", noting(LegacyStrategy.__note_own_training)),
            ("configure_evaluate", noting(LegacyStrategy.__note_own_evaluation)),
        ):
            wrap_override(cls, LegacyStrategy, name, around)

    def _fedmedian_build(self, recipe: Recipe, options: RunOptions, flower: FlowerOptions) -> None:
        if recipe.secure is not None:
            raise ValueError(
                f"secure must be None in the older API, got {recipe.secure!r}: its clients cannot "
                "be asked anything during a round; fedmedian.strategies.SignSGD has secure sums"
            )
        require_fedavg_options(type(self), flower, LegacyFedAvgOptions.__optional_keys__)
        fedavg: dict[str, Any] = dict(flower)
        FedAvg.__init__(self, **fedavg)
        self._fedmedian_usual = usual_of(FedAvg(), LegacyFedAvgOptions)
        vars(self).update(recipe=recipe, options=options)  # also if it is built again
        self.__protocol = RoundProtocol(
            recipe,
            options,
            *(() if self.accept_failures else (all_or_none,)),
            ledger=Ledger.of_strategy(recipe, options, self.fraction_fit, self.fraction_evaluate),
        )
        self.__asked: list[Node] = []
        self.__heard: list[Question] = []  # of the round
        self.__asked_to_evaluate: list[Node] = []
        self.__size = self.__whole_size = 0.0
        self.__evaluations: dict[str, tuple[int, Mapping[str, Any]]] = {}
        self.__once = Once()
        self.metrics_per_block: dict[int, dict[str, list[float]]] = {}

    @property
    def _fedmedian_question(self) -> Question | None:
        return self.__protocol.last_question

    @property
    def start(self) -> NoReturn:
        """Not available: it belongs to strategies of Flower's Message API."""
        name = type(self).__name__
        raise AttributeError(
            f"{name} is a strategy of Flower's older API, which is run by ServerApp(server_fn=…) "
            f"with ServerAppComponents(strategy={name}(…)); for start use a "
            "strategy of fedmedian.strategies"
        )

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters | None:
        """Return the model to begin with, or to resume with from a checkpoint.

        This API does not report the end of a run, so the run keeps the checkpoint's folder until
        its process ends or its thread starts another run.

        Raises
        ------
        ValueError, RuntimeError, OSError
            As `fedmedian.strategies.SignSGD.start`; also if it is in one of Flower's wrappers or
            workflows that it does not work with.
        """
        require_no_unfit_wrapper(self)
        self.metrics_per_block, self.__evaluations, self.__once = {}, {}, Once()
        parameters = super().initialize_parameters(client_manager)
        self.__protocol.open(None if parameters is None else parameters_to_arrays(parameters))
        shorten_older_run(self.__protocol.journal.done, self.__log_results)
        self.__protocol.affordable(1)
        if (line := self.__protocol.describe_privacy(self.privacy)) is not None:
            LOGGER.info(line)
        model = self.__protocol.journal.model
        return parameters if model is None else arrays_to_parameters(model)

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Configure a round of training: FedAvg's with an instruction in each config.

        Raises
        ------
        ValueError
            If it is in one of Flower's wrappers or workflows that it does not work with, the
            initial model has no arrays, or `on_fit_config_fn` returns keys of ours.
        """
        require_no_unfit_wrapper(self)
        if not parameters.tensors:
            raise ValueError(
                "the initial model must hold at least one array, got none: set "
                "initial_parameters, or let the clients' get_parameters return them"
            )
        question = self.__protocol.ask(server_round, parameters_to_arrays(parameters))
        if question is None:
            return []
        self.__log_waiting(client_manager)
        before = max(client_manager.num_available(), self.min_available_clients)
        with self.__protocol.sampling(server_round):
            asked = super().configure_fit(server_round, parameters, client_manager)
        refuse_our_keys("on_fit_config_fn", {key for _, ins in asked for key in ins.config})
        # Clients come and go, and the budget must not count one that was not there.
        present = max(len(asked), min(before, client_manager.num_available()))
        drawn = [client.cid for client, _ in asked]
        # Whether those drawn before were sent the question is not known here.
        if not self.__protocol.may_ask(question, drawn, present, sent=drawn):
            asked = []
        # This API does not report the end of a run, so this many rounds without clients end it.
        if not asked and self.__protocol.pass_over() == self.options.max_failed_rounds:
            self.__protocol.require_clients(
                f"fraction_fit={self.fraction_fit} and min_fit_clients={self.min_fit_clients}",
                trains=self.fraction_fit > 0 or self.min_fit_clients > 0,
            )
        self.__protocol.log_whole_models(question.state.held, drawn if asked else [])
        parameters_of = cache(_parameters_of)
        sent = [
            (client, _addressed(ins, question, client.cid, parameters_of)) for client, ins in asked
        ]
        self.__whole_size = _mean_size([parameters])
        self.__note_training(sent)
        return sent

    def __note_own_training(self, called_for: Any, sent: list[tuple[ClientProxy, FitIns]]) -> None:
        """Remember what a subclass sends, and make it such that clients can answer.

        Raises
        ------
        ValueError
            If FitIns hold fewer or more arrays than their question is about, and some of these.
        """
        keys = [Instruction.key_in(ins.config) for _, ins in sent]
        open_ones = (one for number, _ in {*keys} for one in self.__protocol.questions_of(number))
        questions = {one.key: one for one in open_ones}
        abouts = [questions.get(key) for key in keys]
        self.__protocol.note_calls(called_for, abouts)
        sent[:] = self.__readdressed(sent, [one.state.held if one else None for one in abouts])
        made: dict[tuple[int, int], Parameters] = {}
        for index, ((client, ins), about) in enumerate(zip([*sent], abouts, strict=True)):
            if about is None or has_steps(ins.config):
                continue
            if (key := (id(ins.parameters), id(about))) not in made:
                made[key] = _as_asked(ins.parameters, about)
            sent[index] = client, replace(ins, parameters=made[key])
        self.__note_training(sent)

    def __readdressed(
        self, sent: Sequence[tuple[ClientProxy, Ins]], helds: Sequence[Held | None]
    ) -> list[tuple[ClientProxy, Ins]]:
        """Return what a subclass sends, but coded steps that each client can take.

        They may be for another client. If a subclass sends its own model, no steps lead there, and
        the client is sent none.
        """
        nodes = [client.cid for client, _ in sent]
        contents = self.__protocol.contents_for([*zip(nodes, helds, strict=True)])
        parameters_of, wanted = cache(_parameters_of), zip(sent, helds, contents, strict=True)
        return [
            (client, _with_steps(ins, held, content, parameters_of))
            for (client, ins), held, content in wanted
        ]

    def __note_training(self, sent: Sequence[tuple[ClientProxy, FitIns]]) -> None:
        self.__asked = [client.cid for client, _ in sent]
        self.__size = _mean_size([ins.parameters for _, ins in sent])

    @paused_collector()
    def aggregate_fit(
        self, server_round: int, results: list[Trained], failures: list[Trained | BaseException]
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Aggregate the usable results into a new model, and report on the round.

        Raises
        ------
        RunFailedError
            As for `fedmedian.strategies.SignSGD.start`.
        RuntimeError
            If this round was not configured, or a later one already was.
        """
        told = self.__protocol.asked_as.get(server_round, server_round)
        questions = self.__protocol.questions_of(told)
        if not questions:
            raise self.__protocol.not_asked(server_round, "results", "configure_fit")
        replies, reasons = _by_client("aggregate_train", results, failures)
        question = self.__question_of(questions, results)
        if question is None:
            warn(
                "round %d keeps the model as it is: as many results are about one of its models "
                "as about another",
                server_round,
            )
            return None, {}
        self.__heard = [question, *(one for one in self.__heard if one in questions)]
        asked = _sent(self.__asked, replies, reasons)
        read = partial(_read, question, must_name_question=len(questions) > 1)
        heard = self.__protocol.hear(question, asked, replies, read, reasons)
        sizes = self.__count(asked, [result.parameters for _, result in results])
        own = self.__aggregate("fit_metrics_aggregation_fn", heard.usual)
        metrics = self.__protocol.end(heard, sizes, own)
        metrics, lists = without_lists(metrics)
        if metrics["replies-accepted"]:
            self.metrics_per_block[server_round] = lists
        else:  # a subclass looks for clients' metrics if it finds any; it may report another model
            self.metrics_per_block.setdefault(server_round, metrics)
            metrics = {}
        return None if heard.model is None else arrays_to_parameters(heard.model), metrics

    def __question_of(
        self, questions: Sequence[Question], results: Sequence[Trained]
    ) -> Question | None:
        """Return the question that most results name, or None at a tie.

        If they name none, as where all clients of a model fail, it is the first one not yet heard.
        """
        answers = [result.metrics for _, result in results if Payload.is_in(result.metrics)]
        claims = Counter(map(Payload.question_in, answers))
        counts = [claims[question.instruction.question] for question in questions]
        if not any(counts):
            return next((one for one in questions if one not in self.__heard), questions[0])
        is_tied = counts.count(max(counts)) > 1
        return None if is_tied else questions[counts.index(max(counts))]

    def evaluate(
        self, server_round: int, parameters: Parameters
    ) -> tuple[float, dict[str, Scalar]] | None:
        """Evaluate the model as FedAvg does; what a stored round had is in the checkpoint."""
        journal = self.__protocol.journal
        if server_round < journal.done:
            stored = journal.recall(_BY_SERVER, server_round)
            if stored is None:
                return None
            # Flower annotates str but takes any name; JSON has lists for tuples.
            metrics: dict[Any, Any] = {
                tuple(name) if isinstance(name, list) else name: value
                for name, value in stored["metrics"]
            }
            return stored["loss"], metrics
        found = super().evaluate(server_round, parameters)
        if found is not None:
            loss, metrics = found
            self.__evaluations["the server"] = server_round, {"loss": loss, **metrics}
            # JSON would turn names that are numbers into text.
            journal.note(_BY_SERVER, server_round, {"loss": loss, "metrics": [*metrics.items()]})
        return found

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """Configure a round of evaluation as FedAvg does."""
        if server_round < self.__protocol.journal.done:
            return []
        with self.__protocol.sampling(server_round, evaluates=True):
            asked = [*super().configure_evaluate(server_round, parameters, client_manager)]
        refuse_our_keys("on_evaluate_config_fn", {key for _, ins in asked for key in ins.config})
        held = self.__protocol.held_to_evaluate(parameters_to_arrays(parameters)) if asked else None
        if held is not None:
            self.__protocol.log_whole_models(held, [client.cid for client, _ in asked])
            parameters_of = cache(_parameters_of)
            for index, (client, ins) in enumerate(asked):
                own = self.__protocol.content_for(held, client.cid)
                config = {**ins.config, **own.scalars}
                asked[index] = client, EvaluateIns(parameters_of(own), config)
        self.__note_evaluation(asked)
        return asked

    def __note_own_evaluation(
        self, called_for: Any, sent: list[tuple[ClientProxy, EvaluateIns]]
    ) -> None:
        targets = [target_of(ins.config) for _, ins in sent]
        sent[:] = self.__readdressed(sent, [*map(self.__protocol.held, targets)])
        self.__note_evaluation(sent)

    def __note_evaluation(self, sent: Sequence[tuple[ClientProxy, EvaluateIns]]) -> None:
        self.__asked_to_evaluate = [client.cid for client, _ in sent]
        self.__size = _mean_size([ins.parameters for _, ins in sent])

    def aggregate_evaluate(
        self, server_round: int, results: list[Evaluated], failures: list[Evaluated | BaseException]
    ) -> tuple[float | None, dict[str, Scalar]]:
        """Aggregate the usable results' losses and metrics as FedAvg does."""
        replies, reasons = _by_client("aggregate_evaluate", results, failures)
        asked = _sent(self.__asked_to_evaluate, replies, reasons)
        sizes = self.__count(asked, [])  # replies to evaluation hold no arrays in this API
        heard, usual, report = self.__protocol.hear_evaluation(
            server_round, asked, replies, _read_evaluation, sizes, reasons
        )
        if not heard:
            self.__protocol.end_evaluation(report, {})
            return None, {}
        # Flower annotates int but takes any number.
        losses: list[Any] = [
            (count, reply.source.loss) for count, reply in zip(_examples(heard), heard, strict=True)
        ]
        loss = weighted_loss_avg(losses)
        metrics = self.__aggregate("evaluate_metrics_aggregation_fn", usual)
        self.__evaluations["clients"] = server_round, {"loss": loss, **metrics}
        self.__protocol.end_evaluation(report, {"loss": loss, **metrics})
        return loss, metrics

    def __count(self, asked: Sequence[Node], answers: Sequence[Parameters]) -> dict[str, float]:
        """Count a round's bytes, and return the mean sizes of its messages for the report."""
        up, down, whole = _mean_size(answers), self.__size, self.__whole_size
        sent, received = len(answers), len(asked)
        self.__protocol.watch.count(sent * up, received * down, sent * whole, received * whole)
        sizes = {"uplink-bytes": up} if answers else {}
        return {**sizes, "downlink-bytes": down} if asked else sizes

    def __log_results(self) -> None:
        for who, (server_round, metrics) in self.__evaluations.items():
            log_last_evaluation(who, server_round, metrics)
        self.__protocol.watch.say_totals()

    def __log_waiting(self, client_manager: ClientManager) -> None:
        # Flower's older server does not log that it waits.
        connected, wanted = client_manager.num_available(), self.min_available_clients
        if connected < wanted:
            LOGGER.info(
                "Waiting for clients to connect: %d connected (minimum required: %d).",
                connected,
                wanted,
            )

    def __aggregate(self, name: str, replies: Sequence[Reply[Result]]) -> dict[str, Scalar]:
        function: MetricsAggregationFn | None = getattr(self, name)
        if function is None:
            if any(reply.metrics for reply in replies):
                self.__once.warn(
                    name,
                    "the strategy does not report clients' metrics: pass it %s=…, a function that "
                    "averages them",
                    name,
                )
            return {}
        if not replies:
            return {}
        own: list[Any] = [
            (count, dict(reply.metrics))
            for count, reply in zip(_examples(replies), replies, strict=True)
        ]
        return try_to_aggregate(name, lambda: dict(function(own) or {})) or {}


class SignSGD(SignArguments, LegacyStrategy):
    """`fedmedian.strategies.SignSGD` for the older API.

    Clients need `fedmedian.clients.perturb`, or are `fedmedian.clients.SignClient`.

    Parameters
    ----------
    noise, aggregator, learning_rate, weighted, optimizer, client_steps, rotation, scale_from
        As for `fedmedian.strategies.SignSGD`.
    downlink, cohort_rules, diagnostics, min_replies, max_failed_rounds, threads, seed
        As for `fedmedian.strategies.SignSGD`.
    secure : None
        This API has no secure sums, since its clients cannot be asked anything during a round.
    exact : sequence of str
        As there; the patterns match positions, ``exact=["2", "3"]`` for the running statistics of
        a model whose third and fourth array they are.
    checkpoint : Checkpoint, optional
        As there; but Flower's History lacks the clients' metrics of stored rounds, and rounds
        after the last `every`-th are not stored.
    privacy_budget : PrivacyBudget, optional
        As there; but Flower continues to the last round, and rounds that would exceed the budget
        ask no client to train.
    **flower
        The arguments of `flwr.server.strategy.FedAvg` but for `inplace`.

    Raises
    ------
    TypeError, ValueError
        As `fedmedian.strategies.SignSGD`.

    Notes
    -----
    ``uplink-bytes`` and ``downlink-bytes`` count arrays, without Flower's headers.

    Examples
    --------
    >>> strategy = SignSGD(fraction_fit=0.5)
    """


class MedianSGD(MedianArguments, LegacyStrategy):
    """`fedmedian.strategies.MedianSGD` for the older API.

    Unmodified clients work with ``noise_at="server"``, with ``aggregator=SmoothedMedian()``, or
    without noise. Otherwise they need `fedmedian.clients.perturb`, or are
    `fedmedian.clients.GradientClient`.

    Parameters
    ----------
    noise, aggregator, learning_rate, noise_at
        As for `fedmedian.strategies.MedianSGD`.
    optimizer, client_steps, rotation, scale_from, exact, downlink, cohort_rules
        As for `SignSGD`.
    diagnostics, min_replies, max_failed_rounds, checkpoint, privacy_budget, threads, seed
        As for `SignSGD`.
    **flower
        As for `SignSGD`.

    Raises
    ------
    TypeError, ValueError
        As `fedmedian.strategies.MedianSGD`.

    Examples
    --------
    >>> strategy = MedianSGD(noise_at="server", fraction_fit=0.5)
    """


def _by_client(
    phase: str,
    results: Sequence[tuple[ClientProxy, Result]],
    failures: Sequence[tuple[ClientProxy, Result] | BaseException],
) -> tuple[list[tuple[Node, Result]], list[str]]:
    """Return all results with the ids of their clients, and the reasons of failures."""
    answered, reasons = list(results), []
    for failure in failures:
        if isinstance(failure, BaseException):
            # Flower does not say whose failure it is; the client is among the missing.
            reasons.append(f"a client failed: {type(failure).__name__}: {failure_of(failure)}")
        else:
            answered.append(failure)
    for reason, count in Counter(reasons).items():
        times = "" if count == 1 else f" ({count} clients)"
        warn(f"%s: %s{times}", phase, reason)
    return [(client.cid, result) for client, result in answered], reasons


def _parameters_of(content: Content) -> Parameters:
    return arrays_to_parameters(content.arrays)


def _arrays_in(parameters: Parameters) -> list[NDArray[Any]]:
    """Return the arrays in parameters; none if they are in a subclass's own format."""
    try:
        return [*parameters_to_arrays(parameters).values()]
    except WireError:
        return []


def _as_asked(parameters: Parameters, question: Question) -> Parameters:
    """Return parameters with the dtypes in which clients are to be sent them.

    Those that are none of the question's stay as they are, as where a subclass compresses the
    model.

    Raises
    ------
    ValueError
        If they are only some of the question's, or more: clients cannot answer it with them.
    """
    arrays, names = _arrays_in(parameters), [*question.model]
    if len(arrays) == len(names):
        named = dict(zip(names, arrays, strict=True))
        recast = question.layout.recast(named)
        return parameters if recast is named else arrays_to_parameters(recast)
    forms = {(array.shape, array.dtype) for array in arrays}
    if forms.isdisjoint(forms_of(question.model).values()):
        return parameters
    raise ValueError(
        f"FitIns must hold the {len(names)} arrays that configure_fit was given, got "
        f"{len(arrays)}: to train a part of the model, pass it to super().configure_fit"
    )


def _with_steps(
    ins: Ins,
    held: Held | None,
    wanted: Content | None,
    parameters_of: Callable[[Content], Parameters],
) -> Ins:
    """Return FitIns or EvaluateIns with the steps that are wanted in place of any, or without."""
    if held is None or wanted is None or not has_steps(ins.config):
        return ins
    arrays, told = _arrays_in(ins.parameters), without_steps(ins.config)
    if [one.shape for one in arrays] == [one.shape for one in held.model.values()]:
        return replace(ins, config=told)
    told |= wanted.scalars
    if told == ins.config or not are_steps(arrays):
        return ins
    return replace(ins, parameters=parameters_of(wanted), config=told)


def _addressed(
    ins: FitIns, question: Question, client: Node, parameters_of: Callable[[Content], Parameters]
) -> FitIns:
    """Return what a client is sent: its content and its instruction."""
    content, parameters = question.content_for(client), ins.parameters
    if content.arrays is not question.model:
        parameters = parameters_of(content)
    config = {**ins.config, **question.instruction.encode(), **content.scalars}
    return FitIns(parameters, config)


def _sent(
    asked: Sequence[Node], replies: Sequence[tuple[Node, Any]], failures: Sequence[str]
) -> list[Node]:
    """Return the clients that were asked: those that a subclass chose, not those drawn.

    Flower returns a result or a failure for each, but does not say which client failed.
    """
    heard = dict.fromkeys(client for client, _ in replies)
    silent = [client for client in asked if client not in heard]
    if len(silent) != len(failures):
        silent = [f"unknown, {number} of {len(failures)}" for number in range(1, len(failures) + 1)]
    return [*heard, *silent]


def _examples(replies: Sequence[Reply[Result]]) -> list[float]:
    """Return the numbers of examples by which the clients' metrics are averaged."""
    return fair_examples([reply.source.num_examples for reply in replies])


def _mean_size(sent: Sequence[Parameters]) -> float:
    different = {id(parameters): parameters for parameters in sent}  # most clients share one
    sizes = {key: sum(map(len, one.tensors)) for key, one in different.items()}
    return fmean([sizes[id(parameters)] for parameters in sent] or [0])


def _read(
    question: Question, client: Node, result: FitRes, *, must_name_question: bool
) -> Answer[FitRes]:
    num_examples, own = _open(result)
    scalars = result.metrics if Payload.is_in(result.metrics) else None
    if scalars is None and must_name_question:
        raise WireError(
            "sent plain weights, which do not say which of the round's models was trained: does "
            "its ClientApp have mods=[perturb]?"
        )
    most_arrays = max(len(question.layout.specs), MOST_ARRAYS)
    arrays = parameters_to_arrays(result.parameters, most_arrays)
    return question.answer(client, Said(arrays, scalars, num_examples, own, result))


def _read_evaluation(node: Node, result: EvaluateRes) -> Reply[EvaluateRes]:
    num_examples, own = _open(result)
    if not is_number(result.loss) or not is_averageable(result.loss):
        raise WireError(f"loss must be a number, at most {LARGEST:g}, got {shown(result.loss)}")
    return Reply(node, num_examples, own, result, held=as_version(result.metrics.get(HELD)))


def _open(result: FitRes | EvaluateRes) -> tuple[float, dict[str, Scalar]]:
    """Return a client's weight and its own metrics."""
    if result.status.code != Code.OK:
        raise WireError(f"client failed: {shown(result.status.message)}")
    own = {key: value for key, value in result.metrics.items() if not key.startswith(PREFIX)}
    return require_examples("num_examples", result.num_examples), own
