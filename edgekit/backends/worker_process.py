"""A backend's worker process as edgekit sees it: started, asked, watched, ended.

It runs the backend's `worker.py`, which drives a vendor's package in an interpreter of its own.
Every request is answered exactly once: by its last message, or by one error when the process ends,
is killed, does not answer, or is closed. Lines that are not messages, and messages of requests
nobody made, are counted and dropped: a container's entry point prints a banner first. More than
`MAX_GARBAGE` of them once it is loaded is an error, for whoever writes there does not speak the
protocol.

The thread that starts the process reads its lines until it has ended: Linux kills a worker with
the thread that started it, not with the process.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import queue
import select
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from time import monotonic
from typing import IO, Any, ClassVar

from edgekit.backends.environment import FOREIGN, without
from edgekit.backends.interpreter import run_program
from edgekit.backends.worker_failure import Vendor, copy_of
from edgekit.backends.worker_request import LAST_TYPES, Limits, Request, parse_line, read_lines
from edgekit.backends.worker_wire import LOADED_MARK
from edgekit.errors import BackendError, EdgekitError, InputError, MissingBackendError
from edgekit.progress import Progress, no_progress

MAX_GARBAGE = 100
_KEPT_LINES, _KEPT_CHARS = 40, 1000


class WorkerProcess:
    """A process that runs a `worker.py`. Its methods may be called from any thread."""

    vendor: ClassVar[Vendor]
    protocol: ClassVar[int]

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        hidden: Collection[str] = FOREIGN,
        stop_words: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> None:
        """Start `command`: its last word is the path of `worker.py`, or where a container has it. A
        container keeps stdin open (`-i`) and has no terminal; `stop_words` end one whose tool was
        killed. `environment` is added to this process's, less the variables that are `hidden`.

        Raises `MissingBackendError`, `BackendError`.
        """
        self.versions: dict[str, str] = {}
        self.device: dict[str, Any] = {}
        self.num_garbage = 0
        """Lines that were dropped, since it was loaded."""
        self._command, self._stop_words = tuple(command), tuple(stop_words)
        self._limits = limits or Limits()
        self._environment = {**without(os.environ, hidden), **(environment or {})}
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._numbers = itertools.count(1)
        self._requests: dict[int, Request] = {}
        self._forgotten: set[int] = set()
        """Cancelled ones whose last message has not come yet."""
        self._state: queue.SimpleQueue[dict[str, Any] | EdgekitError] = queue.SimpleQueue()
        """What comes before any request."""
        self._failure: EdgekitError | None = None
        self._verdict: EdgekitError | None = None
        """Why it is being ended, decided before it ended."""
        self._started, self._ended, self._log_read = (threading.Event() for _ in range(3))
        self._ponged = self._heard = monotonic()
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)
        self._thread = threading.Thread(target=self._run, name="engine-worker", daemon=True)
        self._thread.start()
        self._started.wait()
        self._deadline = monotonic() + self._limits.start_s
        try:
            self._greet()
        except BaseException:
            self.close()
            raise

    @property
    def said(self) -> tuple[str, ...]:
        """The last lines that it printed."""
        return tuple(self._lines)

    def load(self, options: Mapping[str, Any], *, report: Progress = no_progress) -> None:
        """Send `load` and wait until it is done.

        Raises `BudgetError`, `StaleEngineError`, `InputError`, `BackendError`.
        """
        self._send({**options, "type": "load"})
        while (message := self._next_state("loading"))["type"] != "ready":
            if message["type"] == "error":
                self._ended.wait(timeout=self._limits.close_s)  # then all it said has been read
                error = self.vendor.reported_error(message, self.said, doing="loading the engine")
                self.close()
                raise error
            report("load", int(message.get("step", 0)) + 1, 3)
        self._log_read.wait(timeout=1)  # the line it waits for was written before `ready`
        self.versions, self.device = dict(message["versions"]), dict(message["device"])
        self._ponged = self._heard = monotonic()
        self.num_garbage = 0
        threading.Thread(target=self._watch, name="engine-watch", daemon=True).start()
        report("load", 3, 3)

    def ask(self, kind: str, **fields: Any) -> Request:
        """Send a request; its messages come through what is returned.

        Raises, here or while it is iterated, `BackendError` and what a worker reports:
        `BudgetError`, `InputError`.
        """
        with self._lock:
            if self._failure is not None:
                raise copy_of(self._failure)
            if not self._requests:
                self._heard = monotonic()
            request = Request(next(self._numbers), self.forget)
            self._requests[request.number] = request
        try:
            self._send({**fields, "type": kind, "id": request.number})
        except EdgekitError:
            with self._lock:
                self._requests.pop(request.number, None)
            raise
        return request

    def forget(self, number: int) -> None:
        """Cancel a request; what still comes of it is dropped."""
        with self._lock:
            if self._requests.pop(number, None) is None or self._failure is not None:
                return
            self._forgotten.add(number)
        with contextlib.suppress(EdgekitError):
            self._send({"type": "cancel", "id": number})

    def close(self) -> None:
        """End the process: asked, then SIGTERM, then SIGKILL to its group. Safe to call twice."""
        atexit.unregister(self.close)
        self._doom(BackendError("the session is closed"))
        with contextlib.suppress(EdgekitError):
            self._send({"type": "close"}, wait_s=1)
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            if number is not None:
                self._signal(number)
            if self._ended.wait(timeout=self._limits.close_s):
                break
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=self._limits.close_s)

    def note(self, line: str) -> None:
        """A line of its log, for who knows what it says; called by a thread of its own."""

    def _greet(self) -> None:
        hello = self._next_state("starting")
        spoken = hello.get("protocol")
        if hello["type"] != "hello" or spoken != self.protocol:
            raise BackendError(
                f"the worker speaks protocol {spoken}, edgekit speaks {self.protocol}",
                hint="the container has the worker.py of another edgekit",
            )

    def _next_state(self, doing: str) -> dict[str, Any]:
        """The next message that belongs to no request."""
        try:
            message = self._state.get(timeout=max(0.0, self._deadline - monotonic()))
        except queue.Empty:
            late = f"is still {doing} after {self._limits.start_s:g} s"
            error = self._doom(BackendError(f"the {self.vendor.name} worker {late}"))
            self._signal(signal.SIGKILL)
            self.close()
            raise copy_of(error) from None
        if isinstance(message, EdgekitError):
            raise copy_of(message)
        return message

    def _send(self, message: dict[str, Any], *, wait_s: float | None = None) -> None:
        try:
            line = json.dumps(message, allow_nan=False).encode() + b"\n"
        except (TypeError, ValueError) as exc:
            raise InputError(f"not a request for the worker: {exc}") from exc
        late = BackendError(f"the {self.vendor.name} worker does not read its requests")
        patience = -1 if wait_s is None else wait_s
        if self._process is None or not self._writing.acquire(timeout=patience):
            raise late
        try:
            stdin = self._process.stdin
            assert stdin is not None
            rest = memoryview(line)  # a short line is written whole or not at all
            while rest:
                with contextlib.suppress(BlockingIOError):
                    rest = rest[os.write(stdin.fileno(), rest) :]
                    continue
                poll = select.poll()
                poll.register(stdin, select.POLLOUT)
                if not poll.poll(None if wait_s is None else wait_s * 1000):
                    raise late
        except (OSError, ValueError) as exc:
            self._ended.wait(timeout=self._limits.close_s)
            error = self._failure or BackendError(f"the {self.vendor.name} worker is gone: {exc}")
            raise copy_of(error) from exc
        finally:
            self._writing.release()

    def _run(self) -> None:
        """Start the process, read it, and tell everybody when it has ended."""
        try:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is the parent's
            )  # fmt: skip
        except (OSError, ValueError) as exc:
            self._started.set()
            self._fail(
                MissingBackendError(
                    f"cannot start {self._command[0]}: {exc}",
                    hint=self.vendor.missing_hint,
                )
            )
            return
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        os.set_blocking(process.stdin.fileno(), False)
        self._started.set()
        log = threading.Thread(target=self._read_log, args=(process.stderr,), daemon=True)
        log.start()
        with contextlib.suppress(OSError, ValueError):
            self._read(process.stdout)
        try:  # what has closed its end, or talks nonsense, is of no use
            process.wait(timeout=self._limits.close_s)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            process.wait()
        self._signal(signal.SIGKILL)  # whoever it left behind in its group
        log.join(timeout=1)  # someone outside it may hold the pipe
        self._fail(self._verdict or self.vendor.ended_error(process.returncode, self.said))
        process.stdout.close()
        with self._writing, contextlib.suppress(OSError):
            process.stdin.close()
        if self._stop_words and process.returncode < 0:  # its container runs on
            run_program(self._stop_words, self._environment)

    def _read(self, stdout: IO[bytes]) -> None:
        for line in read_lines(stdout):
            message = parse_line(line)
            if message is not None and self._route(message):
                continue
            self.num_garbage += 1
            self._lines.append(line[:_KEPT_CHARS].decode(errors="replace").rstrip())
            if self.num_garbage > MAX_GARBAGE and self.versions:
                self._doom(BackendError("what the worker writes is not the protocol"))
                self._signal(signal.SIGKILL)
                return

    def _route(self, message: dict[str, Any]) -> bool:
        """Give a message to who waits for it; False when nobody does."""
        kind, number = message["type"], message.get("id")
        if kind == "pong":
            self._ponged = monotonic()
            return True
        if number is None:
            is_awaited = not self.versions and kind in ("hello", "loading", "ready", "error")
            if is_awaited:
                self._state.put(message)
            return is_awaited
        with self._lock:
            self._heard = monotonic()
            is_last = kind in LAST_TYPES
            if number in self._forgotten:
                if is_last:
                    self._forgotten.discard(number)
                return True
            request = self._requests.get(number)
            if request is None or not (is_last or kind == "tokens"):
                return False
            if is_last:
                del self._requests[number]
        is_error = kind == "error"
        failed = self.vendor.reported_error
        request.put(failed(message, (), doing="answering") if is_error else message)
        return True

    def _read_log(self, stderr: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError), stderr:
            for line in read_lines(stderr):
                text = line[:_KEPT_CHARS].decode(errors="replace").rstrip()
                if text == LOADED_MARK:
                    self._log_read.set()
                    continue
                self.note(text)
                if text:
                    self._lines.append(text)

    def _watch(self) -> None:
        """Ping until it ends; kill it when it does not answer."""
        while not self._ended.wait(timeout=self._limits.ping_every_s):
            with contextlib.suppress(EdgekitError):
                self._send({"type": "ping"}, wait_s=self._limits.ping_every_s)
            now = monotonic()
            if now - self._ponged > self._limits.ping_s + self._limits.ping_every_s:
                why = f"has not answered for {self._limits.ping_s:g} s"
            elif self._requests and now - self._heard > self._limits.silence_s:
                why = f"has made no token for {self._limits.silence_s:g} s"
            else:
                continue
            self._doom(BackendError(f"the {self.vendor.name} worker {why}, and was ended"))
            self._signal(signal.SIGKILL)
            return

    def _doom(self, error: EdgekitError) -> EdgekitError:
        """Note why it will end; the first reason counts."""
        with self._lock:
            self._verdict = self._verdict or error
            return self._verdict

    def _fail(self, error: EdgekitError) -> None:
        """It has ended: answer every open request with `error`, and all that come."""
        with self._lock:
            self._failure = error
            requests = list(self._requests.values())
            self._requests.clear()
        for request in requests:
            request.put(copy_of(error))
        self._state.put(error)
        self._ended.set()

    def _signal(self, number: int) -> None:
        """Send a signal to the process and what it started."""
        if self._process is not None and not self._ended.is_set():
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, number)
