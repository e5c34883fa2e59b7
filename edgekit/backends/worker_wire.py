"""The child's half of a line protocol: a vendor's package in an interpreter of its own.

`worker_process` starts `PYTHON <backend>/worker.py`, and that file runs this one. It imports
nothing of edgekit and runs on Python 3.10 and later. One JSON object a line, in on stdin, out on
what was stdout; all that libraries print goes to stderr.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

WIRE_PATH = Path(__file__)
"""Beside the directories of the `worker.py`s: what mounts one of those mounts this, too."""
LOADED_MARK = "edgekit: loaded"  # on stderr, before `ready`: the log of loading ends here
Words = Mapping[str, tuple[str, ...]]
"""Kind of error -> what a vendor says of it, in small letters; the first that fits counts."""
MEMORY_WORDS = ("out of memory", "outofmemory", "bad_alloc", "cudaerrormemoryallocation",
                "memoryerror", "cannot allocate memory", "not enough memory")  # fmt: skip


class RefusedError(Exception):
    """A request that cannot be done, with the protocol's kind."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def kind_of_text(text: str, words: Words) -> str:
    """The kind that a vendor's words say, else "internal"."""
    said = [kind for kind, known in words.items() if any(word in text.lower() for word in known)]
    return said[0] if said else "internal"


def kind_of(exc: BaseException, words: Words) -> str:
    """The protocol's kind of an exception."""
    if isinstance(exc, RefusedError):
        return exc.kind
    if isinstance(exc, MemoryError) or type(exc).__name__ == "OutOfMemoryError":
        return "memory"
    kind = kind_of_text(f"{exc} {exc.__cause__ or ''} {exc.__context__ or ''}", words)
    if kind == "internal" and isinstance(exc, ValueError | FileNotFoundError):
        return "input"
    return "version" if kind == "internal" and isinstance(exc, ImportError) else kind


class Wire:
    """The protocol's two ends, taken away from whoever else reads stdin or prints."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self._in, self._out = os.fdopen(os.dup(0), "rb"), os.dup(1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        self._writing, self._handing = threading.Lock(), threading.Lock()
        self.messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._post: Callable[[dict[str, Any]], Any] | None = None

    def send(self, kind: str, /, **fields: Any) -> None:
        """Write one message. Ends the process when nobody reads."""
        line = memoryview(json.dumps({"type": kind, **fields}).encode() + b"\n")
        try:
            with self._writing:
                while line:
                    line = line[os.write(self._out, line) :]
        except OSError:
            os._exit(1)

    def fail(self, exc: BaseException, **fields: Any) -> None:
        """Write an error."""
        said = (str(exc) or type(exc).__name__)[:4000]
        self.send("error", kind=kind_of(exc, self._words), message=said, **fields)

    def read(self) -> None:
        """Read until stdin ends, then end the process, whatever else it does at that time."""
        for line in self._in:
            try:
                message = json.loads(line)
                kind = message["type"]
            except (ValueError, TypeError, KeyError) as exc:
                self.fail(RefusedError("input", f"a line that is not a message: {exc}"))
                continue
            with self._handing, contextlib.suppress(RuntimeError):  # the loop has ended
                if self._post is not None:
                    self._post(message)
                elif kind == "close":
                    os._exit(0)  # there is nothing to shut down
                else:
                    self.messages.put(message)
        os._exit(0)

    def serve(self, post: Callable[[dict[str, Any]], Any]) -> None:
        """From now on give messages to `post`, those that have come already first."""
        with self._handing:
            while not self.messages.empty():
                post(self.messages.get())
            self._post = post


def run(
    serve: Callable[[Wire, dict[str, Any]], Any],
    *,
    protocol: int,
    words: Words,
    environment: Mapping[str, str],
    here: Path,
) -> None:
    """Take the pipes, say hello, wait for the first message, `serve`, end the process.

    `here` is the worker's own directory: its neighbours are no libraries.
    """
    with contextlib.suppress(Exception):  # Linux kills this process with the thread it came from
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != here]
    os.environ.update({**environment, **os.environ})
    wire = Wire(words)
    threading.Thread(target=wire.read, daemon=True).start()
    wire.send("hello", protocol=protocol, pid=os.getpid(), python=sys.version.split()[0])
    try:
        first = wire.messages.get()
        if first["type"] != "load":
            raise RefusedError("input", "load must come first")
        serve(wire, first)
    except BaseException as exc:
        wire.fail(exc)
        os._exit(1)
    os._exit(0)  # libraries' threads and handlers may hang
