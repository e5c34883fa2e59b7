"""Runs as root beside systemd: starts edgekit-serve, looks at it, kills it, stops it.

What was seen goes to `seen.json` in the directory given, the journal beside it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

UNIT = "edgekit-serve"
BODY = {
    "messages": [{"role": "user", "content": "Hello?"}],
    "max_tokens": 400,
    "n": 6,
    "stream": True,
    "logit_bias": {"2": -100},  # the end of an answer
}


def shell(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def show(name: str) -> str:
    return shell("systemctl", "show", UNIT, f"--property={name}", "--value")


def ask(method: str, path: str, *, key: str | None, body: Any = None) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", 8000, timeout=60)
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    connection.request(method, path, json.dumps(body) if body else None, headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def wait_until(is_true: Any) -> bool:
    for _ in range(600):
        if is_true():
            return True
        time.sleep(0.1)
    return False


def run_again(number: signal.Signals) -> bool:
    """Whether a signal to the process ends in another one that answers."""
    old = show("MainPID")
    os.kill(int(old), number)
    return wait_until(lambda: show("MainPID") not in ("0", old) and show("SubState") == "running")


def look() -> dict[str, Any]:
    installed = subprocess.run(["sh", "/opt/edgekit/bin/install"])
    seen: dict[str, Any] = {"start": installed.returncode}
    pid = show("MainPID")
    seen |= {"state": show("ActiveState"), "text": show("StatusText")}
    status = Path(f"/proc/{pid}/status").read_text()
    seen["process"] = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    directory = f"/proc/{pid}/root/run/credentials/{UNIT}.service"
    key = Path(directory, "keys")
    seen["key_mode"] = oct(key.stat().st_mode & 0o777)
    key_text = key.read_text().strip()
    seen["without_key"] = ask("GET", "/v1/models", key=None)[0]
    seen["models"] = ask("GET", "/v1/models", key=key_text)
    seen["health"] = ask("GET", "/health", key=None)[0]
    seen["after_kill"] = run_again(signal.SIGKILL)
    seen["after_stop"] = run_again(signal.SIGSTOP)  # says nothing more: the watchdog's case
    seen["restarts"] = show("NRestarts")
    answers: list[Any] = []
    asking = threading.Thread(
        target=lambda: answers.append(ask("POST", "/v1/chat/completions", key=key_text, body=BODY))
    )
    asking.start()
    busy = lambda: json.loads(ask("GET", "/v1/status", key=key_text)[1])["slots"]["busy"]  # noqa: E731
    seen["was_busy"] = wait_until(busy)
    seen["stop"] = subprocess.run(["systemctl", "stop", UNIT]).returncode
    asking.join()
    seen["answer"] = answers[0]
    seen["result"] = show("Result")
    return seen


if __name__ == "__main__":
    results = Path(sys.argv[1])
    try:
        results.joinpath("seen.json").write_text(json.dumps(look()))
    finally:
        results.joinpath("journal").write_text(shell("journalctl", "--no-pager", "-u", UNIT))
