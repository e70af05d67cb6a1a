"""What only the older API has: failures of unknown origin, a model that a client may give."""

from math import nan

import numpy as np
import pytest
from flwr.app import Context, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.server import ServerApp, ServerAppComponents, ServerConfig

from fedmedian.clients import InProcessGrid, perturb
from fedmedian.rounds.metrics import fair_examples

NUM_CLIENTS = 5
BAD = 2  # the client that misbehaves
MODEL = {"0": np.arange(20, dtype=np.float32).reshape(4, 5), "1": np.zeros(5), "2": np.array(0)}


def train(model, partition):
    moved = {name: array + np.asarray(1, array.dtype) for name, array in model.items()}
    return moved, {"num-examples": partition + 1, "loss": 0.1 * partition, "by": "me"}


@pytest.fixture
def play(run, older_api):
    """Runs a strategy on this file's clients and model."""

    def play(make, *args, train=train, run_options=None, **options):
        strategy = older_api.make(make, *args, **options)
        return run(strategy, train, MODEL, NUM_CLIENTS, **(run_options or {}))

    return play


def crash(content):
    raise RuntimeError("the disk is full")


def no_examples(content):
    content["fitres.num_examples"]["num_examples"] = 0


class TestAcceptFailures:
    """With ``accept_failures=False`` one failure costs the round, as it does FedAvg."""

    @pytest.mark.parametrize("change", [crash, no_examples], ids=["raised", "of no use"])
    @pytest.mark.parametrize("accept", [True, False])
    def test_accept_failures_decides_about_a_round_with_a_bad_result(
        self, accept, change, play, spoiling, bits, warnings
    ):
        outcome = play(
            "MedianSGD",
            accept_failures=accept,
            run_options={"mods": (spoiling(change, BAD), perturb)},
        )
        assert (bits(outcome.model) != bits(MODEL)) is accept
        good, crashed = NUM_CLIENTS - 1, change is crash
        counted = (good, 1 - crashed) if accept else (0, NUM_CLIENTS - crashed)
        report = outcome.reports[1]
        assert (report["replies-accepted"], report["replies-rejected"]) == counted
        assert report["replies-missing"] == crashed
        refused = [text for text in warnings("aggregate_") if "accept_failures" in text]
        assert len(refused) == (0 if accept else 1)
        assert all(text.count("node ") == good for text in refused)

    def test_a_round_without_failures_passes_where_failures_are_not_accepted(self, play, bits):
        outcome = play("MedianSGD", accept_failures=False)
        assert bits(outcome.model) != bits(MODEL)
        assert outcome.evaluations[1]["loss"] == np.mean(range(NUM_CLIENTS))

    def test_an_evaluation_with_a_bad_result_is_refused_where_failures_are_not_accepted(self, play):
        def evaluate(model, partition):
            return {"num-examples": 1, "loss": nan if partition == BAD else 1.0}

        outcome = play("MedianSGD", accept_failures=False, run_options={"evaluate": evaluate})
        assert "loss" not in outcome.evaluations.get(1, {})


@pytest.mark.parametrize("loss", [[1.0, 2.0], [1.0] * 1000, []], ids=len)
def test_a_loss_that_is_a_list_is_dropped(loss, play, spoiling, warnings):
    def spoil(content):
        content["evaluateres.loss"] = MetricRecord({"loss": loss})

    outcome = play(
        "SignSGD", run_options={"mods": (spoiling(spoil, BAD, message_type="evaluate"), perturb)}
    )
    honest = [i for i in range(NUM_CLIENTS) if i != BAD]
    assert outcome.evaluations[1]["loss"] == np.mean(honest)
    assert len(warnings("aggregate_evaluate: dropped the reply of")) == 1


@pytest.mark.parametrize("differ", [1, NUM_CLIENTS], ids=["one client", "all clients"])
def test_the_loss_of_clients_counts_whose_metrics_differ_from_the_others(differ, play):
    def evaluate(model, partition):
        name = f"accuracy of class {partition}" if partition < differ else "accuracy"
        return {"num-examples": 1, "loss": float(partition), name: 0.5}

    outcome = play("SignSGD", run_options={"evaluate": evaluate})
    assert outcome.evaluations[1]["loss"] == np.mean(range(NUM_CLIENTS))


def test_the_functions_that_aggregate_metrics_get_the_clients_own_alone(play):
    seen = []

    def aggregate(metrics):
        seen.extend(sorted(metrics, key=lambda pair: pair[1]["loss"]))
        return {"clients": len(metrics)}

    outcome = play("SignSGD", fit_metrics_aggregation_fn=aggregate)
    examples = fair_examples(range(1, NUM_CLIENTS + 1))
    assert seen == [(examples[i], {"loss": 0.1 * i, "by": "me"}) for i in range(NUM_CLIENTS)]
    assert outcome.reports[1]["clients"] == NUM_CLIENTS
    assert {"noise-scale", "vote-agreement", "replies-accepted"} <= set(outcome.reports[1])


WITHOUT_FUNCTIONS = {"fit_metrics_aggregation_fn": None, "evaluate_metrics_aggregation_fn": None}


def test_clients_metrics_without_a_function_for_them_are_a_warning_once_a_run(play, warnings):
    def evaluate(model, partition):
        return {"num-examples": 1, "loss": 1.0, "accuracy": 0.5}

    play("SignSGD", **WITHOUT_FUNCTIONS, run_options={"num_rounds": 3, "evaluate": evaluate})
    said = (
        "the strategy does not report clients' metrics: pass it {}=…, a function that averages them"
    )
    assert warnings("the strategy") == [said.format(name) for name in WITHOUT_FUNCTIONS]


def test_clients_without_metrics_need_no_function_for_them(play, warnings):
    def train(model, partition):
        return model, {"num-examples": 1}

    play("SignSGD", train=train, **WITHOUT_FUNCTIONS)
    assert not warnings("the strategy")


@pytest.mark.parametrize("name", ["on_fit_config_fn", "on_evaluate_config_fn"])
def test_a_config_cannot_have_keys_of_ours(name, play):
    with pytest.raises(ValueError, match=rf"^{name} must not have keys .*'fedmedian.noise'"):
        play("SignSGD", **{name: lambda server_round: {"lr": 0.1, "fedmedian.noise": 0.1}})


def test_a_run_without_an_initial_model_ends_at_once(older_api):
    components = ServerAppComponents(strategy=older_api.make("SignSGD"), config=ServerConfig(1))
    app = ClientApp(client_fn=lambda context: NumPyClient().to_client(), mods=[perturb])
    serve = ServerApp(server_fn=lambda context: components)
    with pytest.raises(ValueError, match=r"at least one array, got none: set initial_parameters"):
        serve(InProcessGrid(app, NUM_CLIENTS), Context(1, 1, {}, RecordDict(), {}))


def test_without_an_initial_model_a_client_is_asked_for_one(older_api):
    class WithParameters(NumPyClient):
        def get_parameters(self, config):
            return list(MODEL.values())

        def fit(self, parameters, config):
            return [x + np.asarray(1, x.dtype) for x in parameters], 1, {}

        def evaluate(self, parameters, config):
            return 0.0, 1, {}

    seen = []
    strategy = older_api.make("SignSGD")
    strategy.evaluate_fn = lambda number, arrays, config: seen.append(arrays)
    components = ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=1))
    app = ClientApp(client_fn=lambda context: WithParameters().to_client(), mods=[perturb])
    grid = InProcessGrid(app, NUM_CLIENTS)
    ServerApp(server_fn=lambda context: components)(grid, Context(1, 1, {}, RecordDict(), {}))
    first, last = seen
    for array, given in zip(first, MODEL.values(), strict=True):
        np.testing.assert_array_equal(array, given, strict=True)
    assert last[2] == 1
