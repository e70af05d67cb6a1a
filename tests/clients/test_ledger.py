"""A client's ledger: answers are counted for as long as its folder exists."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmedian.clients.ledger import Answered, Ledger
from fedmedian.privacy.accounting import PrivacyLoss
from fedmedian.privacy.amplification import ORDERS

amounts = st.floats(0, allow_nan=False)


class TestLedger:
    def test_begins_with_nothing_and_makes_its_folder(self, tmp_path):
        with Ledger(str(tmp_path / "a" / "b")) as ledger:
            assert ledger.read() == Answered()
        assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700

    @given(
        number=st.integers(0, 2**63),
        rounds=st.dictionaries(st.integers(0, 2**64).map(str), st.integers(0, 2**63), max_size=3),
        loss=st.builds(
            PrivacyLoss,
            amounts,
            amounts,
            st.sampled_from([(), tuple(map(float, range(len(ORDERS))))]),
        ),
    )
    def test_reads_what_was_written_to_the_last_bit(self, tmp_path_factory, number, rounds, loss):
        folder, answers = str(tmp_path_factory.mktemp("ledger")), Answered(number, rounds, loss)
        with Ledger(folder) as ledger:
            ledger.write(answers)
        with Ledger(folder) as ledger:
            assert ledger.read() == answers

    def test_counts_every_one_of_many_answers_at_once(self, tmp_path):
        def answer(_):
            with Ledger(str(tmp_path)) as ledger:
                before = ledger.read()
                ledger.write(Answered(before.number + 1))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(answer, range(50)))
        with Ledger(str(tmp_path)) as ledger:
            assert ledger.read().number == 50

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{}",
            "[]",
            "null",
            '{"answers": 1',
            "[" * 100_000,
            *(
                json.dumps(Answered(1).encode() | changed)
                for changed in (
                    {"answers": "1"},
                    {"answers": 1.0},
                    {"as-sent": -1.0},
                    {"as-sent": float("nan")},
                    {"divergences": None},
                    {"divergences": ["1"]},
                    {"last-round-of-7": None},
                    {"answers": -1},
                    {"last-round-of-7": -1},
                    {"divergences": [0.5]},
                    {"other": 3},
                )
            ),
        ],
        ids=lambda text: text[:90],
    )
    def test_that_is_damaged_is_not_read_as_empty(self, text, tmp_path):
        (tmp_path / "answers.json").write_text(text)
        with Ledger(str(tmp_path)) as ledger, pytest.raises(ValueError, match="is damaged") as seen:
            ledger.read()
        assert str(tmp_path) in str(seen.value)

    @pytest.mark.parametrize("target", ["there.json", "missing.json"])
    def test_that_is_a_link_is_refused(self, target, tmp_path):
        """As to a disk that is not there, or is not written to."""
        with Ledger(str(tmp_path)) as ledger:
            ledger.write(Answered(5))
        (tmp_path / "answers.json").rename(tmp_path / "there.json")
        (tmp_path / "answers.json").symlink_to(target)
        with Ledger(str(tmp_path)) as ledger, pytest.raises(OSError, match=r"answers\.json"):
            ledger.read()

    def test_is_whole_if_writing_fails(self, tmp_path, monkeypatch):
        with Ledger(str(tmp_path)) as ledger:
            ledger.write(Answered(1))
            monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
            with pytest.raises(OSError, match="full"):
                ledger.write(Answered(2))
            assert ledger.read() == Answered(1)
