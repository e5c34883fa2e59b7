"""A press of Ctrl-C where it must do nothing."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from edgekit import interrupts


@pytest.fixture(autouse=True)
def _usual_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_press_inside_does_nothing_and_one_after_it_does() -> None:
    with interrupts.ignored():
        press()
    with pytest.raises(KeyboardInterrupt):
        press()
        signal.sigtimedwait([], 0.1)  # any call at which it can be raised


def test_the_handler_comes_back_after_a_failure() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="as it was"), interrupts.ignored():
        raise ValueError("as it was")
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_change_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def work() -> None:
        with interrupts.ignored():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_no_press_is_heard_any_more() -> None:
    interrupts.stop_listening()
    press()
