"""What TensorRT-RTX says, kept instead of printed: its last errors go into ours.

The library registers one logger for the whole process and ignores the others, so there is one.
"""

from __future__ import annotations

import logging
from collections import deque
from functools import cache
from typing import Any

from edgekit.errors import BackendError, BudgetError, EdgekitError, MissingBackendError

_LEVELS = {
    "INTERNAL_ERROR": logging.ERROR,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "INFO": logging.DEBUG,  # several lines for every engine
    "VERBOSE": logging.DEBUG,
}
_KEPT_LINES = 4
_NO_DRIVER = "CUDA driver version is insufficient"
_OUT_OF_MEMORY = ("outofmemory", "out of memory", "memory allocation", "cudaerror 2:")
_logger = logging.getLogger(__name__)


class VendorLog:
    """The logger that TensorRT-RTX is given, and the last errors that it was told."""

    def __init__(self) -> None:
        """Raises `MissingBackendError`."""
        trt = import_bindings()
        # made by hand: a base class that is found at run time is none to a type checker
        kind = type("Logger", (trt.ILogger,), {"log": lambda _, severity, msg: hear(severity, msg)})

        def hear(severity: Any, message: str) -> None:
            self._hear(severity.name, message)

        self._errors: deque[str] = deque(maxlen=_KEPT_LINES)
        self.logger: Any = kind()

    def clear(self) -> None:
        """Forget what was said so far."""
        self._errors.clear()

    @property
    def said(self) -> str:
        """The last errors, in one line; empty when there were none.

        Without a driver every failure is followed by a line about that, whatever it was.
        """
        told = [line for line in self._errors if _NO_DRIVER not in line]
        return "; ".join(told or self._errors)

    def failure(
        self,
        doing: str,
        exc: Exception | None = None,
        *,
        hint: str = "`edgekit doctor` says what is on this machine",
    ) -> EdgekitError:
        """The error to raise when `doing` failed: `BudgetError` when memory was short."""
        said = self.said or (str(exc) if exc else "") or "it does not say why"
        if any(words in said.lower() for words in _OUT_OF_MEMORY):
            return BudgetError(
                f"the GPU has not enough memory for {doing}: {said}",
                hint="close other programs that use the GPU, or build the engine again with a "
                "smaller `--context`",
            )
        return BackendError(
            f"TensorRT-RTX failed at {doing}: {said}",
            hint=hint,
        )

    def _hear(self, severity: str, message: str) -> None:
        level = _LEVELS.get(severity, logging.DEBUG)
        if level >= logging.ERROR:
            self._errors.append(" ".join(message.split()))
        _logger.log(min(level, logging.INFO), "%s", message)  # errors come back as exceptions


@cache
def vendor_log() -> VendorLog:
    """The one of this process. Raises `MissingBackendError`."""
    return VendorLog()


def import_bindings() -> Any:
    """The module `tensorrt_rtx_bindings`. Raises `MissingBackendError`."""
    try:
        import tensorrt_rtx_bindings
    except ImportError as exc:
        raise MissingBackendError(
            "TensorRT-RTX is not installed: tensorrt_rtx_bindings",
            hint="pip install 'edgekit[rtx]'",
        ) from exc
    return tensorrt_rtx_bindings
