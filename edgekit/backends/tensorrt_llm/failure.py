"""What a worker reports, or how it ended, as edgekit's errors."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.backends.tensorrt_llm.worker import kind_of_text
from edgekit.errors import (
    BackendError,
    BudgetError,
    EdgekitError,
    InputError,
    MissingBackendError,
    StaleEngineError,
)

_SHOWN_LINES = 3
_KINDS: Mapping[str, tuple[type[EdgekitError], str, str]] = {
    "memory": (
        BudgetError,
        "the GPU has not enough memory for",
        "close other programs that use the GPU, or build the engine again with a smaller "
        "`--context`",
    ),
    "version": (
        MissingBackendError,
        "this TensorRT-LLM cannot be used for",
        "name another interpreter with `--trtllm-python`",
    ),
    "foreign": (
        StaleEngineError,
        "the engine was built for another GPU or TensorRT-LLM:",
        "build it again on this machine: `edgekit build`",
    ),
    "input": (InputError, "TensorRT-LLM refuses", ""),
    "internal": (BackendError, "TensorRT-LLM failed at", ""),
}


def reported_error(message: Mapping[str, Any], said: Sequence[str], *, doing: str) -> EdgekitError:
    """The error for an `error` of the protocol; `said` is what the worker printed before it."""
    kind, text = str(message.get("kind")), str(message.get("message"))
    if kind not in _KINDS or kind == "internal":
        # the reason of a failure is often in the log of the C++ runtime alone
        kind = kind_of_text("\n".join([text, *said]))
    error, words, hint = _KINDS[kind]
    shown = _last(said) if kind == "internal" else ""
    return error(f"{words} {doing}: {text}{shown}", hint=hint or None)


def ended_error(status: int, said: Sequence[str]) -> EdgekitError:
    """The error for a process that ended without being asked to."""
    how = f"exit status {status}"
    if status < 0:
        try:
            how = signal.Signals(-status).name
        except ValueError:
            how = f"signal {-status}"
    if kind_of_text("\n".join(said)) == "memory":
        error, words, hint = _KINDS["memory"]
        return error(f"{words} the TensorRT-LLM worker ({how}){_last(said)}", hint=hint)
    killed = "the system may have killed it for memory" if status == -signal.SIGKILL else None
    return BackendError(f"the TensorRT-LLM worker ended ({how}){_last(said)}", hint=killed)


def copy_of(error: EdgekitError) -> EdgekitError:
    """One to raise: an exception that is raised in two threads mixes their tracebacks."""
    return type(error)(str(error), hint=error.hint)


def _last(said: Sequence[str]) -> str:
    """The last lines it printed, as the end of a sentence."""
    return f"; it said: {' | '.join(said[-_SHOWN_LINES:])}" if said else ""
