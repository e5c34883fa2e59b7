"""Buffers bound to ONNX Runtime once, and the call that uses them.

On a provider that captures decode steps (CUDA graphs), a repeated step replays recorded kernels:
it reads and writes the addresses it was recorded with, and whatever was a number on the host then
is part of the recording. So such a step has device buffers of its own, filled before the run; its
`total_sequence_length`, which GroupQueryAttention reads on the host, is always the capacity of the
cache (it only bounds the work: `seqlens_k`, on the device, says where each slot ends); and every
binding has a recording of its own, told apart by the run option `gpu_graph_id`, where -1 is none.
Source: cuda_graph.cc and group_query_attention.cc of ONNX Runtime, onnxruntime_run_options_config_
keys.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count as count_from
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from edgekit.backends.onnxruntime.providers import Provider
from edgekit.errors import BackendError, BudgetError, EngineError
from edgekit.units import format_bytes

if TYPE_CHECKING:
    from edgekit.backends.base import Logits

_NO_CAPTURE = -1
_DRAFT_TOKENS = 32
"""Passes of up to so many tokens with logits for each, which check drafts, keep their bindings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphIO:
    """The shapes of a decoder graph, read from its inputs and outputs."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_context_tokens: int
    """Rows of the rotary tables: positions beyond them do not exist."""

    @classmethod
    def of(cls, session: Any) -> Self:
        """Raises `EngineError` for a graph that edgekit did not write."""
        inputs = {i.name: i for i in session.get_inputs()}
        metadata = session.get_modelmeta().custom_metadata_map
        try:
            _, kv_heads, _, head_dim = inputs["past.0.key"].shape
            return cls(
                num_layers=sum(name.endswith(".key") for name in inputs),
                num_kv_heads=kv_heads,
                head_dim=head_dim,
                vocab_size=next(o for o in session.get_outputs() if o.name == "logits").shape[2],
                max_context_tokens=int(metadata["context_tokens"]),
            )
        except (KeyError, ValueError, StopIteration) as exc:
            raise EngineError("not a decoder graph of edgekit", hint="build it again") from exc


class Buffers:
    """The KV cache of all slots, on the provider's device."""

    def __init__(self, io: GraphIO, row: Provider, *, num_slots: int, context_tokens: int) -> None:
        self.device = row.device
        self.dtype = np.dtype(row.kv_dtype)
        self.shape = (num_slots, io.num_kv_heads, context_tokens, io.head_dim)
        self.slot_bytes = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        names = [f"{layer}.{kind}" for layer in range(io.num_layers) for kind in ("key", "value")]
        try:
            self.values = {name: _zeros(self.shape, self.dtype, row.device) for name in names}
        except Exception as exc:  # the border: an allocation that fails, in the vendor's words
            needed = format_bytes(len(names) * num_slots * self.slot_bytes)
            raise BudgetError(
                f"the KV cache of {context_tokens} tokens needs {needed}, which cannot be had",
                hint="lower `--context`",
            ) from exc


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any], device: str) -> Any:
    """An OrtValue of zeros.

    Attention reads only what was written, but a product of 0 with NaN garbage in the padding of a
    vectorised load would not stay in its lane.
    """
    import onnxruntime as ort

    zeros = np.zeros(shape, dtype)
    if device == "cpu":
        # shares the array, whose pages the system hands out when they are first written:
        # a context that is not used costs nothing
        return ort.OrtValue.ortvalue_from_numpy(zeros)
    value = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, device, 0)
    value.update_inplace(zeros)
    return value


class Runner:
    """Runs one ONNX Runtime session over shared buffers."""

    def __init__(self, session: Any, io: GraphIO, row: Provider, buffers: Buffers) -> None:
        self._session = session
        self._io = io
        self._row = row
        self._buffers = buffers
        self._has_logits = any(o.name == "logits" for o in session.get_outputs())
        self._bound: dict[tuple[int, int, int, int], _Bound] = {}
        # shared, for a buffer per length would add up; rows take memory when they are first written
        self._draft_logits = np.zeros((1, _DRAFT_TOKENS, io.vocab_size), np.float32)
        # the same for steps: 64 slots have 2,080 runs of neighbours
        self._step_logits = np.zeros((buffers.shape[0], 1, io.vocab_size), np.float32)
        self._graph_ids = count_from(1)  # 0 is ONNX Runtime's own

    def run(
        self, slot: int, count: int, ids: NDArray[np.int64], before: list[int], wanted: int
    ) -> Logits:
        """`ids [count, T]` into slots `slot .. slot + count`, which hold `before[i]` tokens each.

        Returns logits `[count, max(wanted, 1), V]` of the last `wanted` positions; valid until
        the next call. Raises `BackendError`.
        """
        tokens = ids.shape[1]
        key = (slot, count, tokens, wanted)
        bound = self._bound.get(key)
        if bound is None:
            if not self._is_kept(key):
                self._bound = {k: b for k, b in self._bound.items() if self._is_kept(k)}
            graph_id = _NO_CAPTURE
            if self._row.captures_decode and tokens == 1:
                graph_id = next(self._graph_ids)
            bound = self._bound[key] = _Bound(
                self._session, self._io, self._row, self._buffers, key, graph_id,
                self._shared_logits(key), has_logits=self._has_logits,
            )  # fmt: skip
        return bound.run(ids, before)

    def _shared_logits(self, key: tuple[int, int, int, int]) -> Logits | None:
        """Where the logits of these shapes go that come again; None: into memory of their own."""
        _, count, tokens, wanted = key
        if self._row.device != "cpu" or not self._is_kept(key):
            return None
        return self._step_logits[:count] if tokens == 1 else self._draft_logits[:, :wanted]

    def _is_kept(self, key: tuple[int, int, int, int]) -> bool:
        """Whether these shapes come again: prompts have all lengths, steps and drafts few.

        Binding anew takes 0.3 to 0.5 ms for 30 layers. Off the CPU a draft's logits would need
        device memory for each length, so there it is bound anew.
        """
        _, count, tokens, wanted = key
        is_draft = count == 1 and tokens == wanted <= _DRAFT_TOKENS
        return tokens == 1 or (is_draft and self._row.device == "cpu")


class _Tensor:
    """Numbers that ONNX Runtime reads or writes: a numpy array where it lies (`staged` false), or
    memory of the device at a fixed address, with a numpy array to fill it from."""

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: type,
        device: str,
        *,
        staged: bool,
        array: NDArray[Any] | None = None,
    ) -> None:
        import onnxruntime as ort

        self.shape = shape
        self.dtype = dtype
        self.array: NDArray[Any] = np.zeros(shape, dtype) if array is None else array
        self.device = device if staged else "cpu"
        self._value: Any = None
        self.address = self.array.ctypes.data
        if staged:
            self._value = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, device, 0)
            self.address = self._value.data_ptr()

    def send(self) -> None:
        """Bring `array` to where it is read; returns when it is there."""
        if self._value is not None:
            self._value.update_inplace(self.array)

    def fetch(self) -> NDArray[Any]:
        """What was written."""
        return self.array if self._value is None else np.asarray(self._value.numpy())


class _Bound:
    """One I/O binding: fixed slots and shapes, numbers that change in place."""

    def __init__(
        self,
        session: Any,
        io: GraphIO,
        row: Provider,
        buffers: Buffers,
        key: tuple[int, int, int, int],
        graph_id: int,
        logits: Logits | None,
        *,
        has_logits: bool,
    ) -> None:
        slot, count, tokens, wanted = key
        rows = max(wanted, 1) if has_logits else 0
        is_captured = graph_id != _NO_CAPTURE
        staged = is_captured or row.device != "cpu"
        self._session = session
        self._binding = session.io_binding()
        self._options = _run_options(graph_id) if row.captures_decode else None
        self._tokens = tokens
        self._ids = _Tensor((count, tokens), np.int64, row.device, staged=staged)
        self._lengths = _Tensor((count,), np.int32, row.device, staged=staged)
        # read on the host by every provider
        self._total = _Tensor((), np.int32, "cpu", staged=False)
        self._fixed_total = buffers.shape[2] if is_captured else None
        self._index = _Tensor((rows,), np.int64, row.device, staged=staged)
        self._index.array[...] = np.arange(tokens - rows, tokens)
        self._index.send()
        shape = (count, rows, io.vocab_size)
        self._logits = _Tensor(shape, np.float32, row.device, staged=staged, array=logits)
        for name, tensor in (
            ("input_ids", self._ids),
            ("seqlens_k", self._lengths),
            ("total_sequence_length", self._total),
            ("logits_index", self._index),
        ):
            if has_logits or tensor is not self._index:
                self._binding.bind_input(name, *_place(tensor))
        if has_logits:
            self._binding.bind_output("logits", *_place(self._logits))
        cache_shape = (count, *buffers.shape[1:])
        for name, value in buffers.values.items():
            address = value.data_ptr() + slot * buffers.slot_bytes
            view = (buffers.device, 0, buffers.dtype, cache_shape, address)
            self._binding.bind_input(f"past.{name}", *view)
            self._binding.bind_output(f"present.{name}", *view)

    def run(self, ids: NDArray[np.int64], before: list[int]) -> Logits:
        self._ids.array[...] = ids
        self._lengths.array[...] = np.asarray(before, np.int32) + (self._tokens - 1)
        self._total.array[...] = self._fixed_total or max(before) + self._tokens
        try:
            self._ids.send()
            self._lengths.send()
            self._session.run_with_iobinding(self._binding, self._options)
            return self._logits.fetch()
        except Exception as exc:  # the border: whatever ONNX Runtime raises is a failed run
            raise BackendError(f"ONNX Runtime failed: {exc}") from exc


def _place(tensor: _Tensor) -> tuple[str, int, type, tuple[int, ...], int]:
    return tensor.device, 0, tensor.dtype, tensor.shape, tensor.address


def _run_options(graph_id: int) -> Any:
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return options
