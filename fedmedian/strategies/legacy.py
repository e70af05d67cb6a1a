"""The strategies for Flower's older API, `flwr.server.strategy.Strategy`.

They are `fedmedian.strategies.SignSGD` and `MedianSGD` for a ``ServerApp(server_fn=…)`` and
NumPyClients. Arrays have no names there: wherever names are asked for or reported, an array's is
its position, "0", "1", and so on.
"""

from collections.abc import Callable, Sequence
from functools import partial
from logging import WARNING
from math import isfinite
from typing import Any, TypeVar, Unpack

from flwr.common import (
    Code,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    Parameters,
    Scalar,
    ndarrays_to_parameters,
)
from flwr.common.logger import log
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg

from fedmedian.aggregation import Decode, Ties
from fedmedian.layout import Arrays
from fedmedian.noise import Noise
from fedmedian.randomness import seeded_sampling
from fedmedian.schedules import Schedule
from fedmedian.strategies import median, sign
from fedmedian.strategies.core import Answer, Core
from fedmedian.strategies.journal import Journal
from fedmedian.strategies.median import Estimator, MedianCore, NoiseAt
from fedmedian.strategies.options import (
    LegacyFedAvgOptions,
    LegacyOptions,
    Settings,
    split_options,
)
from fedmedian.strategies.screening import (
    Roster,
    Screened,
    Usable,
    require_examples,
    with_usual_metrics,
)
from fedmedian.strategies.sign import SignCore
from fedmedian.wire import PREFIX, Payload, WireError, read_npy

__all__ = ["MedianSGD", "SignSGD"]

Trained = tuple[ClientProxy, FitRes]
Evaluated = tuple[ClientProxy, EvaluateRes]
Result = TypeVar("Result", FitRes, EvaluateRes)


class LegacyStrategy(FedAvg):
    """A strategy of the older API whose clients perturb their updates as the server tells them.

    It samples clients and aggregates metrics as FedAvg does. Each result is screened on its
    own: one that cannot be used is counted, logged with the reason and dropped.

    Parameters
    ----------
    make_core : callable
        Returns what turns the clients' answers into a model, given the settings.
    options : dict
        See `SignSGD`.

    Attributes
    ----------
    core : Core
        What `make_core` returned.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.
    """

    def __init__(self, make_core: Callable[[Settings], Core], options: LegacyOptions) -> None:
        settings, fedavg = split_options(options, LegacyFedAvgOptions.__optional_keys__)
        super().__init__(**fedavg)
        self.core = make_core(settings)
        self._roster = Roster()
        self._journal = Journal(settings.checkpoint)
        self._asked: list[str] = []
        self._asked_to_evaluate: list[str] = []

    def __repr__(self) -> str:
        return f"{type(self).__name__}(noise={self.core.noise}, {self.core.settings})"

    @property
    def averaged_parameters(self) -> Parameters | None:
        """The exponential average of the model so far; None without `average` or a round."""
        return None if self.core.average is None else _to_parameters(self.core.average)

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters | None:
        """Return the model to begin with, or to go on with from a checkpoint."""
        parameters = super().initialize_parameters(client_manager)
        self._journal.open(self.core, None if parameters is None else _to_model(parameters))
        return parameters if self._journal.model is None else _to_parameters(self._journal.model)

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Configure a round of training: FedAvg's with an instruction in each config."""
        if server_round <= self._journal.done:
            return []
        told = self.core.begin(server_round, _to_model(parameters)).encode()
        with seeded_sampling(self.core.settings.seed, server_round):
            asked = super().configure_fit(server_round, parameters, client_manager)
        self._asked = [client.cid for client, _ in asked]
        return [(client, FitIns(ins.parameters, {**ins.config, **told})) for client, ins in asked]

    def aggregate_fit(
        self,
        server_round: int,
        results: list[Trained],
        failures: list[Trained | BaseException],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Aggregate the usable results into a new model, and report on the round."""
        screened = self._screen("aggregate_fit", self._asked, results, failures, self._read_result)
        answers = self._accept(screened, failures)
        model, report = self.core.finish(answers)
        metrics: dict[str, Any] = {**screened.counts, **report}
        if results:
            sizes = [sum(map(len, result.parameters.tensors)) for _, result in results]
            metrics["uplink-bytes"] = sum(sizes) / len(sizes)
        if answers and self.fit_metrics_aggregation_fn:
            usual = with_usual_metrics(answers, lambda answer: answer.metrics)
            own = [(answer.source.num_examples, dict(answer.metrics)) for answer in usual]
            metrics = {**self.fit_metrics_aggregation_fn(own), **metrics}
        self._journal.end_round(self.core, model)
        return None if model is None else _to_parameters(model), metrics

    def evaluate(
        self, server_round: int, parameters: Parameters
    ) -> tuple[float, dict[str, Scalar]] | None:
        """Evaluate the model as FedAvg does."""
        if server_round < self._journal.done:
            return None
        return super().evaluate(server_round, parameters)

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """Configure a round of evaluation as FedAvg does."""
        if server_round < self._journal.done:
            return []
        with seeded_sampling(self.core.settings.seed, server_round):
            asked = super().configure_evaluate(server_round, parameters, client_manager)
        self._asked_to_evaluate = [client.cid for client, _ in asked]
        return asked

    def aggregate_evaluate(
        self,
        server_round: int,
        results: list[Evaluated],
        failures: list[Evaluated | BaseException],
    ) -> tuple[float | None, dict[str, Scalar]]:
        """Aggregate the usable results' losses and metrics as FedAvg does."""
        asked = self._asked_to_evaluate
        screened = self._screen("aggregate_evaluate", asked, results, failures, _read_evaluation)
        evaluated = self._accept(screened, failures)
        if evaluated:
            evaluated = with_usual_metrics(evaluated, lambda pair: pair[1].metrics)
        return super().aggregate_evaluate(server_round, evaluated, [])

    def _screen(
        self,
        phase: str,
        asked: list[str],
        results: Sequence[tuple[ClientProxy, Result]],
        failures: Sequence[tuple[ClientProxy, Result] | BaseException],
        read: Callable[[ClientProxy, Result], Usable],
    ) -> Screened[Usable]:
        answered = list(results)
        for failure in failures:
            if isinstance(failure, BaseException):
                # Flower does not tell whose it is; the client is named among the missing.
                log(WARNING, "%s: a client failed: %r", phase, failure)
            else:
                answered.append(failure)
        readers = [(client.cid, partial(read, client, result)) for client, result in answered]
        return self._roster.screen(phase, asked, readers)

    def _accept(self, screened: Screened[Usable], failures: Sequence[Any]) -> list[Usable]:
        if self.accept_failures or not (failures or screened.rejected):
            return screened.usable
        log(WARNING, "no reply is used: some clients failed, and accept_failures is False")
        return []

    def _read_result(self, client: ClientProxy, result: FitRes) -> Answer[FitRes]:
        _require_success(result)
        num_examples = require_examples("num_examples", result.num_examples)
        scalars = result.metrics if Payload.is_in(result.metrics) else None
        payload = self.core.read(_to_model(result.parameters), scalars)
        self._roster.learn(client.cid, payload.partition)
        own = {key: value for key, value in result.metrics.items() if not key.startswith(PREFIX)}
        return Answer(payload, num_examples, own, result)


class SignSGD(LegacyStrategy):
    """`fedmedian.strategies.SignSGD` for the older API.

    Clients need `fedmedian.clients.perturb`, or are `fedmedian.clients.SignClient`.

    Parameters
    ----------
    noise, decode, learning_rate, calibrated, weighted, ties
        As for `fedmedian.strategies.SignSGD`.
    **options
        Those of `fedmedian.strategies.SignSGD` that are not FedAvg's, and the arguments of
        `flwr.server.strategy.FedAvg` but for `inplace`. The patterns of `dense` match positions:
        ``dense=["2", "3"]`` for the running statistics of a model whose third and fourth array they
        are. The `average` is in ``averaged_parameters``. With a `checkpoint` the metrics of rounds
        before it are not in Flower's History, and rounds after the last `every`-th are not stored.
        What is reported as ``uplink-bytes`` is the clients' arrays without Flower's headers.

    Raises
    ------
    TypeError, ValueError
        As `fedmedian.strategies.SignSGD`.

    Examples
    --------
    >>> strategy = SignSGD(fraction_fit=0.5)
    """

    def __init__(
        self,
        noise: Noise | None = sign.DEFAULT_NOISE,
        decode: Decode = "counts",
        learning_rate: float | Schedule | None = None,
        *,
        calibrated: bool = False,
        weighted: bool = True,
        ties: Ties = "random",
        **options: Unpack[LegacyOptions],
    ) -> None:
        super().__init__(
            partial(SignCore, noise, decode, learning_rate, calibrated, weighted, ties), options
        )


class MedianSGD(LegacyStrategy):
    """`fedmedian.strategies.MedianSGD` for the older API.

    With ``noise_at="server"``, ``estimator="smoothed"`` or without noise unmodified clients will
    do; else they need `fedmedian.clients.perturb`, or are `fedmedian.clients.GradientClient`.

    Parameters
    ----------
    noise, noise_at, learning_rate, estimator
        As for `fedmedian.strategies.MedianSGD`.
    **options
        As for `SignSGD`.

    Raises
    ------
    TypeError, ValueError
        As `fedmedian.strategies.MedianSGD`.

    Examples
    --------
    >>> strategy = MedianSGD(noise_at="server", fraction_fit=0.5)
    """

    def __init__(
        self,
        noise: Noise | None = median.DEFAULT_NOISE,
        noise_at: NoiseAt = "client",
        learning_rate: float | Schedule | None = None,
        *,
        estimator: Estimator = "median",
        **options: Unpack[LegacyOptions],
    ) -> None:
        super().__init__(partial(MedianCore, noise, noise_at, learning_rate, estimator), options)


def _read_evaluation(client: ClientProxy, result: EvaluateRes) -> Evaluated:
    _require_success(result)
    require_examples("num_examples", result.num_examples)
    if not isfinite(result.loss):
        raise WireError(f"loss must be finite, got {result.loss!r}")
    return client, result


def _require_success(result: FitRes | EvaluateRes) -> None:
    if result.status.code != Code.OK:
        raise WireError(f"client failed: {result.status.message!r}")


def _to_model(parameters: Parameters) -> Arrays:
    return {str(number): read_npy(data) for number, data in enumerate(parameters.tensors)}


def _to_parameters(model: Arrays) -> Parameters:
    return ndarrays_to_parameters(list(model.values()))
