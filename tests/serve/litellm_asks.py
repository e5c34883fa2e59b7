"""Calls of litellm, from stdin, and what they gave, on stdout, as JSON.

A process of its own, for litellm leaves connections and event loops open.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
from typing import Any

# else it fetches its list of prices when it is imported
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"


def loopback_only(connect: Any) -> Any:
    """A `socket.connect` that reaches this machine and nothing else."""

    def checked(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            assert address[0] in ("127.0.0.1", "::1", "localhost"), address
        connect(self, address)

    return checked


def result_of(litellm: Any, call: dict[str, Any]) -> Any:
    """One call: `function` is litellm's, the rest are its arguments."""
    function = getattr(litellm, call.pop("function"))
    try:
        answer = function(**call)
        if call.get("stream"):
            return [part.model_dump(mode="json") for part in answer]
    except litellm.exceptions.BadRequestError as exc:
        return {"error": type(exc).__name__, "message": str(exc)}
    return answer.model_dump(mode="json")


if __name__ == "__main__":
    socket.socket.connect = loopback_only(socket.socket.connect)  # type: ignore[method-assign]
    module: Any = importlib.import_module("litellm")
    module.suppress_debug_info = True
    results = [result_of(module, call) for call in json.load(sys.stdin)]
    sys.stdout.write(json.dumps(results) + "\n")
