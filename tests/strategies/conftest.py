"""A run of a strategy of either of Flower's APIs, written once for their tests."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import Server, ServerApp, ServerAppComponents, ServerConfig, SimpleClientManager

from fedmedian import strategies
from fedmedian.clients import InProcessGrid, perturb
from fedmedian.records import arrays_to_parameters, parameters_to_arrays, to_arrays, to_record
from fedmedian.strategies import legacy
from fedmedian.strategies.options import OLDER_NAMES

NODE_IDS = InProcessGrid(ClientApp(), 50).get_node_ids()


def averaged(metrics):
    """Average clients' metrics by examples, as the Message API does by itself."""
    total = sum(num_examples for num_examples, _ in metrics)
    return {
        name: sum(num_examples * own[name] for num_examples, own in metrics) / total
        for name, value in metrics[0][1].items()
        if isinstance(value, int | float)
    }


@dataclass(frozen=True, eq=False)
class Api:
    """One of the ways in which Flower carries a strategy's messages.

    `words` are its own for arguments that the Message API has by other names, `fixed` are
    arguments that all its strategies are given here.
    """

    name: str
    module: ModuleType
    fixed: Mapping[str, Any] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)

    def make(self, strategy, *args, **options):
        """Make a strategy, called "SignSGD" or "MedianSGD", with a seed if no other is given."""
        return self.make_own(getattr(self.module, strategy), *args, **options)

    def make_trainer(self, strategy, *args, **options):
        """Make a strategy that asks nobody to evaluate."""
        return self.make(strategy, *args, fraction_evaluate=0.0, **options)

    def make_own(self, subclass, *args, **options):
        """Make a strategy of a subclass, with a seed if no other is given."""
        own = {self.words.get(name, name): value for name, value in options.items()}
        return subclass(*args, **{"seed": 1, **self.fixed, **own})


MESSAGES = Api("Message API", strategies)
NUMPY_CLIENTS = Api("Message API, NumPyClients", strategies, {"numpy_clients": True})
OLDER_API = Api(
    "older API",
    legacy,
    {"fit_metrics_aggregation_fn": averaged, "evaluate_metrics_aggregation_fn": averaged},
    OLDER_NAMES,
)


@pytest.fixture(scope="session", params=[MESSAGES.name, OLDER_API.name])
def api(request):
    """Each of Flower's APIs in turn."""
    return MESSAGES if request.param == MESSAGES.name else OLDER_API


@pytest.fixture(
    scope="session", params=[MESSAGES, NUMPY_CLIENTS, OLDER_API], ids=lambda api: api.name
)
def any_client(request):
    """Each of Flower's APIs in turn, and the Message API with NumPyClients."""
    return request.param


@pytest.fixture(scope="session")
def message_api():
    """The Message API."""
    return MESSAGES


@pytest.fixture(scope="session")
def numpy_clients():
    """The Message API with NumPyClients."""
    return NUMPY_CLIENTS


@pytest.fixture(scope="session")
def older_api():
    """The API of NumPyClients and ``flwr.server``."""
    return OLDER_API


@dataclass
class Outcome:
    """What a run leaves behind.

    `path` are the models before the first round and after each, `reports` and `evaluations` the
    metrics of training and of the clients' evaluation by round.
    """

    path: list
    reports: dict
    evaluations: dict
    grid: InProcessGrid

    @property
    def model(self):
        """The last model."""
        return self.path[-1]


class ServerThatRemembers(Server):
    """Flower's older server, which keeps the history that a ServerApp throws away."""

    def fit(self, num_rounds, timeout):
        self.history, elapsed = super().fit(num_rounds, timeout)
        return self.history, elapsed


def make_numpy_app(names, train, evaluate, mods):
    """Make an app of NumPyClients of the functions that `make_app` takes.

    Without names a model's arrays go by their positions.
    """

    class Client(NumPyClient):
        def __init__(self, partition):
            self.partition = partition

        def named(self, parameters):
            positions = map(str, range(len(parameters)))
            return dict(zip(names or positions, parameters, strict=True))

        def fit(self, parameters, config):
            trained, metrics = train(self.named(parameters), self.partition)
            metrics = dict(metrics)
            return list(trained.values()), metrics.pop("num-examples"), metrics

        def evaluate(self, parameters, config):
            metrics = dict(evaluate(self.named(parameters), self.partition))
            return metrics.pop("loss"), metrics.pop("num-examples"), metrics

    def client_fn(context):
        return Client(context.node_config["partition-id"]).to_client()

    return ClientApp(client_fn=client_fn, mods=list(mods))


def evaluate_by_partition(model, partition):
    return {"num-examples": 2, "loss": float(partition)}


def run_with_messages(strategy, grid, model, num_rounds, train_config, evaluate_config):
    path = []
    result = strategy.start(
        grid,
        to_record(model),
        num_rounds,
        train_config=train_config,
        evaluate_config=evaluate_config,
        evaluate_fn=lambda number, arrays: path.append(to_arrays(arrays)),
    )
    return Outcome(
        path,
        {number: dict(metrics) for number, metrics in result.train_metrics_clientapp.items()},
        {number: dict(metrics) for number, metrics in result.evaluate_metrics_clientapp.items()},
        grid,
    )


def run_with_older_api(strategy, grid, model, num_rounds, train_config, evaluate_config):
    path = []

    def keep(server_round, arrays, config):
        path.append(dict(zip(model, arrays, strict=True)))

    if strategy.initial_parameters is None:
        strategy.initial_parameters = ndarrays_to_parameters(list(model.values()))
    strategy.evaluate_fn = keep
    if train_config is not None:
        strategy.on_fit_config_fn = lambda server_round: train_config
    if evaluate_config is not None:
        strategy.on_evaluate_config_fn = lambda server_round: evaluate_config
    server = ServerThatRemembers(client_manager=SimpleClientManager(), strategy=strategy)
    components = ServerAppComponents(server=server, config=ServerConfig(num_rounds=num_rounds))
    server_app = ServerApp(server_fn=lambda context: components)
    server_app(grid, Context(1, 1, {}, RecordDict(), {}))
    history = server.history
    losses = {"loss": history.losses_distributed}
    reports = by_round(history.metrics_distributed_fit)
    for number, lists in strategy.metrics_per_block.items():
        reports[number] = {**reports.get(number, {}), **lists}
    return Outcome(
        path,
        dict(sorted(reports.items())),
        by_round({**losses, **history.metrics_distributed}),
        grid,
    )


def by_round(metrics):
    """Turn an older History's metrics, by name, into dicts by round."""
    rounds = {}
    for name, values in metrics.items():
        for number, value in values:
            rounds.setdefault(number, {})[name] = value
    return rounds


@pytest.fixture(scope="session")
def run(make_app):
    """Runs a strategy of any API on clients of two functions of (model, partition).

    They are those of `make_app`; an app that is made already does as well.
    """

    def run(
        strategy,
        train,
        model,
        num_clients,
        num_rounds=1,
        *,
        evaluate=evaluate_by_partition,
        mods=(perturb,),
        grid=InProcessGrid,
        train_config=None,
        evaluate_config=None,
    ):
        older = isinstance(strategy, legacy.LegacyStrategy)
        if isinstance(train, ClientApp):
            app = train
        elif older or strategy.numpy_clients:
            app = make_numpy_app(list(model), train, evaluate, mods)
        else:
            app = make_app(train, mods, evaluate)
        return (run_with_older_api if older else run_with_messages)(
            strategy, grid(app, num_clients), model, num_rounds, train_config, evaluate_config
        )

    return run


@pytest.fixture(scope="session")
def steps(run):
    """Runs a strategy on clients whose updates are `updates[round][partition]`, of float64.

    Returns how far each round moves the model, (rounds, d), and the outcome.
    """

    def steps(strategy, updates, examples=None, **options):
        updates = np.asarray(updates, dtype=np.float64)
        num_rounds, num_clients, _ = updates.shape
        trained = dict.fromkeys(range(num_clients), 0)

        def train(model, partition):
            update = updates[trained[partition], partition]
            trained[partition] += 1
            weight = 1 if examples is None else examples[partition]
            return {"x": model["x"] - update}, {"num-examples": weight}

        start = {"x": np.zeros(updates.shape[2])}
        outcome = run(strategy, train, start, num_clients, num_rounds, **options)
        return -np.diff([model["x"] for model in outcome.path], axis=0), outcome

    return steps


@pytest.fixture(scope="session")
def step(steps):
    """Runs one round on fixed updates, one row per client; returns how far the model goes."""

    def step(strategy, updates, examples=None, **options):
        return steps(strategy, [updates], examples, **options)[0][0]

    return step


@pytest.fixture(scope="session")
def spoiling():
    """Makes a mod that changes one client's replies of one type, all of them or one."""

    def spoiling(change, partition, message_type="train", only=None):
        replies = count(1)

        def spoil(message, context, call_next):
            reply = call_next(message, context)
            if (
                context.node_config["partition-id"] == partition
                and message.metadata.message_type == message_type
                and only in (None, next(replies))
            ):
                change(reply.content)
            return reply

        return spoil

    return spoiling


@pytest.fixture(scope="session")
def without():
    """Makes a kind of grid among whose nodes those of some partitions never were."""

    def without(*partitions):
        class SmallerGrid(InProcessGrid):
            def get_node_ids(self):
                return [n for i, n in enumerate(super().get_node_ids()) if i not in partitions]

        return SmallerGrid

    return without


@pytest.fixture(scope="session")
def bits():
    """Turns a model into what can be compared bit for bit."""

    def bits(model):
        return {name: (array.dtype, array.shape, array.tobytes()) for name, array in model.items()}

    return bits


@pytest.fixture(scope="session")
def seeking(make_app):
    """Makes an app whose clients go half of the way to what `aim(name, array)` returns.

    Each aims a little aside, and all together on average at it.
    """

    def seeking(api, aim, mods=(perturb,), num_clients=5):
        def train(model, partition):
            aside = 0.1 * (partition - (num_clients - 1) / 2)
            trained = {
                name: (array + 0.5 * (aim(name, array) + aside - array)).astype(array.dtype)
                for name, array in model.items()
            }
            return trained, {"num-examples": 10, "loss": 1.0}

        if api is OLDER_API:
            return make_numpy_app(None, train, evaluate_by_partition, mods)
        return make_app(train, mods)

    return seeking


@dataclass(frozen=True)
class Letter:
    """A question to a client, or its reply: whose it is, and what Flower's API has for it."""

    partition: int
    raw: Any
    to: Callable[[int], "Letter"] | None = None


def usually(number, argument, usual):
    """Do in a round as the strategy does by itself."""
    return usual(argument)


def make_message_habits(base, model, ask, hear, ask_to_evaluate, hear_evaluation):
    def letters(messages, strategy):
        def sent_to(partition, message):
            content, kind = message.content, message.metadata.message_type
            (new,) = strategy._construct_messages(content, [NODE_IDS[partition]], kind)
            return Letter(partition, new)

        for message in messages:
            place = NODE_IDS.index(message.metadata.dst_node_id)
            yield Letter(place, message, partial(sent_to, message=message))

    class Habitual(base):
        def configure_train(self, server_round, arrays, config, grid):
            def usual(own):
                configure = super(Habitual, self).configure_train
                return list(letters(configure(server_round, to_record(own), config, grid), self))

            return [one.raw for one in ask(server_round, to_arrays(arrays), usual)]

        def aggregate_train(self, server_round, replies):
            def usual(heard):
                aggregate = super(Habitual, self).aggregate_train
                arrays, metrics = aggregate(server_round, [one.raw for one in heard])
                return None if arrays is None else to_arrays(arrays), metrics

            heard = [Letter(NODE_IDS.index(one.metadata.src_node_id), one) for one in replies]
            arrays, metrics = hear(server_round, heard, usual)
            return None if arrays is None else to_record(arrays), metrics

        def configure_evaluate(self, server_round, arrays, config, grid):
            def usual(own):
                configure = super(Habitual, self).configure_evaluate
                return list(letters(configure(server_round, to_record(own), config, grid), self))

            return [one.raw for one in ask_to_evaluate(server_round, to_arrays(arrays), usual)]

        def aggregate_evaluate(self, server_round, replies):
            def usual(heard):
                aggregate = super(Habitual, self).aggregate_evaluate
                return aggregate(server_round, [one.raw for one in heard])

            heard = [Letter(NODE_IDS.index(one.metadata.src_node_id), one) for one in replies]
            return hear_evaluation(server_round, heard, usual)

    return Habitual


def make_older_habits(base, model, ask, hear, ask_to_evaluate, hear_evaluation):
    def letters(asked, manager):
        def sent_to(partition, ins):
            return Letter(partition, (manager.all()[str(NODE_IDS[partition])], ins))

        for client, ins in asked:
            place = NODE_IDS.index(int(client.cid))
            yield Letter(place, (client, ins), partial(sent_to, ins=ins))

    def named(parameters, names):
        return dict(zip(names, parameters_to_arrays(parameters).values(), strict=True))

    class Habitual(base):
        def configure_fit(self, server_round, parameters, client_manager):
            def usual(own):
                self.names = list(own)
                configure = super(Habitual, self).configure_fit
                asked = configure(server_round, arrays_to_parameters(own), client_manager)
                return list(letters(asked, client_manager))

            return [one.raw for one in ask(server_round, named(parameters, model), usual)]

        def aggregate_fit(self, server_round, results, failures):
            def usual(heard):
                aggregate = super(Habitual, self).aggregate_fit
                parameters, metrics = aggregate(server_round, [one.raw for one in heard], failures)
                return None if parameters is None else named(parameters, self.names), metrics

            heard = [Letter(NODE_IDS.index(int(one.cid)), (one, res)) for one, res in results]
            arrays, metrics = hear(server_round, heard, usual)
            return None if arrays is None else arrays_to_parameters(arrays), metrics or {}

        def configure_evaluate(self, server_round, parameters, client_manager):
            def usual(own):
                configure = super(Habitual, self).configure_evaluate
                asked = configure(server_round, arrays_to_parameters(own), client_manager)
                return list(letters(asked, client_manager))

            return [
                one.raw for one in ask_to_evaluate(server_round, named(parameters, model), usual)
            ]

        def aggregate_evaluate(self, server_round, results, failures):
            def usual(heard):
                aggregate = super(Habitual, self).aggregate_evaluate
                return aggregate(server_round, [one.raw for one in heard], failures)

            heard = [Letter(NODE_IDS.index(int(one.cid)), (one, res)) for one, res in results]
            return hear_evaluation(server_round, heard, usual)

    return Habitual


@pytest.fixture(scope="session")
def habitual():
    """Makes a strategy of a user's subclass, the same for each API.

    Its methods get the round, a model or a list of `Letter`, and `usual`, which does what the
    strategy itself does with such an argument. `ask` and `ask_to_evaluate` return letters, `hear`
    a model or None, and metrics or None, `hear_evaluation` what the API returns. `model` is the
    run's first.
    """

    def habitual(
        api,
        make,
        model,
        *args,
        ask=usually,
        hear=usually,
        ask_to_evaluate=usually,
        hear_evaluation=usually,
        **options,
    ):
        derive = make_older_habits if api is OLDER_API else make_message_habits
        habits = ask, hear, ask_to_evaluate, hear_evaluation
        own = derive(getattr(api.module, make), model, *habits)
        if hear_evaluation is usually:
            del own.aggregate_evaluate  # with it, replies to evaluation hold their arrays
        return api.make_own(own, *args, **options)

    return habitual


@pytest.fixture
def warnings(caplog):
    """Returns the warnings that have been logged, those of a client or of a kind."""

    def warnings(start="", partition=None):
        node = "" if partition is None else rf"node {NODE_IDS[partition]}\b"
        return [
            record.getMessage()
            for record in caplog.records
            if record.levelno == logging.WARNING
            and record.getMessage().startswith(start)
            and re.search(node, record.getMessage())
        ]

    return warnings
