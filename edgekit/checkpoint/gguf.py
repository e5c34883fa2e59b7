"""GGUF -> a Hugging Face checkpoint at fp16, one piece of one tensor at a time.

Quantizing what was quantized before costs quality, but a GGUF file is often all that someone
has; `edgekit_source.json` keeps what the types were.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.checkpoint.gguf_config import (
    find_architecture,
    make_config,
    make_generation_config,
)
from edgekit.checkpoint.gguf_file import GgufFile, GgufTensor
from edgekit.checkpoint.gguf_tokenizer import write_tokenizer
from edgekit.checkpoint.safetensors import encode_header
from edgekit.errors import CheckpointError
from edgekit.families import expected_tensors, read_spec
from edgekit.progress import Progress, no_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROPE_FREQS = "rope_freqs.weight"
_TABLES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_BLOCK = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_PERMUTED = (".self_attn.q_proj", ".self_attn.k_proj")
_PIECE_ELEMENTS = 16 * 1024**2
"""About 64 MiB of float32: what a conversion holds at once, several times over."""


def convert_gguf(gguf: GgufFile, out: Path, *, report: Progress = no_progress) -> dict[str, int]:
    """Write the checkpoint into the empty directory `out`; returns quant type -> tensors.

    Raises `CheckpointError` for a model that edgekit does not compute, a tokenizer that it does
    not reproduce, and weights beyond the range of fp16.
    """
    config = make_config(gguf, rope_factors=_rope_factors(gguf))
    spec = read_spec(config)
    if spec.num_layers > len(gguf.tensors):  # before a damaged count makes a table of that size
        raise CheckpointError(f"{len(gguf.tensors)} tensors cannot make {spec.num_layers} layers")
    shapes = expected_tensors(spec)
    names = {name: _gguf_name(name) for name in shapes}
    _check_tensors(gguf, shapes, names)
    write_tokenizer(gguf, out)
    _write_json(out / "config.json", config)
    _write_json(out / "generation_config.json", make_generation_config(gguf))
    head_dim = spec.head_dim if find_architecture(gguf).is_permuted else None
    total = 2 * sum(math.prod(shape) for shape in shapes.values())
    done = 0
    with (out / "model.safetensors").open("wb") as file:
        file.write(encode_header(shapes, "F16"))
        for name in shapes:
            is_permuted = name.rpartition(".")[0].endswith(_PERMUTED)
            tensor = gguf.tensors[names[name]]
            for piece in _pieces(gguf.path, tensor, head_dim if is_permuted else None):
                file.write(piece.data)
                done += piece.nbytes
                report("convert the GGUF file", done, total)
    return dict(sorted(Counter(tensor.quant_type for tensor in gguf.tensors.values()).items()))


def _gguf_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`."""
    module, _, kind = name.rpartition(".")
    if module in _TABLES:
        return f"{_TABLES[module]}.{kind}"
    layer, _, part = module.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_BLOCK[part]}.{kind}"


def _check_tensors(
    gguf: GgufFile, shapes: Mapping[str, tuple[int, ...]], names: Mapping[str, str]
) -> None:
    if missing := [name for name in names.values() if name not in gguf.tensors]:
        raise CheckpointError(
            f"{len(missing)} of {len(names)} tensors are missing in the GGUF file, "
            f"first {missing[0]}"
        )
    for name, shape in shapes.items():
        found = gguf.tensors[names[name]].shape
        if found != shape:
            raise CheckpointError(
                f"{names[name]} has another shape than the metadata says: "
                f"expected {list(shape)}, found {list(found)}"
            )
    if unknown := sorted(set(gguf.tensors) - {*names.values(), _ROPE_FREQS}):
        raise CheckpointError(
            f"the GGUF file holds a tensor that edgekit does not know: {unknown[0]}"
        )


def _rope_factors(gguf: GgufFile) -> list[float] | None:
    tensor = gguf.tensors.get(_ROPE_FREQS)
    if tensor is None:
        return None
    if tensor.quant_type != "F32" or len(tensor.shape) != 1 or tensor.shape[0] > 4096:
        raise CheckpointError(f"{_ROPE_FREQS} is not a row of float32 numbers")
    return [float(factor) for factor in _read_rows(gguf.path, tensor, 0, 1)[0]]


def _pieces(path: Path, tensor: GgufTensor, head_dim: int | None) -> Iterator[NDArray[np.float16]]:
    """The tensor's rows in order, at fp16; with `head_dim` in Hugging Face's order of q and k."""
    import numpy as np

    step = max(1, _PIECE_ELEMENTS // tensor.shape[-1])
    if head_dim is not None:  # a piece holds whole heads, so that it can be reordered alone
        step = max(1, step // head_dim) * head_dim
    for start in range(0, tensor.num_rows, step):
        rows = _read_rows(path, tensor, start, min(start + step, tensor.num_rows))
        if len(tensor.shape) == 1:
            rows = rows[0]
        if head_dim is not None:
            rows = _unpermute(rows, head_dim)
        with np.errstate(over="ignore"):
            piece = np.ascontiguousarray(rows, dtype="<f2")
        if not np.isfinite(piece).all():
            raise CheckpointError(f"{tensor.name} has a value beyond the range of fp16")
        yield piece


def _unpermute(rows: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """Rows `[heads x D, ...]` from pairs side by side to halves, llama.cpp's order to ours.

    Its converter does `reshape(heads, 2, D / 2, ...).swapaxes(1, 2)`; this is the inverse.
    """
    pairs = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _read_rows(path: Path, tensor: GgufTensor, start: int, stop: int) -> NDArray[np.float32]:
    """Rows `start` to `stop` as float32 `[rows, columns]`."""
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    count = (stop - start) * tensor.row_bytes
    data = np.fromfile(
        path, dtype=np.uint8, count=count, offset=tensor.offset + start * tensor.row_bytes
    )
    if data.size != count:
        raise CheckpointError(f"the GGUF file ends in the middle of {tensor.name}: {path}")
    kind = GGMLQuantizationType[tensor.quant_type]
    try:
        with np.errstate(all="ignore"):  # damaged scales overflow; the caller finds the result
            rows: NDArray[np.float32] = dequantize(
                data.reshape(stop - start, tensor.row_bytes), kind
            )
    except NotImplementedError as exc:
        raise CheckpointError(
            f"{tensor.name} has a quant type that cannot be unpacked: {tensor.quant_type}",
            hint="take a file of another type, such as Q8_0 or F16, or the original checkpoint",
        ) from exc
    return rows


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
