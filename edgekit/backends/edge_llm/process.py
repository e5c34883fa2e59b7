"""Edge-LLM's worker process: `worker.py` in its interpreter, and what its failures mean."""

from __future__ import annotations

from pathlib import Path

from edgekit.backends.edge_llm.runtime import OPTION
from edgekit.backends.edge_llm.worker import PROTOCOL, WORDS
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
VENDOR = Vendor(
    name="Edge-LLM",
    words=WORDS,
    meanings={
        "memory": Meaning(
            error=BudgetError,
            words="the device has not enough memory for",
            hint="close other programs, give the page cache back with `sudo sync && sudo sysctl "
            "vm.drop_caches=3`, or build the engine again with a smaller `--context`",
        ),
        "version": Meaning(
            error=MissingBackendError,
            words="this Edge-LLM cannot be used for",
            hint="it runs on Jetson Thor with JetPack 7.0 to 7.2 and on Jetson Orin with JetPack "
            "7.2, with JetPack's TensorRT in its environment; `edgekit doctor` says what is here",
        ),
        "foreign": Meaning(
            error=StaleEngineError,
            words="the engine was built for another device, TensorRT or checkpoint:",
            hint="build it again on this machine: `edgekit build`",
        ),
        "input": Meaning(error=InputError, words="Edge-LLM refuses"),
        "internal": Meaning(error=BackendError, words="Edge-LLM failed at"),
    },
    missing_hint=f"name Edge-LLM's interpreter with `{OPTION}`",
)


class Worker(WorkerProcess):
    """A process that runs `worker.py`."""

    vendor = VENDOR
    protocol = PROTOCOL
