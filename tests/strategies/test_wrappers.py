"""Flower's wrappers and workflows around our strategies: those that spoil a run are refused."""

import re

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerApp, ServerAppComponents, ServerConfig
from flwr.server import strategy as older
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow, SecAggWorkflow
from flwr.serverapp import strategy as newer

import fedmedian
from fedmedian import strategies
from fedmedian.clients import InProcessGrid
from fedmedian.privacy import accounting as privacy
from fedmedian.strategies.wrappers import require_no_unfit_wrapper
from tests.tools.wrapped import Wrapped

MODEL = {"0": np.zeros((20, 30), np.float32)}
NUM_CLIENTS = 3

ARGUMENTS = {
    "DifferentialPrivacyServerSideFixedClipping": (1.0, 1.0, NUM_CLIENTS),
    "DifferentialPrivacyClientSideFixedClipping": (1.0, 1.0, NUM_CLIENTS),
    "DifferentialPrivacyServerSideAdaptiveClipping": (0.1, NUM_CLIENTS),
    "DifferentialPrivacyClientSideAdaptiveClipping": (0.1, NUM_CLIENTS),
    "DPFedAvgFixed": (NUM_CLIENTS, 1.0, 1.0),
    "DPFedAvgAdaptive": (NUM_CLIENTS,),
}
"""Flower's wrappers for differential privacy by name, with their arguments after the strategy."""

either_strategy = pytest.mark.parametrize("name", ["SignSGD", "MedianSGD"])


def train(model, partition):
    trained = {name: array + np.float32(1) for name, array in model.items()}
    return trained, {"num-examples": 1}


class SilentGrid(InProcessGrid):
    """Lets no message pass: a run that is refused has sent none."""

    def push_messages(self, messages):
        raise AssertionError("a message was sent")

    def send_and_receive(self, messages, *, timeout=None):
        raise AssertionError("a message was sent")


@pytest.fixture
def silent(make_app):
    return SilentGrid(make_app(train), NUM_CLIENTS)


def run_older(strategy, grid):
    components = ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=1))
    ServerApp(server_fn=lambda context: components)(grid, Context(1, 1, {}, RecordDict(), {}))


def wrappers_of(module):
    return [name for name in ARGUMENTS if hasattr(module, name)]


def test_all_of_flowers_wrappers_are_tried():
    for module in (newer, older):
        private = {name for name in dir(module) if name.startswith(("Differential", "DPFed"))}
        assert private == {*wrappers_of(module)}
        assert len(private) >= 4


class SaysNothing(Wrapped):
    def summary(self):
        pass


@either_strategy
class TestWrappersForDifferentialPrivacy:
    @pytest.mark.parametrize("wrapper", wrappers_of(newer))
    @pytest.mark.parametrize("between", [None, Wrapped, SaysNothing])
    def test_they_are_refused_by_name_before_anything_is_sent(
        self, name, wrapper, between, message_api, silent, as_record
    ):
        inner = message_api.make(name)
        wrapped = getattr(newer, wrapper)(between(inner) if between else inner, *ARGUMENTS[wrapper])
        with pytest.raises(ValueError, match=rf"^{wrapper} .*{name}") as refused:
            wrapped.start(silent, as_record(MODEL), 1)
        for remedy in ("client_steps=[Clip(", "Gaussian(", "privacy_budget=", "FedAvg"):
            assert remedy in str(refused.value)

    def test_what_is_advised_instead_can_be_made_and_run(
        self, name, message_api, silent, make_app, as_record
    ):
        wrapper = "DifferentialPrivacyServerSideFixedClipping"
        wrapped = getattr(newer, wrapper)(message_api.make(name), *ARGUMENTS[wrapper])
        with pytest.raises(ValueError, match=f"^{wrapper} cannot wrap") as refused:
            wrapped.start(silent, as_record(MODEL), 1)
        (advice,) = re.findall(rf"{name}\(Gaussian.*\)\)", str(refused.value))
        strategy = eval(advice, {**vars(fedmedian), **vars(strategies), **vars(privacy)})
        result = strategy.start(InProcessGrid(make_app(train), 5), as_record(MODEL), 2)
        assert result.train_metrics_clientapp[2]["epsilon"] < 8

    def test_they_are_where_another_wrapper_is_around_them(
        self, name, message_api, silent, as_record
    ):
        wrapper = "DifferentialPrivacyServerSideFixedClipping"
        wrapped = getattr(newer, wrapper)(message_api.make(name), *ARGUMENTS[wrapper])
        with pytest.raises(ValueError, match=f"^{wrapper}"):
            Wrapped(wrapped).start(silent, as_record(MODEL), 1)

    def test_so_are_classes_derived_from_them(self, name, message_api, silent, as_record):
        class Own(newer.DifferentialPrivacyServerSideFixedClipping):
            pass

        with pytest.raises(ValueError, match=r"^Own "):
            Own(message_api.make(name), 1.0, 1.0, 3).start(silent, as_record(MODEL), 1)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.parametrize("wrapper", wrappers_of(older))
    @pytest.mark.parametrize("given", [True, False], ids=["model given", "model asked for"])
    def test_those_of_the_older_api_are_too(self, name, wrapper, given, older_api, silent):
        model = ndarrays_to_parameters(list(MODEL.values())) if given else None
        inner = older_api.make(name, initial_parameters=model)
        wrapped = getattr(older, wrapper)(inner, *ARGUMENTS[wrapper])
        with pytest.raises(ValueError, match=rf"^{wrapper} .*{name}"):
            run_older(wrapped, silent)

    def test_an_ordinary_wrapper_changes_nothing(
        self, name, message_api, make_app, as_record, as_arrays
    ):
        models = [
            as_arrays(
                strategy.start(
                    InProcessGrid(make_app(train), NUM_CLIENTS), as_record(MODEL), 2
                ).arrays
            )
            for strategy in (message_api.make(name), Wrapped(message_api.make(name)))
        ]
        assert models[0]["0"].any()
        np.testing.assert_array_equal(models[0]["0"], models[1]["0"])


@either_strategy
@pytest.mark.parametrize("workflow", [SecAggPlusWorkflow, SecAggWorkflow])
class TestSecureAggregation:
    @pytest.mark.parametrize("given", [True, False], ids=["model given", "model asked for"])
    def test_its_workflows_are_refused_by_name_before_anything_is_sent(
        self, name, workflow, given, older_api, silent
    ):
        model = ndarrays_to_parameters(list(MODEL.values())) if given else None
        strategy = older_api.make(name, initial_parameters=model)
        arguments = (1.0, 0.5) if workflow is SecAggPlusWorkflow else (0.5,)
        context = Context(1, 1, {}, RecordDict(), {})
        legacy_context = LegacyContext(context, ServerConfig(num_rounds=1), strategy)
        with pytest.raises(ValueError, match=rf"^{workflow.__name__} .*{name}.*secaggplus_mod"):
            DefaultWorkflow(fit_workflow=workflow(*arguments))(silent, legacy_context)

    def test_a_workflow_of_the_users_own_that_runs_them_is_refused_too(
        self, name, workflow, older_api
    ):
        strategy = older_api.make(name)

        class Stage(workflow):
            def setup_stage(self, *args):
                strategy.configure_fit(1, ndarrays_to_parameters(list(MODEL.values())), None)

        with pytest.raises(ValueError, match=r"^Stage "):
            Stage(*((1.0, 0.5) if workflow is SecAggPlusWorkflow else (0.5,))).setup_stage()


def test_a_caller_of_the_users_own_with_a_name_like_theirs_is_no_wrapper():
    class SecAggOfMine:
        def call(self):
            require_no_unfit_wrapper(object())

    SecAggOfMine().call()
