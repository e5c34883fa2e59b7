"""One engine's process (`peers.worker speed`), which waits until it is its turn."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from peers.environment import PeerError, ending

TIMEOUT_S = 900.0
_PAUSE_S = 0.1
"""Before a turn: threads of the engine before may wait for work in a loop for some time."""


class Worker:
    """Starts the process and waits until its engine is loaded. Raises `PeerError`."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        title: str,
        environment: Mapping[str, str],
        log: Path,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.title = title
        self._log = log
        self.timeout_s = timeout_s
        self._buffer = b""
        self._answers, theirs = os.pipe()
        try:
            with log.open("wb") as file:
                self._process = subprocess.Popen(
                    [*map(str, command), str(theirs)],
                    env=dict(environment), stdin=subprocess.PIPE, stdout=file, stderr=file,
                    pass_fds=(theirs,), text=True,
                )  # fmt: skip
        except OSError as exc:
            os.close(self._answers)
            raise PeerError(f"{title}: {exc}") from exc
        finally:
            os.close(theirs)
        try:
            self.load_s = self._answer()["load_s"]
        except PeerError:
            self.close()
            raise

    def turn(self, number: int) -> dict[str, float]:
        """What turn `number` gave, with `load_s`. Raises `PeerError`."""
        time.sleep(_PAUSE_S)
        with suppress(OSError):  # it has ended: there is no answer either
            print(number, file=self._process.stdin, flush=True)
        return {**self._answer(), "load_s": self.load_s}

    def _answer(self) -> dict[str, float]:
        end = time.monotonic() + self.timeout_s
        while b"\n" not in self._buffer:
            left = max(0.0, end - time.monotonic())
            if not select.select([self._answers], [], [], left)[0]:
                raise PeerError(f"{self.title}: not done after {self.timeout_s:.0f} s")
            part = os.read(self._answers, 65536)
            if not part:
                raise PeerError(f"{self.title}: {ending(self._process.wait(), self._log)}")
            self._buffer += part
        line, self._buffer = self._buffer.split(b"\n", 1)
        found: dict[str, float] = json.loads(line)
        return found

    def close(self) -> None:
        """End the process, however it is. Safe to call twice."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(OSError):  # a line that could not be sent
                self._process.stdin.close()
            os.close(self._answers)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
