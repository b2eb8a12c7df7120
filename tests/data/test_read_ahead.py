"""Reading ahead in a thread: order, bounds, errors and dropping."""

from __future__ import annotations

import threading

import pytest

from rtdetr_tool.data.read_ahead import ReadAhead


def test_items_come_in_order_in_lists_of_the_given_length():
    with ReadAhead(range(7), 2) as ahead:
        assert list(ahead.lists(3)) == [[0, 1, 2], [3, 4, 5], [6]]


def test_no_more_items_than_the_bound_wait():
    produced = []

    def numbers():
        for number in range(100):
            produced.append(number)
            yield number

    with ReadAhead(numbers(), 4) as ahead:
        for position, (number,) in enumerate(ahead.lists(1)):
            assert number == position
            assert len(produced) <= position + 1 + 4 + 2  # waiting, and one in each hand


def test_an_error_arrives_after_the_items_before_it():
    def failing():
        yield 1
        yield 2
        raise ValueError("broken")

    received = []
    with ReadAhead(failing(), 4) as ahead, pytest.raises(ValueError, match="broken"):
        for items in ahead.lists(4):
            received += items
    assert received == [1, 2]


def test_a_consumer_that_stops_ends_the_thread():
    with ReadAhead(iter(int, 1), 2) as ahead:
        next(ahead.lists(1))
    assert not ahead._thread.is_alive()


def test_a_live_source_drops_the_oldest_items_and_counts_them():
    done = threading.Event()

    def live():
        yield from range(10)
        done.set()

    with ReadAhead(live(), 3, drop=True) as ahead:
        assert done.wait(10)
        received = [number for items in ahead.lists(8, wait=False) for number in items]
    assert received == [7, 8, 9] and ahead.dropped == 7
