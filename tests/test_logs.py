"""The log: what others have said stands in one line of it, escaped, and not too long."""

import logging
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmedian.logs import LONGEST, Once, as_line, cut, failure_of, shown, text_of, warn
from tests.tools.ray_failures import CAUSE, CONTEXT, on_ray


class Raises:
    """Something that cannot be printed."""

    def __init__(self, error):
        self.error = error

    def __str__(self):
        raise self.error

    __repr__ = __str__


RAISED, NOT_LOADED = "ClientAppException", "LoadClientAppError"


class TestFailureOf:
    @pytest.mark.parametrize(
        ("told", "failure"),
        [
            ("out of memory", "out of memory"),
            ("<class 'ValueError'>:<'no data'>", "<class 'ValueError'>:<'no data'>"),
            (on_ray(RAISED, "KeyError: 'x'", CAUSE, f"{RAISED}: 'x'"), "KeyError: 'x'"),
            (
                on_ray(RAISED, "KeyError: 'x'", CAUSE, "OSError: no '>", CAUSE, f"{RAISED}:"),
                "OSError: no '>",
            ),
            (
                on_ray(RAISED, "KeyError: 'x'", CONTEXT, "OSError: no '>", CAUSE, f"{RAISED}:"),
                "OSError: no '>",
            ),
            (on_ray(NOT_LOADED, f"{NOT_LOADED}: no app"), f"{NOT_LOADED}: no app"),
            (
                on_ray(NOT_LOADED, "ModuleNotFoundError: torch", CAUSE, f"{NOT_LOADED}: x"),
                "ModuleNotFoundError: torch",
            ),
            (on_ray("Other"), on_ray("Other")),
        ],
        ids=[
            "a text",
            "a class",
            "raised",
            "raised from",
            "raised while another was handled",
            "not loaded",
            "not loaded from",
            "nothing",
        ],
    )
    @pytest.mark.parametrize("around", ["{}", "an Error (reason: {}). It was there."])
    def test_of_a_ray_workers_trace_only_what_the_app_raised_is_left(self, told, failure, around):
        assert failure_of(around.format(told)) == text_of(around.format(failure))

    def test_the_exception_that_ray_raises_is_as_good_as_what_flower_writes_of_it(self):
        written = on_ray(RAISED, "KeyError: 'x'", CAUSE, f"{RAISED}: 'x'")
        trace = written.split(":<'", 1)[1].removesuffix("'>")
        raised = type(f"RayTaskError({RAISED})", (Exception,), {"__module__": "ray.exceptions"})
        assert failure_of(raised(trace)) == failure_of(written) == "KeyError: 'x'"

    def test_a_trace_without_end_is_a_long_text(self):
        told = on_ray(RAISED, "KeyError: " + "x" * 10**6, CAUSE, f"{RAISED}:")
        assert failure_of(told) == text_of(told)


class TestAsLine:
    @given(text=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=LONGEST))
    def test_printable_text_stands_as_it_is(self, text):
        assert as_line(text) == text

    @given(text=st.text(max_size=2 * LONGEST))
    def test_any_text_becomes_one_printable_line_of_bounded_length(self, text):
        line = as_line(text)
        assert line.isprintable()
        assert len(line) < LONGEST + 60

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("a\nWARNING: b\r\tc", r"a\nWARNING: b\r\tc"),
            ("\x1b[2Jgone\x00\x9b", r"\x1b[2Jgone\x00\x9b"),
            ("a\u2028b\u2029c\x85d", r"a\u2028b\u2029c\x85d"),
            ("abc\u202egnp.exe\u200b", r"abc\u202egnp.exe\u200b"),
            ("lone \ud800", r"lone \ud800"),
            ("über 5 µm, 你好", "über 5 µm, 你好"),
        ],
        ids=["line ends", "terminal codes", "other line ends", "invisible", "surrogate", "letters"],
    )
    def test_what_ends_a_line_or_moves_the_cursor_is_escaped(self, text, line):
        assert as_line(text) == line

    @pytest.mark.parametrize("letter", ["x", "\n", "\U000e0001"], ids=repr)
    def test_long_text_is_cut_and_the_line_says_how_long_it_was(self, letter):
        line = as_line(letter * 10**7)
        assert line.startswith(letter.encode("unicode_escape").decode())
        assert line.endswith("… (cut, of 10000000 characters)")

    def test_text_of_the_greatest_length_is_not_cut(self):
        assert as_line("x" * LONGEST) == "x" * LONGEST
        assert "cut" in as_line("x" * (LONGEST + 1))


class TestTextOf:
    def test_is_what_str_makes_of_it(self):
        assert text_of(KeyError("a")) == "'a'"

    @pytest.mark.parametrize("error", [ValueError(), SystemExit(3), GeneratorExit()], ids=repr)
    def test_of_what_cannot_be_printed_is_its_type(self, error):
        assert text_of(Raises(error)) == "a Raises that cannot be printed"

    def test_ctrl_c_while_it_is_printed_passes_through(self):
        with pytest.raises(KeyboardInterrupt):
            text_of(Raises(KeyboardInterrupt()))

    def test_is_no_more_than_can_be_sent(self):
        assert text_of(OSError("lone \ud800")).encode() == rb"lone \ud800"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
)


class TestParts:
    """Texts of others in messages of ours: their start, and never the whole of a long one."""

    @pytest.mark.parametrize("most", [200, 10_000, 10**6])
    @pytest.mark.parametrize(
        "value", [10**5000, -(10**5000), 10**20_000], ids=["long", "negative", "longer"]
    )
    def test_an_integer_that_python_does_not_print_is_described(self, value, most):
        described = f"an integer of {value.bit_length()} bits"
        assert shown({"loss": [1, value]}, most=most) == f"{{'loss': [1, {described}]}}"

    @given(ANYTHING)
    def test_what_is_shown_is_the_repr_or_the_start_of_it(self, value):
        assert shown(value, most=10**6) == repr(value)
        found = shown(value, most=20)
        assert found == repr(value) or (found[-1] == "…" and len(found) == 21)

    @pytest.mark.parametrize(
        "value",
        ["x" * 10**6, b"x" * 10**6, [1] * 10**6, {"x" * 10**6: 1}, [[["x" * 10**6]]], 1 << 10**6],
        ids=["text", "bytes", "list", "name", "deep", "integer"],
    )
    def test_no_more_is_made_than_is_shown(self, value):
        tracemalloc.start()
        try:
            assert len(shown(value)) <= 201
            assert tracemalloc.get_traced_memory()[1] < 20_000
        finally:
            tracemalloc.stop()

    def test_what_is_cut_says_how_long_it_was_and_survives_in_a_line(self):
        assert cut("x" * 200) == "x" * 200
        assert cut("y" * 10**6) == f"{'y' * 200}… (cut, of 1000000 characters)"
        line = as_line(f"error 0: {text_of(ValueError('y' * 10**6))}")
        assert line.endswith("y… (cut, of 1000000 characters)")


def test_each_topic_is_said_once(caplog):
    once = Once()
    for number in range(3):
        for topic in ("one", ("another", 2)):
            once.warn(topic, "round %d", number)
    assert [record.getMessage() for record in caplog.records] == ["round 0"] * 2
    assert [once.is_first(topic) for topic in ("one", "a third", "a third")] == [False, True, False]


def test_a_warning_is_one_line_whatever_its_words_are(caplog):
    warn("%s of %d: %s", "a\nb", 3, Raises(ValueError()))
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("flwr", logging.WARNING)
    assert record.getMessage() == r"a\nb of 3: a Raises that cannot be printed"
