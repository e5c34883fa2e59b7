"""TensorRT-LLM's worker process: `worker.py` in its interpreter, and what its failures mean."""

from __future__ import annotations

import re
from pathlib import Path

from edgekit.backends.tensorrt_llm.worker import PROTOCOL, WORDS
from edgekit.backends.worker_failure import Meaning, Vendor
from edgekit.backends.worker_process import WorkerProcess
from edgekit.errors import (
    BackendError,
    BudgetError,
    InputError,
    MissingBackendError,
    StaleEngineError,
)

WORKER_PATH = Path(__file__).with_name("worker.py")
_POOL = re.compile(r"for max tokens in paged KV cache \((\d+)\)")
VENDOR = Vendor(
    name="TensorRT-LLM",
    words=WORDS,
    meanings={
        "memory": Meaning(
            error=BudgetError,
            words="the GPU has not enough memory for",
            hint="close other programs that use the GPU, or build the engine again with a smaller "
            "`--context`",
        ),
        "version": Meaning(
            error=MissingBackendError,
            words="this TensorRT-LLM cannot be used for",
            hint="name another interpreter with `--trtllm-python`",
        ),
        "foreign": Meaning(
            error=StaleEngineError,
            words="the engine was built for another GPU or TensorRT-LLM:",
            hint="build it again on this machine: `edgekit build`",
        ),
        "input": Meaning(error=InputError, words="TensorRT-LLM refuses"),
        "internal": Meaning(error=BackendError, words="TensorRT-LLM failed at"),
    },
    missing_hint="name TensorRT-LLM's interpreter with `--trtllm-python`",
)


class Worker(WorkerProcess):
    """A process that runs `worker.py`."""

    vendor = VENDOR
    protocol = PROTOCOL
    pool_tokens: int | None = None
    """Tokens that the KV cache holds, if the log of loading says so."""

    def note(self, line: str) -> None:
        """Read the size of the KV cache in a line of the log."""
        if found := _POOL.search(line):
            self.pool_tokens = int(found[1])
