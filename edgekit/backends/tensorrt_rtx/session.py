"""A decoder of `edgekit.export.standard` over a device and an executor.

The KV cache of every layer and kind is one buffer `[slots, Hkv, S, D]` fp16, bound as `past` and as
`present` at once: new rows are written in place. A call on neighbouring slots binds a view of it.
All other inputs lie in one block at addresses that never change, sent with one copy, so that a
step can be recorded (CUDA graphs) and replayed with other numbers.

The number of tokens of a pass, and of wanted rows, is rounded up to a power of two: what TensorRT-
RTX compiles for a shape it compiles when the shape first comes (for INT4 and INT8 matrix products
always: NVIDIA's "Working with Dynamic Shapes"), and prompts have all lengths. The rows too many
stand behind those of the prompt, where no query of the prompt looks, and are overwritten by what
comes next; rows of logits too many stay on the device.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekit.backends.slots import SlotSession
from edgekit.backends.tensorrt_rtx.device import ALIGNMENT, Call, Device, Executor, Tensor
from edgekit.backends.tensorrt_rtx.inputs import StagedInputs
from edgekit.errors import BackendError, BudgetError
from edgekit.units import format_bytes

if TYPE_CHECKING:
    from edgekit.backends.base import Logits

KV_DTYPE = np.dtype(np.float16)
_LOGITS_DTYPE = np.dtype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """What a session needs to know of an engine."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    capacity: int
    """S: rows of every KV buffer."""
    num_slots: int
    chunk_tokens: int
    """Tokens of one pass, at most."""
    max_logits: int
    """Rows of logits of one pass, at most."""
    has_decode_profile: bool
    """Profile 1 takes one token a slot; otherwise profile 0 takes all."""

    @property
    def slot_bytes(self) -> int:
        """One slot in one KV buffer, `[Hkv, S, D]` fp16."""
        return self.num_kv_heads * self.capacity * self.head_dim * KV_DTYPE.itemsize

    @property
    def kv_bytes(self) -> int:
        """All KV buffers: keys and values of all layers and slots."""
        return 2 * self.num_layers * self.num_slots * self.slot_bytes

    @property
    def logits_bytes(self) -> int:
        """Logits of one pass, `[rows, V]` fp32."""
        rows = max(self.num_slots, self.max_logits)
        return rows * self.vocab_size * _LOGITS_DTYPE.itemsize


class RtxSession(SlotSession):
    """`SlotSession` over buffers of a device. Owns the device and the executor."""

    def __init__(
        self, device: Device, executor: Executor, shapes: Shapes, *, context_tokens: int
    ) -> None:
        """`context_tokens`: what a slot may hold, `shapes.capacity` at most.

        Closes executor and device when it fails. Raises `BudgetError`, `BackendError`.
        """
        self._device = device
        self._executor = executor
        self._shapes = shapes
        self._steps: dict[tuple[int, int], Call] = {}
        self._addresses: list[int] = []
        self._is_closed = False
        with ExitStack() as undo:
            undo.callback(self.close)
            self._allocate()
            super().__init__(
                context_tokens=context_tokens,
                num_slots=shapes.num_slots,
                vocab_size=shapes.vocab_size,
                chunk_tokens=shapes.chunk_tokens,
                max_logits=shapes.max_logits,
            )
            undo.pop_all()

    @property
    def device(self) -> Device:
        """Where it runs."""
        return self._device

    def close(self) -> None:
        """Free engine, memory and device. Safe to call twice."""
        if self._is_closed:
            return
        self._is_closed = True
        self._steps.clear()
        with ExitStack() as last:
            last.callback(self._device.close)
            for address in self._addresses:
                last.callback(self._device.free, address)
            self._executor.close()  # first: it may still hold the addresses

    def _allocate(self) -> None:
        shapes = self._shapes
        stride = -(-shapes.num_slots * shapes.slot_bytes // ALIGNMENT) * ALIGNMENT
        names = [f"{i}.{kind}" for i in range(shapes.num_layers) for kind in ("key", "value")]
        try:
            # one block: a driver rounds each one up to its pages
            first = self._block(stride * len(names))
            self._kv = {name: first + i * stride for i, name in enumerate(names)}
        except BudgetError as exc:
            raise BudgetError(
                f"the KV cache of {shapes.num_slots} x {shapes.capacity} tokens needs "
                f"{format_bytes(shapes.kv_bytes)} on {self._device.name}, which cannot be had: "
                f"{exc}",
                hint="close other programs that use it, or build the engine again with a "
                "smaller `--context` or `--batch`",
            ) from exc
        self._inputs = StagedInputs(
            batch=shapes.num_slots,
            tokens=max(shapes.chunk_tokens, shapes.num_slots),
            wanted=shapes.max_logits,
            dtype=self._executor.integers,
        )
        self._inputs_at = self._block(self._inputs.block.nbytes)
        rows = max(shapes.num_slots, shapes.max_logits)
        self._logits = np.zeros((rows, shapes.vocab_size), _LOGITS_DTYPE)
        self._logits_at = self._block(self._logits.nbytes)

    def _block(self, num_bytes: int) -> int:
        self._addresses.append(self._device.allocate(num_bytes))
        return self._addresses[-1]

    def _run(
        self, slot: int, count: int, ids: NDArray[np.int64], before: list[int], wanted: int
    ) -> Logits:
        if self._is_closed:
            raise BackendError("the session is closed")
        shapes, tokens = self._shapes, ids.shape[1]
        # never beyond the end of the buffer; `before + tokens` itself has been checked
        room = min(shapes.chunk_tokens, shapes.capacity - max(before))
        padded = min(_power_of_two(tokens), room)
        rows = min(_power_of_two(max(wanted, 1)), shapes.max_logits)
        call = self._call(slot, count, padded, rows)
        self._inputs.fill(ids, before, padded=padded, wanted=max(wanted, 1), rows=rows)
        self._device.copy_in(self._inputs.block, self._inputs_at)
        self._executor.run(call)
        logits = self._logits[: count * rows]
        if wanted:
            # of one slot, the rows too many are the last ones; of several there is one row each
            self._device.copy_out(self._logits_at, logits[: count * wanted])
        self._device.synchronize()
        return logits.reshape(count, rows, shapes.vocab_size)[:, :wanted]

    def _call(self, slot: int, count: int, tokens: int, rows: int) -> Call:
        """What is bound for these slots and shapes; steps are kept, for they come again."""
        if tokens > 1:
            return self._bind(slot, count, tokens, rows, profile=0)
        key = (slot, count)
        if key not in self._steps:
            profile = int(self._shapes.has_decode_profile)
            self._steps[key] = self._bind(slot, count, tokens, rows, profile=profile)
        return self._steps[key]

    def _bind(self, slot: int, count: int, tokens: int, rows: int, *, profile: int) -> Call:
        shapes = self._shapes
        view = (count, shapes.num_kv_heads, shapes.capacity, shapes.head_dim)
        kv = {
            name: Tensor(address=at + slot * shapes.slot_bytes, shape=view, dtype=KV_DTYPE)
            for name, at in self._kv.items()
        }
        inputs = self._inputs.tensors(self._inputs_at, count=count, tokens=tokens, rows=rows)
        logits_shape = (count, rows, shapes.vocab_size)
        return Call(
            profile=profile,
            inputs={**inputs, **{f"past.{name}": tensor for name, tensor in kv.items()}},
            outputs={
                "logits": Tensor(address=self._logits_at, shape=logits_shape, dtype=_LOGITS_DTYPE),
                **{f"present.{name}": tensor for name, tensor in kv.items()},
            },
        )


def _power_of_two(count: int) -> int:
    """The smallest one that is not less: 1, 2, 4, 4, 8 for 1 to 5."""
    return 1 << (count - 1).bit_length()
