"""Signals: the first asks for a checkpoint, and what comes after it."""

import os
import signal

import pytest

from retina.runs.interruption import InterruptionGuard


@pytest.fixture
def outside():
    """The signals that reached the handlers of before the guard."""
    came = []
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in (signal.SIGTERM, signal.SIGINT)}
    yield came
    for number, handler in before.items():
        signal.signal(number, handler)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def send(number):
    os.kill(os.getpid(), number)


def test_nothing_came(outside):
    with InterruptionGuard(print) as guard:
        assert guard.signal == ""
    send(signal.SIGTERM)
    assert outside == [signal.SIGTERM]


@pytest.mark.parametrize(("seconds", "reaches"), [(0.0, 0), (1.9, 0), (2.1, 1), (60.0, 1)])
def test_a_launchers_second_sigterm_is_the_first_once_more(outside, seconds, reaches):
    clock, said = Clock(), []
    with InterruptionGuard(said.append, clock) as guard:
        send(signal.SIGTERM)
        clock.now = seconds
        send(signal.SIGTERM)
        assert guard.signal == "SIGTERM" and len(said) == 1
        assert outside == [signal.SIGTERM] * reaches


def test_ctrl_c_twice_is_the_way_out(outside):
    with InterruptionGuard(lambda _: None, Clock()) as guard:
        send(signal.SIGINT)
        assert guard.signal == "SIGINT" and outside == []
        send(signal.SIGINT)
        assert outside == [signal.SIGINT]


def test_kinds_are_counted_apart(outside):
    with InterruptionGuard(lambda _: None, Clock()) as guard:
        send(signal.SIGINT)
        send(signal.SIGTERM)
        assert guard.signal == "SIGTERM" and outside == []
