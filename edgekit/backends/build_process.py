"""A vendor's compiler as a process: its log is kept and read, it ends with whoever waits for it.

The process leads a group of its own, so that Ctrl-C ends it with all that it started. It may be
silent for as long as it likes: tuning kernels takes minutes without a word.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, BinaryIO

from edgekit.backends.build_log import TOTAL, BuildLog, Lines
from edgekit.progress import Progress

STEP = "compile"
GRACE_S = 10.0
"""Between the request to end and the end by force."""
_POLL_S = 0.5
_DRAIN_S = 2.0
"""For the rest of the log, when the process is gone and something it started still holds it."""
_CHUNK = 65536


def run_logged(
    command: Sequence[str],
    log: BuildLog,
    file: BinaryIO,
    *,
    report: Progress,
    environment: Mapping[str, str],
    stop_words: Sequence[str] = (),
    grace_s: float = GRACE_S,
) -> int:
    """Run `command` in the directory of `file`, which takes all that it prints, and read that into
    `log`; its exit status. Raises `OSError` when it does not start.

    When this is left by an exception, the process is ended first; `stop_words` end a container.
    """
    process = subprocess.Popen(
        list(command), env=dict(environment), cwd=Path(file.name).parent,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        _follow(process, log, file, report)
    except BaseException:
        _stop(process, stop_words, environment, grace_s)
        raise
    return process.returncode


def _follow(
    process: subprocess.Popen[bytes], log: BuildLog, file: BinaryIO, report: Progress
) -> None:
    """Read to the end of the log, or to the end of the process."""
    assert process.stdout is not None
    chunks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    # a thread, so that Ctrl-C and the end of the process are seen while nothing is printed
    threading.Thread(
        target=_read, args=(process.stdout, chunks.put), name="engine-build", daemon=True
    ).start()
    lines = Lines()
    silent_until: float | None = None

    def tell() -> None:
        report(STEP, min(log.done, TOTAL - 1), TOTAL)

    while True:
        tell()
        try:
            data = chunks.get(timeout=_POLL_S)
        except queue.Empty:
            if process.poll() is None:
                continue
            now = time.monotonic()
            silent_until = now + _DRAIN_S if silent_until is None else silent_until
            if now < silent_until:
                continue
            # something that it started holds the log open: it is of no use any more
            _signal_group(process.pid, signal.SIGKILL)
            data = b""
        file.write(data)
        file.flush()
        for line in lines.feed(data, final=not data):
            before = log.done
            log.feed(line)
            if log.done > before:
                tell()
        if not data:
            break
    process.wait()


def _read(stream: IO[bytes], put: Callable[[bytes], None]) -> None:
    with stream:
        while True:
            try:
                data = os.read(stream.fileno(), _CHUNK)
            except OSError:
                data = b""
            put(data)
            if not data:
                return


def _stop(
    process: subprocess.Popen[bytes],
    stop_words: Sequence[str],
    environment: Mapping[str, str],
    grace_s: float,
) -> None:
    """End the whole group: asked first, forced after a while or at a second Ctrl-C."""
    try:
        _signal_group(process.pid, signal.SIGTERM)
        process.wait(grace_s)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        pass
    finally:
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
        if stop_words:
            # the tool is gone, its container may not be
            with suppress(OSError, subprocess.SubprocessError):
                subprocess.run(
                    list(stop_words), env=dict(environment), stdin=subprocess.DEVNULL,
                    capture_output=True, timeout=GRACE_S, check=False,
                )  # fmt: skip


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
