"""A model's named arrays as one flat vector: which ones, in which order, and back."""

import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian import Layout
from fedmedian.logs import as_line, text_of
from fedmedian.model.layout import RUNNING_STATISTICS, ArraySpec, first_spoiled, matches
from fedmedian.wire.scalars import WireError, refusal

FLAT_DTYPES = [np.float16, np.float32, np.float64]
EXACT_DTYPES = [np.int8, np.int32, np.int64, np.uint8, np.uint64, np.bool_]


def batch_norm_model():
    """A small model with every kind of array: flat, statistics, counters and a number."""
    return {
        "conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "bn.running_mean": np.array([0.5, 1.5], np.float32),
        "bn.num_batches_tracked": np.array(7),
        "bn.weight": np.ones(2, np.float64),
        "temperature": np.array(2.0, np.float16),
        "mask": np.array([True, False, True]),
    }


@st.composite
def models(draw, dtypes=(*FLAT_DTYPES, *EXACT_DTYPES), names="abcdefg"):
    """Named arrays of any dtype, order and shape, empty ones and single numbers among them."""
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
    return {
        name: np.asarray(
            draw(hnp.arrays(draw(st.sampled_from(dtypes)), draw(shapes))),
            order=draw(st.sampled_from("CF")),
        )
        for name in draw(st.lists(st.sampled_from(names), unique=True))
    }


class TestWhichArraysAreFlat:
    def test_floating_point_arrays_are_in_the_flat_vector_unless_they_are_running_statistics(self):
        layout = Layout.of_model(batch_norm_model())
        assert [spec.name for spec in layout.flat] == ["conv.weight", "bn.weight", "temperature"]
        assert [spec.name for spec in layout.exact] == [
            "bn.running_mean",
            "bn.num_batches_tracked",
            "mask",
        ]
        assert layout.blocks.sizes == (6, 2, 1)
        assert layout.dim == 9
        assert layout.exact_bytes == 2 * 4 + 8 + 3

    def test_arrays_of_every_floating_point_dtype_are_in_the_flat_vector_and_of_no_other(self):
        for dtype in (*FLAT_DTYPES, *EXACT_DTYPES):
            layout = Layout.of_model({"w": np.zeros(3, dtype)}, exact=())
            assert layout.dim == (3 if dtype in FLAT_DTYPES else 0)
            exact_bytes = 0 if dtype in FLAT_DTYPES else np.zeros(3, dtype).nbytes
            assert layout.exact_bytes == exact_bytes

    @pytest.mark.parametrize(
        ("patterns", "flat"),
        [
            ((), ["a.weight", "a.running_mean", "b.weight"]),
            (RUNNING_STATISTICS, ["a.weight", "b.weight"]),
            (["a.*"], ["b.weight"]),
            (["?.weight"], ["a.running_mean"]),
            (["*.WEIGHT"], ["a.weight", "a.running_mean", "b.weight"]),
            (["weight"], ["a.weight", "a.running_mean", "b.weight"]),
            (["*"], []),
        ],
    )
    def test_patterns_say_which_floating_point_arrays_are_exact(self, patterns, flat):
        model = {name: np.zeros(1) for name in ("a.weight", "a.running_mean", "b.weight")}
        assert [spec.name for spec in Layout.of_model(model, patterns).flat] == flat

    @pytest.mark.parametrize(
        ("pattern", "name", "stands"),
        [
            ("layers[0].weight", "layers[0].weight", True),
            ("layers[0].weight", "layers0.weight", True),
            ("layers[0].weight", "layers[1].weight", False),
            ("layers[[]0].*", "layers[0].weight", True),
            ("[ab]", "[ab]", True),
            ("[!a]", "[!a]", True),
            ("[!a]", "b", True),
            ("[", "[", True),
            ("w*", "w*", True),
            ("a?", "a?", True),
            ("", "", True),
            ("weight", "Weight", False),
            ("*.weight", "weight", False),
        ],
    )
    def test_a_name_stands_for_itself_whatever_its_characters_mean_in_a_pattern(
        self, pattern, name, stands
    ):
        assert matches(pattern, name) is stands
        exact = Layout.of_model({name: np.zeros(1)}, [pattern]).exact
        assert bool(exact) is stands

    @given(name=st.text())
    def test_every_name_is_matched_by_itself(self, name):
        assert matches(name, name)

    def test_positions_say_which_arrays_are_exact_where_they_have_other_names(self):
        model = batch_norm_model()
        unnamed = {str(i): array for i, array in enumerate(model.values())}
        here = Layout.of_model(model)
        there = Layout.with_exact_positions(unnamed, here.exact_positions)
        assert [(spec.shape, spec.dtype, spec.exact) for spec in there.specs] == [
            (spec.shape, spec.dtype, spec.exact) for spec in here.specs
        ]
        assert Layout.with_exact_positions(model, here.exact_positions) == here

    @pytest.mark.parametrize("beyond", [2, -1])
    def test_a_position_of_an_exact_array_beyond_the_model_is_refused(self, beyond):
        with pytest.raises(ValueError, match=rf"array {beyond} in a model of 2"):
            Layout.with_exact_positions({"a": np.zeros(1), "b": np.zeros(1)}, (0, beyond))

    def test_a_layout_with_integers_in_the_flat_vector_is_refused(self):
        with pytest.raises(ValueError, match="'n' of int64"):
            Layout.with_exact_positions({"n": np.zeros(1, np.int64)}, ())

    def test_a_model_without_arrays_has_a_layout_of_dimension_0(self):
        layout = Layout.of_model({})
        assert layout.dim == layout.exact_bytes == 0
        assert layout.difference({}, {}).shape == (0,)
        assert layout.move({}, np.empty(0, np.float32), 1.0, {}) == {}
        assert layout.pack_exact({}).shape == (0,)

    def test_layouts_are_equal_if_names_shapes_and_dtypes_are(self):
        other = {name: array + array for name, array in batch_norm_model().items()}
        assert Layout.of_model(other) == Layout.of_model(batch_norm_model())
        layout = Layout.of_model({"w": np.zeros(2)})
        for others in ({"w": np.zeros(3)}, {"v": np.zeros(2)}, {"w": np.zeros(2, np.float32)}):
            assert Layout.of_model(others) != layout


UNTRAINABLE = [
    np.array(["a"]),
    np.array([b"a"]),
    np.array([None]),
    np.zeros(1, "f4,i4"),
    np.zeros(1, "M8[s]"),
    np.zeros(1, "m8[s]"),
    np.zeros(1, np.complex128),
    np.zeros(1, "V2"),
]
untrainable = pytest.mark.parametrize("array", UNTRAINABLE, ids=lambda array: str(array.dtype))


class TestWhichArraysCannotBeTrained:
    @untrainable
    def test_a_model_with_an_array_of_no_real_numbers_has_no_layout_and_the_array_is_named(
        self, array
    ):
        model = {"a": np.zeros(2), "odd": array}
        named = f"'odd' of {re.escape(str(array.dtype))}"
        for exact in ((), ["odd"]):
            with pytest.raises(ValueError, match=named):
                Layout.of_model(model, exact)
        with pytest.raises(ValueError, match=named):
            Layout.with_exact_positions(model, [1])

    @untrainable
    def test_a_trained_model_with_an_array_of_no_real_numbers_is_refused_by_name(self, array):
        model = {"odd": np.zeros(1)}
        layout = Layout.of_model(model)
        with pytest.raises(ValueError, match=f"'odd' of {re.escape(str(array.dtype))}"):
            layout.difference(model, {"odd": array})


class TestFlatVector:
    @given(model=models())
    def test_a_flat_vector_is_split_into_a_view_per_flat_array_in_order(self, model):
        layout = Layout.of_model(model)
        flat = np.arange(layout.dim, dtype=np.float32)
        parts = layout.blocks.split(flat)
        assert [part.size for part in parts] == [array.size for array in flat_arrays(model)]
        assert np.array_equal(np.concatenate([np.empty(0), *parts]), flat)
        for part in parts:
            part += 1
        assert np.array_equal(flat, np.arange(1, layout.dim + 1))


def flat_arrays(model):
    return [array for array in model.values() if np.issubdtype(array.dtype, np.floating)]


class TestDifference:
    def test_an_update_points_from_the_trained_model_to_the_one_before(self):
        before, after = batch_norm_model(), batch_norm_model()
        after["conv.weight"] = after["conv.weight"] - np.float32(2)
        after["bn.weight"] = after["bn.weight"] + 0.5
        update = Layout.of_model(before).difference(before, after)
        assert update.dtype == np.float32
        assert update.tolist() == [2.0] * 6 + [-0.5] * 2 + [0.0]

    def test_exact_arrays_play_no_part_in_an_update(self):
        before, after = batch_norm_model(), batch_norm_model()
        after["bn.running_mean"] = after["bn.running_mean"] * 9
        after["mask"] = ~after["mask"]
        assert not Layout.of_model(before).difference(before, after).any()

    def test_a_tiny_update_of_a_float64_model_is_not_rounded_away(self):
        before, after = {"w": np.array([1.0])}, {"w": np.array([1.0 + 2**-50])}
        assert Layout.of_model(before).difference(before, after).tolist() == [-(2.0**-50)]

    def test_an_update_of_a_model_of_half_precision_is_not_rounded_to_it(self):
        before = {"w": np.array([65504, 1], np.float16)}
        after = {"w": np.array([-65504, 2**-24], np.float16)}
        update = Layout.of_model(before).difference(before, after)
        assert update.tolist() == [131008, 1 - 2**-24]

    def test_an_update_that_float32_cannot_hold_is_not_finite_and_no_warning(self):
        before, after = {"w": np.zeros(3)}, {"w": np.array([1e300, np.inf, np.nan])}
        assert not np.isfinite(Layout.of_model(before).difference(before, after)).any()

    def test_the_memory_order_of_a_trained_array_does_not_matter_to_its_update(self):
        before = {"w": np.arange(6.0).reshape(2, 3)}
        after = {"w": np.asfortranarray(np.zeros((2, 3)))}
        assert Layout.of_model(before).difference(before, after).tolist() == [0, 1, 2, 3, 4, 5]


NOT_FINITE = [np.nan, np.inf, -np.inf]


class TestArraysThatAreNotFinite:
    """Masks with −inf and ranges that have seen no data: what is not trained need not be finite."""

    MASK = np.triu(np.full((3, 3), -np.inf, np.float32), 1)

    @pytest.mark.parametrize("dtype", FLAT_DTYPES)
    @pytest.mark.parametrize("value", NOT_FINITE)
    @given(trained=st.sampled_from([0.0, 1.0, -7.5, np.nan, np.inf, -np.inf]))
    def test_there_is_no_update_of_one_whatever_clients_make_of_it(self, dtype, value, trained):
        before = {"w": np.ones(2, dtype), "m": np.array([0, value, 1], dtype)}
        after = {"w": np.zeros(2, dtype), "m": np.array([trained, trained, 1], dtype)}
        update = Layout.of_model(before).difference(before, after)
        assert update.tolist() == [1, 1, 0, 0, 0]

    @pytest.mark.parametrize("dtype", FLAT_DTYPES)
    @pytest.mark.parametrize("value", NOT_FINITE)
    @given(step=st.sampled_from([0.0, 1.0, -1e38, np.nan, np.inf, -np.inf]))
    def test_no_step_changes_one(self, dtype, value, step):
        model = {"w": np.ones(2, dtype), "m": np.array([0, value, 1], dtype)}
        direction = np.float32([1, 1, step, step, step])
        with np.errstate(all="ignore"):
            moved = Layout.of_model(model).move(model, direction, 1.0, {})
        assert moved["w"].tolist() == [0, 0]
        np.testing.assert_array_equal(moved["m"], model["m"])
        assert moved["m"].dtype == dtype

    @given(value=st.sampled_from(NOT_FINITE))
    def test_an_update_that_is_not_finite_of_an_array_that_is_stays_to_be_refused(self, value):
        before = {"w": np.ones(3, np.float32), "mask": self.MASK}
        after = {"w": np.array([1, value, 1], np.float32), "mask": self.MASK}
        update = Layout.of_model(before).difference(before, after)
        assert not np.isfinite(update[1])
        assert not update[3:].any()

    def test_large_finite_values_are_not_taken_for_infinite_ones(self):
        huge = np.full(3, 3e38, np.float32)  # whose sum overflows
        before, after = {"w": huge}, {"w": np.zeros(3, np.float32)}
        layout = Layout.of_model(before)
        assert layout.difference(before, after).tolist() == huge.tolist()
        assert not layout.move(before, huge, 1.0, {})["w"].any()

    def test_masks_that_are_equal_are_no_tied_weights(self):
        model = {"a": self.MASK, "b": self.MASK.copy()}
        assert Layout.of_model(model).tied(model) == ()

    @pytest.mark.parametrize("value", NOT_FINITE)
    def test_only_what_was_finite_before_can_be_spoiled(self, value):
        before = {"a": np.array([1, value]), "n": np.array([1])}
        assert first_spoiled(before, {"a": np.array([2, value]), "n": np.array([2])}) is None
        assert first_spoiled(before, {"a": np.array([2.0, 3.0])}) is None
        assert first_spoiled(before, {"a": np.array([value, value])}) == "a"
        assert first_spoiled({}, {"a": np.array([1, value])}) == "a"


class TestMove:
    def test_a_moved_model_is_the_old_one_minus_the_step_with_the_new_exact_arrays(self):
        model = batch_norm_model()
        layout = Layout.of_model(model)
        exact = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in layout.exact}
        moved = layout.move(model, np.arange(9, dtype=np.float32), 1.0, exact)
        assert list(moved) == list(model)
        assert not moved["conv.weight"].any()
        assert moved["bn.weight"].tolist() == [1 - 6, 1 - 7]
        assert moved["temperature"] == 2 - 8
        for name, array in exact.items():
            assert np.array_equal(moved[name], array)

    @given(model=models())
    def test_a_moved_model_has_the_old_ones_shapes_and_dtypes(self, model):
        layout = Layout.of_model(model)
        moved = layout.move(model, np.zeros(layout.dim, np.float32), 1.0, model)
        for name, array in model.items():
            assert type(moved[name]) is np.ndarray
            assert moved[name].dtype == array.dtype
            np.testing.assert_array_equal(moved[name], array)

    @given(model=models(dtypes=[np.int32], names="abc"), data=st.data())
    def test_the_difference_to_a_moved_model_is_the_step(self, model, data):
        model = {name: array.astype(np.float64) for name, array in model.items()}
        layout = Layout.of_model(model)
        step = data.draw(hnp.arrays(np.float32, layout.dim, elements=st.integers(-99, 99)))
        assert np.array_equal(layout.difference(model, layout.move(model, step, 1.0, {})), step)

    def test_a_moved_model_of_half_precision_is_rounded_once_at_the_end(self):
        model = {"w": np.array([1.0], np.float16)}
        # Just over half of the distance to the next smaller number; rounded to half, it is half.
        moved = Layout.of_model(model).move(model, np.array([2**-12 + 2**-24], np.float32), 1.0, {})
        assert moved["w"].dtype == np.float16
        assert moved["w"] == 1 - 2**-11

    def test_a_model_that_is_moved_stays_as_it_was(self):
        model = batch_norm_model()
        Layout.of_model(model).move(model, np.ones(9, np.float32), 1.0, model)
        for name, array in batch_norm_model().items():
            assert np.array_equal(model[name], array)


class TestBfloat16:
    """bfloat16, which is no dtype of NumPy's own, is trained like one."""

    @pytest.fixture
    def dtype(self):
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)

    def test_it_is_flat_or_exact_as_other_floating_point_arrays_are(self, dtype):
        model = {"w": np.ones((2, 3), dtype), "running_mean": np.ones(4, dtype)}
        layout = Layout.of_model(model)
        assert [spec.name for spec in layout.flat] == ["w"]
        assert layout.exact_bytes == 8

    @pytest.mark.parametrize("other", [np.float16, np.float64])
    def test_its_difference_from_arrays_of_other_dtypes_is_taken_at_least_in_float32(
        self, other, dtype
    ):
        before, after = {"w": np.ones(3, dtype)}, {"w": np.zeros(3, other)}
        assert Layout.of_model(before).difference(before, after).tolist() == [1, 1, 1]
        assert Layout.of_model(after).difference(after, before).tolist() == [-1, -1, -1]

    def test_equal_arrays_of_it_may_be_tied(self, dtype):
        tied = {name: np.arange(3).astype(dtype) for name in "ab"}
        assert Layout.of_model(tied).tied(tied) == ((0, 1),)

    def test_its_update_is_not_rounded_to_it_and_its_model_once_at_the_end(self, dtype):
        before, after = {"w": np.array([256, 1], dtype)}, {"w": np.array([1, 2**-9], dtype)}
        layout = Layout.of_model(before)
        assert layout.difference(before, after).tolist() == [255, 1 - 2**-9]
        # Just over half of the distance to the next smaller number.
        moved = layout.move({"w": np.ones(2, dtype)}, np.float32([2**-9 + 2**-20, 0]), 1.0, {})
        assert moved["w"].dtype == dtype
        assert moved["w"].tolist() == [1 - 2**-8, 1]

    def test_exact_arrays_of_it_are_combined_and_checked(self, dtype):
        model = {"running_var": np.array([1, 2], dtype)}
        layout = Layout.of_model(model)
        clients = [layout.pack_exact({"running_var": np.float32([one, 2])}) for one in (1, 1, 4)]
        combined = combine(layout, clients, lambda stacked: stacked.mean(axis=0))["running_var"]
        assert combined.dtype == dtype
        assert combined.tolist() == [2, 2]
        layout.require_exact(clients[0], model)
        spoiled = layout.pack_exact({"running_var": np.array([1, np.nan], dtype)})
        with pytest.raises(WireError, match="'running_var' holds NaN"):
            layout.require_exact(spoiled, model)
        with pytest.raises(ValueError, match="bfloat16 cannot hold"):
            layout.pack_exact({"running_var": np.array([1e300, 1])})


class TestMatching:
    def test_a_model_matches_its_layout(self):
        Layout.of_model(batch_norm_model()).require_match(batch_norm_model())

    @pytest.mark.parametrize(
        ("arrays", "named"),
        [
            ({"a": np.zeros(2)}, ["'b'"]),
            ({"a": np.zeros(2), "c": np.zeros(3), "d": np.zeros(0)}, ["'b'", "'c'", "'d'"]),
            ({"b": np.zeros(2), "a": np.zeros(3)}, ["'a'", "(3,)", "(2,)"]),
            ({"a": np.zeros(2), "b": np.zeros((3, 1))}, ["'b'", "(3, 1)", "(3,)"]),
        ],
        ids=["missing", "extra", "swapped shapes", "shape"],
    )
    def test_another_model_is_refused_with_the_difference(self, arrays, named):
        model = {"a": np.zeros(2), "b": np.zeros(3)}
        layout = Layout.of_model(model)
        pattern = ".*".join(map(re.escape, named))
        with pytest.raises(ValueError, match=pattern):
            layout.require_match(arrays)
        with pytest.raises(ValueError, match=pattern):
            layout.difference(model, arrays)

    @pytest.mark.parametrize("here", [(), (1,), (1, 1)])
    @pytest.mark.parametrize("there", [(), (1,), (1, 1, 1)])
    @pytest.mark.parametrize("exact", [[], ["a"]])
    def test_a_number_matches_with_any_number_of_axes(self, here, there, exact):
        before, after = {"a": np.full(here, 3.0)}, {"a": np.full(there, 1.0)}
        layout = Layout.of_model(before, exact)
        update = layout.difference(before, after)
        assert update.tolist() == ([] if exact else [2.0])
        for name, array in layout.unpack_exact(layout.pack_exact(after)).items():
            assert array.shape == before[name].shape
            assert array == 1.0

    @pytest.mark.parametrize("shapes", [((), (2,)), ((1,), (0,)), ((2,), (1, 2)), ((2, 1), (1, 2))])
    def test_no_other_shapes_match(self, shapes):
        here, there = shapes
        layout = Layout.of_model({"a": np.zeros(here)})
        with pytest.raises(ValueError, match=re.escape(f"'a' has shape {there}")):
            layout.require_match({"a": np.zeros(there)})

    CLASSES, TREES = "scikit-learn drops classes", "trees change the shapes"
    SAME, PART = "have the same model?", "which must hold only the arrays that clients send"
    UNNAMED = "which has no names: start with an ArrayRecord of those that clients send"
    WRAPPED, COMPILED = "of a wrapped model, send the one inside", "by the prefix '_orig_mod.'"

    @pytest.mark.parametrize(
        ("model", "own", "said", "unsaid"),
        [
            # A class that a client lacks, or two classes alone.
            ({"coef": (10, 64)}, {"coef": (9, 64)}, [CLASSES], [TREES, SAME]),
            ({"coef": (10, 64)}, {"coef": (1, 64)}, [CLASSES], [TREES, SAME]),
            ({"0": (10, 64)}, {"0": (9, 64)}, [CLASSES], [TREES, SAME]),
            ({"intercept_": (10,)}, {"intercept_": (9,)}, [CLASSES, TREES], [SAME]),
            ({"0": (10000,)}, {"0": (9000,)}, [CLASSES, TREES], [SAME]),
            ({"bias": (10,)}, {"bias": (9,)}, [TREES], [CLASSES, SAME]),
            ({"conv.weight": (8, 3, 3, 3)}, {"conv.weight": (6, 3, 3, 3)}, [SAME], [CLASSES]),
            ({"0": (8, 3, 3, 3)}, {"0": (6, 3, 3, 3)}, [SAME], [CLASSES]),
            ({"embedding": (1000, 8)}, {"embedding": (949, 8)}, [SAME], [CLASSES, TREES]),
            ({"nodes": (9,)}, {"nodes": (10,)}, [TREES], [CLASSES, SAME]),
            ({"w": (10, 64)}, {"w": (11, 64)}, [SAME], [CLASSES, TREES]),
            ({"w": (10, 64)}, {"w": (10, 32)}, [SAME], [CLASSES, TREES]),
            ({"w": (10, 64)}, {"w": (640,)}, [SAME], [CLASSES, TREES]),
            ({"w": (3,)}, {"w": ()}, [SAME], [CLASSES, TREES]),
            # A server with a list, and clients with a torch state dict.
            ({"0": (2,), "1": (1,)}, {"fc.weight": (2,), "fc.bias": (1,)}, [UNNAMED], [PART]),
            ({"0": (2,), "x": (1,)}, {"fc.weight": (2,), "fc.bias": (1,)}, [], [UNNAMED]),
            # A torch.nn.ParameterList, whose names are numbers, in a DataParallel.
            ({"0": (2,), "1": (1,)}, {"module.0": (2,), "module.1": (1,)}, [WRAPPED], [UNNAMED]),
            # The body of a model, by name or as a NumPyClient sends it.
            ({"a": (1,), "b": (1,)}, {"a": (1,)}, [PART, "['b']"], []),
            ({"a": (1,), "b": (1,), "c": (1,)}, {"0": (1,), "1": (1,)}, [PART], []),
            ({"0": (1,), "1": (1,)}, {"0": (1,)}, [PART], []),
            ({"a": (1,)}, {"a": (1,), "b": (1,)}, ["['b']"], [PART]),
            ({"a": (1,), "b": (1,)}, {"c": (1,)}, ["['c']"], [PART]),
            ({"a": (1,)}, {"0": (1,), "1": (1,)}, [], [PART]),
            # As torch.compile and DataParallel name arrays.
            ({"a": (1,), "b": (1,)}, {"_orig_mod.a": (1,), "_orig_mod.b": (1,)}, [COMPILED], []),
            ({"_orig_mod.a": (1,)}, {"a": (1,)}, [COMPILED], []),
            ({"a": (1,)}, {"new_a": (1,)}, [], [WRAPPED]),
            ({"a": (1,), "b": (1,)}, {"x.a": (1,), "y.b": (1,)}, [], [WRAPPED]),
        ],
    )
    def test_what_is_likely_wrong_is_said_and_nothing_else(self, model, own, said, unsaid):
        model, own = ({n: np.zeros(s) for n, s in one.items()} for one in (model, own))
        with pytest.raises(ValueError, match="model's") as refused:
            Layout.of_model(model).require_match(own)
        reason = text_of(refusal(refused.value))  # as a server shows a client's
        assert all(words in reason for words in said)
        assert not any(words in reason for words in unsaid)
        assert "(cut, " not in reason

    def test_that_a_model_holds_more_than_clients_send_is_said_before_the_names_of_many(self):
        model = {f"layer{number}.weight": np.zeros(1) for number in range(300)}
        with pytest.raises(ValueError, match="model's") as refused:
            Layout.of_model(model).require_match({})
        assert self.PART in as_line(refused.value)


def numbered(number, name=str):
    """A model of as many arrays of one shape, each filled with its place."""
    return {name(place): np.full(2, place, np.float32) for place in range(number)}


def shuffled(data, arrays):
    return dict(data.draw(st.permutations([*arrays.items()])))


def values(arrays):
    return {name: array.tolist() for name, array in arrays.items()}


class TestNames:
    """Names say which array is which; positions do where a client has no names."""

    @given(data=st.data(), model=models())
    def test_the_order_of_a_clients_arrays_does_not_matter(self, data, model):
        model = {name: np.nan_to_num(array, posinf=1, neginf=-1) for name, array in model.items()}
        layout = Layout.of_model(model, ["a", "b"])
        after = {
            name: array // 2 if array.dtype != bool else ~array for name, array in model.items()
        }
        other = layout.named(shuffled(data, after))
        assert layout.own_names(other) == list(model)
        update = layout.difference(model, after)
        np.testing.assert_array_equal(layout.difference(model, other), update)
        np.testing.assert_array_equal(layout.pack_exact(other), layout.pack_exact(after))
        moved = layout.move(model, update, 1.0, after)
        assert list(moved) == list(model)
        for name, array in layout.move(shuffled(data, model), update, 1.0, other).items():
            np.testing.assert_array_equal(array, moved[name])

    @given(data=st.data(), number=st.integers(0, 12))
    def test_numbers_are_names_where_they_are_the_models_in_whatever_order(self, data, number):
        model = shuffled(data, numbered(number))
        own = shuffled(data, model)
        layout = Layout.of_model(model)
        assert layout.own_names(own) == list(model)
        assert values(layout.named(own)) == values(model)

    @given(data=st.data(), number=st.integers(0, 12))
    def test_numbers_are_positions_where_the_model_has_other_names(self, data, number):
        model = numbered(number, "layer{}".format)
        own = shuffled(data, numbered(number))
        layout = Layout.of_model(model)
        assert layout.own_names(own) == (list(numbered(number)) if number else [])
        assert values(layout.named(own)) == values(model)

    @given(data=st.data(), number=st.integers(0, 12))
    def test_numbers_that_are_known_to_be_positions_are_never_names(self, data, number):
        model = dict(zip(shuffled(data, numbered(number)), numbered(number).values(), strict=True))
        layout = Layout.of_model(model)
        own = shuffled(data, numbered(number))
        assert layout.own_names(own, unnamed=True) == list(numbered(number))
        assert values(layout.named(own, unnamed=True)) == values(model)

    def test_two_numbers_are_not_taken_for_each_other(self):
        before = {"1": np.zeros(2), "0": np.zeros(2)}
        layout = Layout.of_model(before)
        update = layout.difference(before, layout.named({"0": np.full(2, 7), "1": np.full(2, 8)}))
        assert update.tolist() == [-8, -8, -7, -7]

    def test_ten_numbers_that_were_sorted_as_text_are_not_taken_for_each_other(self):
        model = numbered(11)
        as_text = dict(sorted(model.items()))
        assert list(as_text)[:3] == ["0", "1", "10"]
        for names in (model, as_text, {f"layer{name}": array for name, array in model.items()}):
            layout = Layout.of_model(names)
            assert not layout.difference(names, layout.named(as_text)).any()
            assert not layout.difference(names, layout.named(model)).any()

    @given(data=st.data(), model=models(), unnamed=st.booleans())
    def test_a_part_of_the_arrays_or_more_than_all_is_refused_as_it_is(self, data, model, unnamed):
        layout = Layout.of_model(model)
        names = st.sampled_from([*"abcdefgh", *"0123456"])
        own = {name: np.zeros(2) for name in data.draw(st.lists(names, unique=True))}
        if len(own) == len(model):
            own["more"] = np.zeros(2)
        assert layout.named(own, unnamed=unnamed) is own
        with pytest.raises(ValueError, match="arrays differ from the model's"):
            layout.require_match(own)

    @given(data=st.data())
    def test_exact_positions_are_those_of_the_model_that_was_sent(self, data):
        sent = shuffled(data, batch_norm_model())
        here = Layout.of_model(sent)
        there = Layout.with_exact_positions(sent, here.exact_positions)
        packed = there.pack_exact(there.named(shuffled(data, batch_norm_model())))
        assert {spec.name for spec in there.exact} == {
            "bn.running_mean",
            "bn.num_batches_tracked",
            "mask",
        }
        for name, array in here.unpack_exact(packed).items():
            np.testing.assert_array_equal(array, batch_norm_model()[name])


def combine(layout, packed, center):
    before = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in layout.exact}
    return layout.combine_exact(packed, center, before)


class TestExactArrays:
    @given(model=models())
    def test_exact_arrays_come_back_from_their_bytes_exactly(self, model):
        layout = Layout.of_model(model, exact=["a", "b", "c"])
        packed = layout.pack_exact(model)
        assert packed.dtype == np.uint8
        assert packed.shape == (layout.exact_bytes,)
        unpacked = layout.unpack_exact(packed)
        assert list(unpacked) == [spec.name for spec in layout.exact]
        for name, array in unpacked.items():
            assert array.dtype == model[name].dtype
            np.testing.assert_array_equal(array, model[name])

    def test_exact_arrays_are_packed_in_the_models_dtype(self):
        layout = Layout.of_model({"n": np.zeros(2, np.int16)})
        packed = layout.pack_exact({"n": np.array([1, 2], np.int64)})
        assert layout.unpack_exact(packed)["n"].tolist() == [1, 2]

    def test_exact_arrays_are_combined_array_by_array(self):
        model = batch_norm_model()
        layout = Layout.of_model(model)
        other = dict(model)
        other["bn.running_mean"] = np.array([1.5, 3.5], np.float32)
        packed = [layout.pack_exact(model), layout.pack_exact(other)]
        shapes = []

        def mean(stacked):
            shapes.append(stacked.shape)
            assert stacked.dtype == np.float64
            return stacked.mean(axis=0)

        combined = combine(layout, packed, mean)
        assert shapes == [(2, 2), (2,), (2, 3)]
        assert combined["bn.running_mean"].tolist() == [1.0, 2.5]
        assert combined["bn.num_batches_tracked"] == 7
        assert combined["mask"].tolist() == [True, False, True]

    def test_combining_takes_the_memory_of_the_replies_and_of_one_array(self):
        model = {str(number): np.ones(10_000, np.float32) for number in range(10)}
        layout = Layout.of_model(model, exact=["*"])
        packed = [layout.pack_exact(model)] * 40
        of_replies = 40 * layout.exact_bytes
        tracemalloc.start()
        combine(layout, packed, lambda stacked: stacked.mean(axis=0))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # As they are, and in double precision, which takes twice as much.
        assert peak < of_replies + 5 * of_replies / len(model)

    @given(
        values=hnp.arrays(
            np.float16,
            st.tuples(st.integers(1, 11), st.integers(1, 4)),
            elements=st.floats(0, 2.0**-10, exclude_min=True, width=16),
        ),
        factor=st.floats(1e-30, 1),
    )
    def test_a_center_too_small_for_the_dtype_does_not_become_zero(self, values, factor):
        spec = ArraySpec("bn.running_var", values.shape[1:], values.dtype, exact=True)
        before = np.ones(spec.shape, spec.dtype)
        combined = spec.combine(values, lambda wide: wide.min(axis=0) * factor, before)
        assert combined.dtype == np.float16
        assert np.all(combined > 0)
        assert np.all(combined <= values.min(axis=0))

    @given(model=models(dtypes=[np.int32, np.uint8, np.bool_, np.float16, np.float32]))
    def test_combined_exact_arrays_have_their_own_shape_and_dtype(self, model):
        layout = Layout.of_model(model, exact=["*"])
        packed = [layout.pack_exact(model)] * 3
        combined = layout.combine_exact(packed, lambda stacked: stacked[0], model)
        for name, array in model.items():
            assert type(combined[name]) is np.ndarray
            assert combined[name].dtype == array.dtype
            np.testing.assert_array_equal(combined[name], array)

    def test_combined_integers_are_rounded_to_the_nearest_and_halves_to_even(self):
        layout = Layout.of_model({"n": np.zeros(4, np.int64)})
        clients = ([1, 1, -1, 10], [2, 1, -2, 11], [2, 2, -2, 10], [2, 1, -2, 11])
        packed = [layout.pack_exact({"n": np.array(values)}) for values in clients]
        result = combine(layout, packed, lambda stacked: stacked.mean(axis=0))["n"]
        assert result.tolist() == [2, 1, -2, 10]
        assert result.dtype == np.int64

    @pytest.mark.parametrize(
        ("dtype", "value"),
        [(np.int64, 2**60 + 1), (np.int64, -(2**63)), (np.uint64, 2**64 - 1), (np.int8, -128)],
    )
    def test_integers_that_float64_cannot_hold_are_combined_exactly(self, dtype, value):
        layout = Layout.of_model({"n": np.zeros((), dtype)})
        near = value + 2 if value < 0 else value - 2
        clients = [value] * 3 + [near] * 3
        packed = [layout.pack_exact({"n": np.array(one, dtype)}) for one in clients]
        combined = combine(layout, packed, lambda values: values.mean(axis=0))
        assert combined["n"].dtype == dtype
        assert combined["n"] == (value + near) // 2

    def test_integers_are_combined_exactly_beside_one_at_the_other_end_of_their_range(self):
        layout = Layout.of_model({"n": np.zeros(1, np.int64)})
        packed = [layout.pack_exact({"n": np.array([n])}) for n in (7, 2**63 - 1, 8, -(2**63), 7)]
        combined = combine(layout, packed, lambda values: np.median(values, axis=0))
        assert combined["n"].tolist() == [7]


def samples(dtype):
    """Values of a dtype: small ones, the extreme ones, and such as only some dtypes can hold."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return np.array([False, True])
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return np.unique(np.array([limits.min, limits.max, limits.max // 2 + 1, 0, 1], dtype))
    limits = np.finfo(dtype)
    odd = [0.0, 1.0, -1.0, 0.5, 255.0, 256.0, 1000.25, 2.0**31, 2.0**63, limits.max, -limits.max]
    odd += [limits.tiny, limits.smallest_subnormal, -limits.tiny]
    with np.errstate(over="ignore"):
        return np.array([x for x in map(dtype.type, odd) if np.isfinite(x)], dtype)


EVERY_DTYPE = [*EXACT_DTYPES, np.int16, np.uint16, np.uint32, *FLAT_DTYPES]


@pytest.mark.parametrize("reply", EVERY_DTYPE, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("model", EVERY_DTYPE, ids=lambda dtype: np.dtype(dtype).name)
class TestEveryPairOfDtypes:
    """A reply's array of another dtype than the model's: nothing of it is lost in silence."""

    def test_a_trained_array_moves_the_model_by_what_the_reply_says(self, model, reply):
        if model not in FLAT_DTYPES:
            return
        values = samples(reply)
        before = {"a": np.ones(values.shape, model)}
        update = Layout.of_model(before).difference(before, {"a": values})
        with np.errstate(over="ignore"):  # where it cannot be float32 it is refused later on
            expected = (1 - values.astype(np.float64)).astype(np.float32)
        np.testing.assert_allclose(update, expected, rtol=1e-6)

    def test_an_exact_array_keeps_its_values_or_is_refused_with_both_dtypes(self, model, reply):
        layout = Layout.of_model({"a": np.zeros(1, model)}, exact=["a"])
        for value in samples(reply):
            arrays = {"a": np.array([value], reply)}
            if cannot_hold(model, value):
                named = rf"'a' is {np.dtype(model)} in the model and {np.dtype(reply)} in"
                with pytest.raises(ValueError, match=named):
                    layout.pack_exact(arrays)
                continue
            held = layout.unpack_exact(layout.pack_exact(arrays))["a"][0].item()
            if model in FLAT_DTYPES:  # to the model's precision
                limits = np.finfo(model)
                precision = {"rel": float(limits.eps), "abs": float(limits.smallest_subnormal)}
                assert held == pytest.approx(float(value), **precision)
                assert np.sign(held) == np.sign(float(value))  # a variance does not become 0
            else:
                assert held == value.item()


def cannot_hold(dtype, value):
    """Tell in Python's own numbers whether a dtype lacks a value."""
    value = value.item()
    if dtype is np.bool_:
        return value not in (0, 1)
    if dtype in FLAT_DTYPES:
        largest = np.finfo(dtype).max
        last_digit = int(largest) - int(np.nextafter(largest, dtype(0)))
        return abs(int(value)) >= int(largest) + last_digit // 2  # which rounds to infinity
    limits = np.iinfo(dtype)
    return value != int(value) or not int(limits.min) <= int(value) <= int(limits.max)


class TestExactArraysThatAreNotFinite:
    BEFORE = np.array([np.inf, -np.inf, np.nan, 1.0], np.float32)

    def combined(self, *clients, before=BEFORE):
        spec = Layout.of_model({"r": before}, ["r"]).exact[0]
        values = np.stack([np.asarray(one, before.dtype) for one in clients])
        return spec.combine(values, lambda wide: wide.mean(axis=0), before)

    def test_entries_that_nobody_has_values_for_stay_as_they_are(self):
        for nothing in ([np.inf, -np.inf, np.nan, 3], [np.nan, np.inf, -np.inf, 3]):
            combined = self.combined(*[nothing] * 3)
            np.testing.assert_array_equal(combined, [np.inf, -np.inf, np.nan, 3])

    def test_entries_that_all_have_values_for_are_their_center(self):
        combined = self.combined([1, 2, 3, 4], [3, 4, 5, 6])
        assert combined.tolist() == [2, 3, 4, 5]
        assert combined.dtype == np.float32

    @pytest.mark.parametrize(("clients", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
    def test_a_majority_decides_whether_an_entry_becomes_finite(self, clients, needed):
        for known in range(clients + 1):
            rows = [[7, 7, 7, 1]] * known + [[np.inf, -np.inf, np.nan, 1]] * (clients - known)
            expected = [7, 7, 7, 1] if known >= needed else self.BEFORE
            np.testing.assert_array_equal(self.combined(*rows), expected)

    def test_clients_without_a_value_count_as_the_median_of_those_with_one(self):
        combined = self.combined(
            [1, 0, 0, 1], [2, 0, 0, 1], [900, 0, 0, 1], [np.inf] * 3 + [1], [np.nan] * 3 + [1]
        )
        assert combined[0] == np.float32((1 + 2 + 900 + 2 + 2) / 5)

    @given(
        values=hnp.arrays(
            np.float32,
            st.tuples(st.integers(1, 7), st.just(4)),
            elements=st.floats(-1e9, 1e9, width=32) | st.sampled_from([np.inf, -np.inf, np.nan]),
        )
    )
    def test_no_entry_is_outside_of_what_clients_sent_or_was_there(self, values):
        values[:, 3] = 1  # finite in the model, and so in every reply that is not refused
        combined = self.combined(*values)
        assert combined[3] == 1
        for was, own, now in zip(self.BEFORE, values.T, combined, strict=True):
            finite = own[np.isfinite(own)]
            if 2 * len(finite) > len(own):
                margin = 1e-6 * np.abs(finite).max()
                assert finite.min() - margin <= now <= finite.max() + margin
            else:
                assert now == was or (np.isnan(now) and np.isnan(was))

    def test_a_number_that_is_not_finite_has_a_shape_all_the_same(self):
        before = np.array(np.inf, np.float32)
        assert self.combined(3.0, 5.0, before=before) == 4
        assert self.combined(3.0, np.inf, before=before) == np.inf
        assert self.combined(3.0, np.inf, before=before).shape == ()


class TestExactArraysOfTwoClients:
    """Neither moves an array more than four times as far as the other."""

    @staticmethod
    def combined(before, honest, lie):
        before = np.asarray(before)
        spec = Layout.of_model({"r": before}, ["r"]).exact[0]
        values = np.stack([np.asarray(one).astype(before.dtype) for one in (honest, lie)])
        return spec.combine(values, lambda wide: wide.mean(axis=0), before)

    @pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int32, np.float64])
    def test_numbers_of_any_kind(self, dtype):
        combined = self.combined(np.array([7, 0], dtype), [17, 0], [2**30, 2**30])
        assert np.abs(combined - np.array([7.0, 0.0])).max() <= 2.5 * 10 + 1
        assert self.combined(np.array(7, dtype), 17, 17) == 17
        assert self.combined(np.array(7, dtype), 17, 13) == 15

    def test_beside_an_entry_that_is_not_finite(self):
        before = np.array([1.0, np.inf], np.float32)
        combined = self.combined(before, [0.5, 2.0], [1e12, 1e12])
        assert np.abs(combined).max() < 2.5 * 2.0 + 1

    def test_a_variance_stays_positive_and_is_no_claim(self):
        before = np.array([0.01, 0.0], np.float32)
        combined = self.combined(before, [-0.1, 0.0], [1e9, 1e12])
        assert 0 < combined[0] < 0.1
        assert self.combined(before[:1], [0.02], [-1e9]) == pytest.approx([0.02])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_exact_arrays_of_every_precision_are_judged_without_a_warning(dtype):
    layout = Layout.of_model({"running_mean": np.ones(3, dtype)}, ["running_mean"])
    packed = layout.pack_exact({"running_mean": np.full(3, 2, dtype)})
    layout.require_exact(packed, {})
    spoiled = layout.pack_exact({"running_mean": np.full(3, np.inf, dtype)})
    with pytest.raises(ValueError, match="'running_mean' holds NaN or infinity"):
        layout.require_exact(spoiled, {})
