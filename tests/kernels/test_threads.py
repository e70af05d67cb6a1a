"""Work on threads: the same results, in order, and as many at once as there may be."""

from threading import Barrier, get_ident

import pytest

from fedmedian.kernels.threads import in_threads, usual_threads


@pytest.mark.parametrize("threads", [1, 2, 9])
def test_results_come_in_the_order_of_the_items(threads):
    assert in_threads(lambda item: item * item, range(5), threads) == [0, 1, 4, 9, 16]
    assert in_threads(lambda item: item * item, [], threads) == []


def test_as_many_threads_work_at_once_as_are_allowed():
    barrier = Barrier(3, timeout=10)
    workers = {*in_threads(lambda _: (barrier.wait(), get_ident())[1], range(3), 3)}
    assert len(workers) == 3
    assert get_ident() in workers


def test_one_thread_is_the_callers_own():
    assert {*in_threads(lambda _: get_ident(), range(3), 1)} == {get_ident()}
    assert in_threads(lambda _: get_ident(), [0], 4) == [get_ident()]


def test_an_error_of_the_work_is_raised():
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda item: 1 / item, [1, 0, 1], 2)


def test_after_an_error_no_other_item_is_begun():
    begun = []

    def work(item):
        begun.append(item)
        raise ValueError(item)

    with pytest.raises(ValueError, match=r"0|1"):
        in_threads(work, range(100), 2)
    assert len(begun) <= 2


def test_some_threads_are_usual_but_not_very_many():
    assert 1 <= usual_threads() <= 8
