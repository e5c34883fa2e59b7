"""Ctrl-C where it must not be raised: a second press while the first one is being answered.

Python raises `KeyboardInterrupt` at whichever instruction the main thread happens to run, also in
a clean-up that the press before began, and half a clean-up is worse than none. Other threads are
never interrupted, so that in one of them these functions do nothing.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def ignored() -> Iterator[None]:
    """Ctrl-C does nothing inside: for the clean-up of what is already being left."""
    usual = stop_listening()
    try:
        yield
    finally:
        if usual is not None:
            signal.signal(signal.SIGINT, usual)


def follow_stdin() -> None:
    """From here on the end of stdin is Ctrl-C: for a process that another one drives, which may be
    lost with the connection to it."""

    def watch() -> None:
        with suppress(OSError):
            while os.read(0, 4096):
                pass
        os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
    threading.Thread(target=watch, daemon=True).start()


def stop_listening() -> signal._HANDLER:
    """Ctrl-C does nothing from here on. Returns the handler before; None if it is not ours.

    The interpreter's own end takes every handler of Python's away, so that a press would kill the
    process and with it its exit code; a signal that is ignored stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGINT, signal.SIG_IGN)
