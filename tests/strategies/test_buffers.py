"""Arrays of a model that are not trained: masks, ranges, counters, and what is said about them."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from flwr.app import RecordDict
from flwr.common import FitIns

from fedmedian import CodedSteps
from fedmedian.clients import perturb
from fedmedian.records import arrays_to_parameters, to_record
from fedmedian.strategies import Checkpoint, RunFailedError
from tests.tools.apis import counting_on, each_case, each_pair

NUM_CLIENTS = 5
W = np.zeros((20, 20), np.float32)
MASK = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
LAYER = [np.full(20, value, np.float32) for value in (1, 0, 0, 1)]
UNSEEN = {"2": np.array(np.inf, np.float32), "3": np.array([-np.inf, 1], np.float32)}

either_strategy = each_pair("name", ("SignSGD", "MedianSGD"))


def towards_one(model, partition):
    """Trains all floating-point arrays that are finite halfway to one."""
    trained = {
        name: (array + 0.5 * (1 - array)).astype(array.dtype)
        if array.dtype.kind == "f" and np.isfinite(array).all()
        else array
        for name, array in model.items()
    }
    return trained, {"num-examples": 1}


@pytest.mark.parametrize("exact", [[], ["1"]], ids=["trained", "exact"])
class TestMasks:
    MODEL: ClassVar = {"0": W, "1": MASK, "2": np.zeros(3, np.float32)}

    @either_strategy
    def test_a_mask_of_minus_infinity_stays_as_it_is_and_all_else_trains(
        self, api, name, exact, run
    ):
        outcome = run(api.make_trainer(name, exact=exact), towards_one, self.MODEL, NUM_CLIENTS, 4)
        assert outcome.model["1"].tobytes() == MASK.tobytes()
        assert outcome.model["0"].mean() > 0.8
        assert all(report["replies-rejected"] == 0 for report in outcome.reports.values())

    def test_unmodified_clients_may_return_it_as_well(self, api, exact, run):
        strategy = api.make_trainer("MedianSGD", noise_at="server", exact=exact)
        outcome = run(strategy, towards_one, self.MODEL, NUM_CLIENTS, 4, mods=())
        assert outcome.model["1"].tobytes() == MASK.tobytes()
        assert outcome.model["0"].mean() > 0.8


@either_strategy
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("clients", [2, NUM_CLIENTS])
def test_one_client_cannot_spoil_a_mask_of_the_lowest_number(api, name, bad, clients, run):
    """A mask of finite numbers that no other array may have."""
    mask = np.triu(np.full((4, 4), np.finfo(np.float32).min, np.float32), 1)

    def spoil(model, partition):
        trained, metrics = towards_one(model, partition)
        spoiled = np.where(mask < 0, np.float32(bad), mask)
        return {**trained, "1": mask if partition else spoiled}, metrics

    strategy = api.make_trainer(name, exact=["1"])
    outcome = run(strategy, spoil, {"0": W, "1": mask}, clients, 2)
    assert outcome.model["1"].tobytes() == mask.tobytes()
    assert outcome.model["0"].any()
    assert all(report["replies-rejected"] == 1 for report in outcome.reports.values())


@either_strategy
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("clients", "liars"), [(2, 1), (3, 1), (4, 1), (11, 0)])
def test_a_mask_of_the_lowest_number_stays_whatever_one_client_sends(
    api, name, dtype, clients, liars, run
):
    mask = np.full(3, np.finfo(dtype).min, dtype)

    def spoil(model, partition):
        trained, metrics = towards_one({"0": model["0"]}, partition)
        return {**trained, "1": -mask if partition < liars else mask}, metrics

    strategy = api.make_trainer(name, exact=["1"])
    outcome = run(strategy, spoil, {"0": W, "1": mask}, clients, 2)
    np.testing.assert_allclose(outcome.model["1"], mask, rtol=1e-15)  # a mean is rounded
    assert outcome.model["0"].any()


@either_strategy
class TestRanges:
    """Ranges of quantization begin as infinite, and become finite with the first data."""

    MODEL: ClassVar = {"0": W, "1": MASK, **UNSEEN}

    def play(self, api, name, run, seen, num_rounds=3):
        def observe(model, partition):
            trained, metrics = towards_one(model, partition)
            return {**trained, **seen(model, partition)}, metrics

        strategy = api.make_trainer(name, exact=["2", "3"])
        return run(strategy, observe, self.MODEL, NUM_CLIENTS, num_rounds)

    @staticmethod
    def ranges(low, high):
        return {"2": np.array(low, np.float32), "3": np.array([high, 1], np.float32)}

    def test_they_become_the_center_of_what_clients_have_seen(self, api, name, run):
        outcome = self.play(api, name, run, lambda model, i: self.ranges(-1 - i, 1 + i))
        assert outcome.model["2"] == -3
        assert outcome.model["3"].tolist() == [3, 1]
        assert outcome.model["0"].mean() > 0.5

    def test_they_stay_as_they_are_while_most_clients_have_seen_nothing(self, api, name, run):
        outcome = self.play(
            api, name, run, lambda model, i: self.ranges(-1, 1) if i < 2 else UNSEEN
        )
        assert outcome.model["2"] == np.inf
        assert outcome.model["3"].tolist() == [-np.inf, 1]

    def test_clients_that_have_seen_nothing_do_not_hold_back_the_others(self, api, name, run):
        outcome = self.play(
            api, name, run, lambda model, i: self.ranges(-1, 1) if i < 3 else UNSEEN, 1
        )
        assert outcome.model["2"] == -1
        assert outcome.model["3"].tolist() == [1, 1]

    def test_they_are_taken_up_once_clients_have_seen_data_in_a_later_round(self, api, name, run):
        outcome = self.play(
            api,
            name,
            run,
            lambda model, i: self.ranges(-1, 1) if model["0"].any() else UNSEEN,
        )
        assert [float(model["2"]) for model in outcome.path[1:3]] == [np.inf, -1]
        assert outcome.model["3"].tolist() == [1, 1]

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_one_client_makes_nothing_infinite_that_was_finite(self, api, name, run, bad):
        def spoil(model, partition):
            if partition:
                return self.ranges(-1, 1)
            return {"2": np.array(bad, np.float32), "3": np.array([bad, bad], np.float32)}

        outcome = self.play(api, name, run, spoil)
        assert outcome.model["2"] == -1
        assert outcome.model["3"].tolist() == [1, 1]
        assert all(report["replies-rejected"] == 1 for report in outcome.reports.values())


class TestDtypes:
    """Clients that train what the model has as integers."""

    @pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint8, np.bool_])
    @either_strategy
    def test_floats_for_integers_are_refused_and_the_reason_names_both(
        self, api, name, dtype, run, warnings
    ):
        model = {"0": np.zeros((4, 5), dtype), "1": np.zeros(3)}
        strategy = api.make_trainer(name, max_failed_rounds=1)
        with pytest.raises(RunFailedError) as failed:
            run(strategy, floats_everywhere, model, NUM_CLIENTS)
        assert "'0'" in str(failed.value)
        assert f"is {np.dtype(dtype)} in the model and float64 in the reply" in str(failed.value)

    def test_so_are_plain_weights_of_unmodified_clients(self, api, run):
        model = {"0": np.zeros((4, 5), int), "1": np.zeros(3)}
        strategy = api.make("MedianSGD", noise_at="server")
        with pytest.raises(RunFailedError, match=r"'0' is int64 in the model and float64"):
            run(strategy, floats_everywhere, model, NUM_CLIENTS, 3, mods=())

    @either_strategy
    def test_counters_that_clients_return_as_floats_are_taken(self, api, name, run):
        def count(model, partition):
            trained, metrics = towards_one(model, partition)
            return {**trained, "1": (model["1"] + 3).astype(np.float32)}, metrics

        model = {"0": W, "1": np.array(7)}
        outcome = run(api.make(name), count, model, NUM_CLIENTS, 2)
        assert outcome.model["1"] == 13
        assert outcome.model["1"].dtype == np.int64

    @either_strategy
    def test_numbers_may_come_back_with_another_number_of_axes(self, api, name, run):
        def reshape(model, partition):
            trained, metrics = towards_one(model, partition)
            return {**trained, "1": trained["1"].reshape(1), "2": trained["2"].reshape(())}, metrics

        model = {"0": W, "1": np.array(0.0), "2": np.zeros((1, 1)), "3": np.array(7)}
        outcome = run(api.make_trainer(name), reshape, model, NUM_CLIENTS, 3)
        assert outcome.reports[3]["replies-rejected"] == 0
        assert (outcome.model["1"].shape, outcome.model["2"].shape) == ((), (1, 1))

    @pytest.mark.parametrize("downlink", [None, CodedSteps()], ids=["whole", "coded"])
    @either_strategy
    def test_a_subclass_may_send_the_model_in_half_precision(
        self, api, name, downlink, habitual, seeking, run
    ):
        """Clients return exact arrays in the dtype that they get."""
        model = {"0": W, "1": np.full(4, 1 / 3, np.float32), "2": np.array(7)}

        def as_sent(raw, model):
            halved = {
                name: array.astype(np.float16 if array.dtype == np.float32 else np.int32)
                for name, array in model.items()
            }
            if isinstance(raw, tuple):
                client, ins = raw
                return client, FitIns(arrays_to_parameters(halved), ins.config)
            raw.content = RecordDict({**raw.content, "arrays": to_record(halved)})
            return raw

        def ask(number, model, usual):
            asked = usual(model)
            if number == 1:
                return asked
            return [replace(one, raw=as_sent(one.raw, model)) for one in asked]

        options = {"fraction_evaluate": 0.0, "exact": ["1"], "downlink": downlink}
        strategy = habitual(api, name, model, ask=ask, **options)
        app = seeking(api, lambda name, array: array + 1, num_clients=NUM_CLIENTS)
        outcome = run(strategy, app, model, NUM_CLIENTS, 2)
        assert outcome.reports[2]["replies-accepted"] == NUM_CLIENTS
        assert {name: array.dtype for name, array in outcome.model.items()} == {
            name: array.dtype for name, array in model.items()
        }
        assert outcome.model["1"] == pytest.approx(1 / 3 + 1, abs=1e-3)


def floats_everywhere(model, partition):
    return {name: array + 0.5 * (0.9 - array) for name, array in model.items()}, {"num-examples": 1}


class TestFirstLook:
    MODEL: ClassVar = {"0": W, "1": MASK}

    def said(self, warnings):
        return [*warnings("exact:"), *warnings("arrays that hold"), *warnings("no array of")]

    @either_strategy
    def test_a_pattern_that_matches_nothing_is_named_once(self, api, name, run, warnings):
        strategy = api.make(name, exact=["1", "buffers.*", "layer[0]"])
        run(strategy, towards_one, self.MODEL, NUM_CLIENTS, 3)
        first, second = self.said(warnings)
        assert first == "exact: 'buffers.*' matches no array of the model, which has ['0', '1']"
        assert "'layer[0]' matches no array" in second
        assert "write [[] for a bracket" in second

    @either_strategy
    @pytest.mark.parametrize(
        "exact", ["0", "1"], ids=["all of the first round's", "none of the first round's"]
    )
    def test_exact_arrays_are_not_judged_by_a_first_round_that_trains_a_part(
        self, exact, api, name, habitual, seeking, run, warnings
    ):
        whole = {"0": W, "1": np.zeros(3, np.float32)}

        def ask(number, model, usual):
            return usual({"0": model["0"]} if number == 1 else model)

        def hear(number, heard, usual):
            model, metrics = usual(heard)
            return {**whole, **model}, metrics

        strategy = habitual(
            api, name, whole, ask=ask, hear=hear, exact=[exact], fraction_evaluate=0.0
        )
        app = seeking(api, lambda name, array: 1.0, num_clients=NUM_CLIENTS)
        run(strategy, app, whole, NUM_CLIENTS, 2)
        assert self.said(warnings) == []

    @either_strategy
    @pytest.mark.parametrize(
        ("model", "exact"), [({"0": np.zeros(3, np.int64)}, ()), ({"0": W}, ("*",))], ids=str
    )
    def test_a_model_without_trained_arrays_is_said_to_be_one(
        self, model, exact, api, name, run, warnings
    ):
        run(api.make(name, exact=exact), lambda model, _: (model, {"num-examples": 1}), model, 5, 2)
        (said,) = self.said(warnings)
        assert said.startswith("no array of the model is trained")

    @either_strategy
    def test_the_default_patterns_are_not_expected_to_match(self, api, name, run, warnings):
        run(api.make(name), towards_one, {"0": W}, NUM_CLIENTS, 2)
        assert self.said(warnings) == []

    @either_strategy
    def test_arrays_that_are_not_finite_and_trained_are_named_before_they_are_sent(
        self, api, name, run, warnings
    ):
        said = []

        def listen(message, context, call_next):
            said.extend(self.said(warnings) if not said else [])
            return call_next(message, context)

        strategy = api.make(name)
        run(strategy, towards_one, self.MODEL, NUM_CLIENTS, 2, mods=(perturb, listen))
        assert said == self.said(warnings)
        (line,) = said
        assert line.endswith("['1']")
        assert "leave them out" in line
        assert "exact" in line

    @either_strategy
    def test_arrays_that_are_not_finite_and_exact_are_not(self, api, name, run, warnings):
        run(api.make(name, exact=["1"]), towards_one, self.MODEL, NUM_CLIENTS, 2)
        assert self.said(warnings) == []

    @each_case(
        ("arrays", "named"),
        {
            "torch": ([W, *LAYER, np.array(7), W[0]], "['3', '4']"),
            "torch, trained before": ([W, *map(np.cos, LAYER), np.array(7)], "['3', '4']"),
            "torch without weights": ([W, *LAYER[2:], np.array(7), W[0]], "['1', '2']"),
            "Keras": ([W, *LAYER, W, W[0], *LAYER], "['3', '4', '9', '10']"),
            "many layers": (
                [W, *LAYER, *LAYER * 24],
                str([str(p) for p in range(101) if p % 4 in (3, 0)][1:]),
            ),
            "no counter of a layer": ([W, W[0], W, W[0], np.array(7)], None),
            "layers without statistics": ([W, *LAYER[:2], *LAYER[:2], W, W[0]], None),
        },
        older=("torch", "Keras", "layers without statistics"),
    )
    def test_running_statistics_without_names_are_named_by_their_places(
        self, arrays, named, api, run, warnings
    ):
        model = {str(place): array for place, array in enumerate(arrays)}
        run(api.make("SignSGD"), towards_one, model, NUM_CLIENTS, 2)
        said = warnings("arrays that look")
        assert [line for line in said if not line.endswith(f"pass exact={named}")] == []
        assert len(said) == (named is not None)

    @pytest.mark.parametrize(
        ("names", "options", "wanted"),
        [
            (
                ["bn/moving_mean", "bn/moving_variance"],
                {},
                ["bn/moving_mean", "bn/moving_variance"],
            ),
            (["['batch_stats']['mean']"], {}, ["['batch_stats']['mean']"]),
            (["bn.running_mean", "bn.running_var"], {}, None),
            (["bn.weight", "bn.bias"], {}, None),
            (["bn.running_var", "t"], {"exact": ["t"]}, ["t", "bn.running_var"]),
            (["bn.running_var", "t"], {"exact": ["t", "*_var"]}, None),
            (["bn.running_var", "t"], {"exact": []}, None),
        ],
        ids=["Keras", "Flax", "torch", "none", "others are exact", "both are", "no"],
    )
    def test_running_statistics_with_names_are_named_where_no_pattern_matches(
        self, names, options, wanted, message_api, run, warnings
    ):
        model = {"kernel": W} | {name: W[0] + 1 for name in names}
        run(message_api.make("SignSGD", **options), towards_one, model, NUM_CLIENTS)
        said = warnings("arrays that look")
        assert [line.endswith(f"pass exact={wanted}") for line in said] == [True] * bool(wanted)

    def test_there_is_no_such_warning_with_what_it_advises_or_an_empty_exact(
        self, api, run, warnings
    ):
        model = {str(place): array for place, array in enumerate([W, *LAYER])}
        for exact in (["3", "4"], []):
            run(api.make("SignSGD", exact=exact), towards_one, model, NUM_CLIENTS)
        assert not warnings("arrays that look")

    def test_a_run_that_counts_rounds_from_another_number_looks_at_its_first_one(
        self, api, run, warnings
    ):
        strategy = api.make_own(counting_on(api.module.SignSGD), exact=["none"])
        run(strategy, towards_one, {"0": W}, NUM_CLIENTS, 3)
        assert len(self.said(warnings)) == 1

    def test_a_run_that_resumes_looks_again_at_its_first_round(self, api, run, warnings, tmp_path):
        for rounds, times in ((2, 1), (4, 2)):
            strategy = api.make("SignSGD", exact=["none"], checkpoint=Checkpoint(tmp_path))
            run(strategy, towards_one, {"0": W}, NUM_CLIENTS, rounds)
            assert len(self.said(warnings)) == times
