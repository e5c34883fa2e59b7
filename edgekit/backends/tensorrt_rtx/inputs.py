"""The integer inputs of a pass, staged in one block: sent by one copy, at fixed places."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.backends.tensorrt_rtx.device import ALIGNMENT, Tensor

INTEGER_INPUTS = ("input_ids", "position_ids", "write_indices", "kv_lengths", "logits_index")


class StagedInputs:
    """Room for the largest pass, in the memory of the host.

    `block` is bytes; the input named `name` begins at a multiple of `ALIGNMENT` in it.
    """

    def __init__(self, *, batch: int, tokens: int, wanted: int, dtype: np.dtype[Any]) -> None:
        """`tokens`: of all slots of a pass together."""
        sizes = dict(zip(INTEGER_INPUTS, (tokens, tokens, batch, batch, wanted), strict=True))
        self._offsets: dict[str, int] = {}
        end = 0
        for name, size in sizes.items():
            self._offsets[name] = end
            end += -(-size * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        self.block: NDArray[np.uint8] = np.zeros(end, np.uint8)
        self._dtype = dtype
        self._parts = {
            name: self.block[at : at + sizes[name] * dtype.itemsize].view(dtype)
            for name, at in self._offsets.items()
        }

    def fill(
        self, ids: NDArray[np.int64], before: list[int], *, padded: int, wanted: int, rows: int
    ) -> None:
        """Write one pass: `ids [count, T]` after `before[i]` tokens, made `padded` tokens long.

        The last `wanted` of the T positions are wanted, the last of all once more for every row
        up to `rows`.
        """
        count, tokens = ids.shape
        held = np.asarray(before, np.int64)
        self._matrix("input_ids", count, padded)[:, :tokens] = ids
        self._matrix("input_ids", count, padded)[:, tokens:] = 0
        self._matrix("position_ids", count, padded)[...] = held[:, None] + np.arange(padded)
        self._parts["write_indices"][:count] = held
        self._parts["kv_lengths"][:count] = held + padded
        index = np.arange(tokens - wanted, tokens - wanted + rows)
        self._parts["logits_index"][:rows] = np.minimum(index, tokens - 1)

    def tensors(self, address: int, *, count: int, tokens: int, rows: int) -> dict[str, Tensor]:
        """Where a pass reads them when the block lies at `address`."""
        shapes = {
            "input_ids": (count, tokens),
            "position_ids": (count, tokens),
            "write_indices": (count,),
            "kv_lengths": (count,),
            "logits_index": (rows,),
        }
        return {
            name: Tensor(address=address + self._offsets[name], shape=shape, dtype=self._dtype)
            for name, shape in shapes.items()
        }

    def _matrix(self, name: str, count: int, tokens: int) -> NDArray[Any]:
        return self._parts[name][: count * tokens].reshape(count, tokens)
