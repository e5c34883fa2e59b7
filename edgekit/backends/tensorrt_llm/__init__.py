"""TensorRT-LLM: NVIDIA's engines for RTX cards and data-centre GPUs, in a Python of its own.

    checkpoint (edgekit.export) ─► trtllm-build on the GPU ─► engine ─► worker ─► tokens
               └─► reader: the same checkpoint, read as the builder does, on this processor

The checkpoint needs no GPU and is proved by `reader`; it can be carried to the device as a stage.
There `runtime` finds TensorRT-LLM (an interpreter or an image), `builder` runs its compiler with a
`command` that leaves nothing to defaults, and `session` speaks to a `worker` process in that
interpreter. `identity` says what an engine is bound to. From 1.3 on there is nothing to compile and
the checkpoint is another one: `kinds` has what differs, `pytorch` is the backend of that name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.backends.base import Wanted
from edgekit.backends.tensorrt_llm.backend import TensorRtLlm
from edgekit.backends.tensorrt_llm.kinds import ENGINE, kind_of
from edgekit.errors import EdgekitError
from edgekit.progress import Progress

if TYPE_CHECKING:
    from edgekit.backends.tensorrt_llm.reader import CheckpointReader

INFO = ENGINE.info


class TensorRtLlmBackend(TensorRtLlm):
    """Proves the checkpoint on a processor, drives the builder and its engine on the card."""

    kind = ENGINE
    info = INFO

    def advice(self) -> list[str]:
        """Which TensorRT-LLM is named or found and what it is used for, its notes, or why it is of
        no use."""
        from edgekit.backends.tensorrt_llm.backend import is_named
        from edgekit.backends.tensorrt_llm.runtime import find_runtime

        if not is_named():
            return []
        try:
            runtime = find_runtime(None)
        except EdgekitError as exc:
            return [f"tensorrt-llm: {exc}"]
        where = runtime.details.get("image", runtime.python[0])
        used = f"for the backend {kind_of(runtime).info.name}"
        return [f"TensorRT-LLM {runtime.version} is in {where}, {used}", *runtime.notes]

    def commands(self, wanted: Wanted, source: Path, engine: Path) -> list[str]:
        """What `compile` runs, to be read or pasted; starts nothing that compiles."""
        from edgekit.backends.tensorrt_llm.backend import is_named
        from edgekit.backends.tensorrt_llm.compiler import command_line
        from edgekit.backends.tensorrt_llm.runtime import VARIABLE, Runtime

        runtime = Runtime(kind="interpreter", python=(_PLACEHOLDER,), version="", details={})
        if is_named():
            runtime = self.runtime()
        line = command_line(runtime, source, engine, wanted, self.sizes(wanted))
        return [line.replace(_PLACEHOLDER, f'"${VARIABLE}"')]

    def compile(
        self, source: Path, out: Path, wanted: Wanted, *, report: Progress
    ) -> dict[str, Any]:
        """Run `trtllm-build` over the checkpoint, on the first GPU here that it is for."""
        from edgekit.backends.tensorrt_llm.compiler import compile_checkpoint

        identity = compile_checkpoint(
            self.runtime(), source, out, wanted, self.sizes(wanted), report=report
        )
        return identity.to_dict()

    def reader(self) -> type[CheckpointReader]:
        """What opens the checkpoint as this kind of engine computes."""
        from edgekit.backends.tensorrt_llm.reader import CheckpointReader

        return CheckpointReader


_PLACEHOLDER = "EDGEKIT-TRTLLM-PYTHON"
BACKEND = TensorRtLlmBackend()
