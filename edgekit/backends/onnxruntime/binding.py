"""Buffers bound to ONNX Runtime once, and the call that uses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from edgekit.backends.onnxruntime.providers import Provider
from edgekit.errors import BackendError, BudgetError, EngineError
from edgekit.units import format_bytes

if TYPE_CHECKING:
    from edgekit.backends.base import Logits


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

    def __init__(
        self, io: GraphIO, row: Provider, *, num_slots: int, context_tokens: int
    ) -> None:
        import onnxruntime as ort

        self.device = row.device
        self.dtype = np.dtype(row.kv_dtype)
        self.shape = (num_slots, io.num_kv_heads, context_tokens, io.head_dim)
        self.slot_bytes = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        names = [f"{layer}.{kind}" for layer in range(io.num_layers) for kind in ("key", "value")]
        try:
            self.values = {
                name: ort.OrtValue.ortvalue_from_shape_and_type(
                    self.shape, self.dtype, row.device, 0
                )
                for name in names
            }
        except Exception as exc:  # the border: an allocation that fails, in the vendor's words
            needed = format_bytes(len(names) * num_slots * self.slot_bytes)
            raise BudgetError(
                f"the KV cache of {context_tokens} tokens needs {needed}, which cannot be had",
                hint="lower `--context`",
            ) from exc
        if row.device == "cpu":
            # attention reads only what was written, but a dot product with NaN garbage in the
            # padding of a vectorised load would not stay in its lane
            for value in self.values.values():
                value.numpy().fill(0)


class Runner:
    """Runs one ONNX Runtime session over shared buffers."""

    def __init__(self, session: Any, io: GraphIO, buffers: Buffers) -> None:
        self._session = session
        self._io = io
        self._buffers = buffers
        self._bound: dict[tuple[int, int, int, int], _Bound] = {}

    def run(
        self, slot: int, count: int, ids: NDArray[np.int64], before: list[int], wanted: int
    ) -> Logits:
        """`ids [count, T]` into slots `slot .. slot + count`, which hold `before[i]` tokens each.

        Returns logits `[count, max(wanted, 1), V]` of the last `wanted` positions; valid until
        the next call with the same shapes. Raises `BackendError`.
        """
        tokens = ids.shape[1]
        key = (slot, count, tokens, wanted)
        bound = self._bound.get(key)
        if bound is None:
            if tokens > 1:
                # prompts come in all lengths: keep the bindings of decode shapes only
                self._bound = {k: b for k, b in self._bound.items() if k[2] == 1}
            bound = self._bound[key] = _Bound(self._session, self._io, self._buffers, key)
        bound.ids[...] = ids
        bound.lengths[...] = np.asarray(before, np.int32) + (tokens - 1)
        bound.total[...] = max(before) + tokens
        return bound.run()


class _Bound:
    """One I/O binding: fixed slots and shapes, numbers that change in place."""

    def __init__(
        self, session: Any, io: GraphIO, buffers: Buffers, key: tuple[int, int, int, int]
    ) -> None:
        slot, count, tokens, wanted = key
        self._session = session
        self._binding = session.io_binding()
        rows = max(wanted, 1)
        self.ids = np.empty((count, tokens), np.int64)
        self.lengths = np.empty((count,), np.int32)
        self.total = np.empty((), np.int32)
        self.logits = np.empty((count, rows, io.vocab_size), np.float32)
        self._index = np.arange(tokens - rows, tokens, dtype=np.int64)
        for name, array in (
            ("input_ids", self.ids), ("seqlens_k", self.lengths),
            ("total_sequence_length", self.total), ("logits_index", self._index),
        ):
            self._binding.bind_input(
                name, "cpu", 0, array.dtype, array.shape, array.ctypes.data
            )
        self._binding.bind_output(
            "logits", "cpu", 0, np.float32, self.logits.shape, self.logits.ctypes.data
        )
        shape = (count, *buffers.shape[1:])
        for name, value in buffers.values.items():
            address = value.data_ptr() + slot * buffers.slot_bytes
            view = (buffers.device, 0, buffers.dtype, shape, address)
            self._binding.bind_input(f"past.{name}", *view)
            self._binding.bind_output(f"present.{name}", *view)

    def run(self) -> Logits:
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as exc:  # the border: whatever ONNX Runtime raises is a failed run
            raise BackendError(f"ONNX Runtime failed: {exc}") from exc
        return self.logits
