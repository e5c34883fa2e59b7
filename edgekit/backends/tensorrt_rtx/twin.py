"""The same session on the processor: host memory, and ONNX Runtime over the decoder graph.

An engine of TensorRT-RTX cannot be run, nor even looked into, without a card. Its graph can: the
session, its buffers and its bookkeeping are those of the card, only the kernels are others. That is
how `edgekit build` proves the numbers of an engine that it compiled for another machine.

ONNX Runtime's TensorScatter writes in place when `past` and `present` are bound to one address
(1.32: 4 us for a buffer of 160 MB, 22 ms with two); bound apart it copies, and is right as well.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.backends.onnxruntime.binding import GraphIO
from edgekit.backends.onnxruntime.providers import Provider
from edgekit.backends.onnxruntime.session import load_graph
from edgekit.backends.tensorrt_rtx.device import ALIGNMENT, Call
from edgekit.backends.tensorrt_rtx.layout import FLOAT_GRAPH_FILE, GRAPH_FILE
from edgekit.backends.tensorrt_rtx.session import RtxSession, Shapes
from edgekit.errors import BackendError, BudgetError, InputError
from edgekit.units import format_bytes

CHUNK_TOKENS = 256
MAX_LOGITS = 32
_PROCESSOR = Provider(
    name="CPUExecutionProvider", graph=GRAPH_FILE, device="cpu", kv_dtype="float16"
)


_SETTINGS = {
    # otherwise INT4 products round their activations to 8 bits, as fast engines for a processor do
    "session.qdq_matmulnbits_accuracy_level": "1",
}


def open_twin(
    graph: Path,
    *,
    context_tokens: int,
    num_slots: int,
    threads: int | None,
    chunk_tokens: int = CHUNK_TOKENS,
    max_logits: int = MAX_LOGITS,
    keeps_activations: bool = False,
) -> RtxSession:
    """Open the directory `graph` (`model.onnx` and its data) on the processor.

    `context_tokens` is free up to what the graph was written for. With `keeps_activations` they
    are not rounded, where the engine would. Raises `InputError`,
    `EngineError`, `BackendError`, `BudgetError`.
    """
    name = GRAPH_FILE
    if keeps_activations and (graph / FLOAT_GRAPH_FILE).is_file():
        name = FLOAT_GRAPH_FILE
    session = load_graph(graph / name, _PROCESSOR, threads, _SETTINGS)
    io = GraphIO.of(session)
    if context_tokens > io.max_context_tokens:
        raise InputError(
            f"this graph was built for {io.max_context_tokens} tokens of context, "
            f"asked for {context_tokens}",
            hint="build it again with a larger `--context`",
        )
    shapes = Shapes(
        num_layers=io.num_layers,
        num_kv_heads=io.num_kv_heads,
        head_dim=io.head_dim,
        vocab_size=io.vocab_size,
        capacity=context_tokens,
        num_slots=num_slots,
        chunk_tokens=chunk_tokens,
        max_logits=max_logits,
        has_decode_profile=False,
    )
    return RtxSession(HostDevice(), OrtExecutor(session), shapes, context_tokens=context_tokens)


class HostDevice:
    """`Device` over the memory of the process: addresses of numpy arrays, copies at once."""

    name = "the processor"
    sm = None
    driver = ""

    def __init__(self) -> None:
        self._blocks: dict[int, NDArray[np.uint8]] = {}

    @property
    def total_bytes(self) -> int:
        """Memory of the machine."""
        import psutil

        return int(psutil.virtual_memory().total)

    @property
    def free_bytes(self) -> int:
        """What a new program can have without swapping."""
        import psutil

        return int(psutil.virtual_memory().available)

    def allocate(self, num_bytes: int) -> int:
        """Zeros; their pages are taken when they are first written."""
        try:
            block = np.zeros(num_bytes + ALIGNMENT, np.uint8)
        except (MemoryError, ValueError) as exc:  # ValueError: more than an address can say
            raise BudgetError(
                f"{format_bytes(num_bytes)} of memory cannot be had", hint="lower `--context`"
            ) from exc
        address = -(-block.ctypes.data // ALIGNMENT) * ALIGNMENT
        self._blocks[address] = block
        return address

    def free(self, address: int) -> None:
        """Drop the array."""
        self._blocks.pop(address, None)

    def copy_in(self, array: NDArray[Any], address: int) -> None:
        """Copy now."""
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def copy_out(self, address: int, array: NDArray[Any]) -> None:
        """Copy now."""
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def synchronize(self) -> None:
        """Nothing is queued."""

    def close(self) -> None:
        """Drop all arrays."""
        self._blocks.clear()


class OrtExecutor:
    """`Executor` over an `onnxruntime.InferenceSession` on the processor. Profiles do not exist."""

    integers = np.dtype(np.int64)

    def __init__(self, session: Any) -> None:
        self._session = session
        self._bound: tuple[Call, Any] | None = None

    def run(self, call: Call) -> None:
        """Run now, at the addresses of `call`."""
        try:
            if self._bound is None or self._bound[0] is not call:
                self._bound = (call, self._bind(call))
            self._session.run_with_iobinding(self._bound[1])
        except Exception as exc:  # the border: whatever ONNX Runtime raises is a failed run
            raise BackendError(f"ONNX Runtime failed: {exc}") from exc

    def close(self) -> None:
        """Let go of the graph."""
        self._session = self._bound = None

    def _bind(self, call: Call) -> Any:
        binding = self._session.io_binding()
        for bind, tensors in (
            (binding.bind_input, call.inputs),
            (binding.bind_output, call.outputs),
        ):
            for name, tensor in tensors.items():
                bind(name, "cpu", 0, tensor.dtype.type, tensor.shape, tensor.address)
        return binding
