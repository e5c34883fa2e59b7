"""Everything that Edge-LLM would silently do wrong, or refuse late, found from headers alone.

Its exporter ends with success where layers have no scales, where an FP8 cache is dropped and where
layers are left at FP16; each case is one that its 0.11.0 was seen to do. No weight is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from edgekit.backends.edge_llm.formats import (
    GROUP,
    NVFP4_BLOCK,
    WIDTH,
    Part,
    layer_precision,
    linear_layers,
    linear_parts,
)
from edgekit.backends.edge_llm.labels import HINT, Labels, read_labels
from edgekit.checkpoint import TensorInfo
from edgekit.checkpoint.read import find_shards, read_json
from edgekit.checkpoint.safetensors import read_header
from edgekit.errors import CheckpointError
from edgekit.families import read_spec
from edgekit.model import ModelSpec

_KV_SCALES = ("k_proj.k_scale", "v_proj.v_scale")


def require_loadable(directory: Path, *, precision: str, kv_precision: str) -> None:
    """Raises `CheckpointError` unless Edge-LLM reads `directory` as `precision` with that cache.

    The first thing that is wrong is told, in one sentence.
    """
    for problem in find_problems(directory, precision=precision, kv_precision=kv_precision):
        raise CheckpointError(f"Edge-LLM cannot be given {directory}: {problem}", hint=HINT)


def find_problems(directory: Path, *, precision: str, kv_precision: str) -> Iterator[str]:
    """Every reason, most general first."""
    yield from _files(directory)
    labels = read_labels(directory)
    if labels.precision != precision:
        yield f"it is labelled {labels.precision}, wanted is {precision}"
    spec = read_spec(read_json(directory / "config.json"))
    tensors = {
        name: info for shard in find_shards(directory) for name, info in read_header(shard).items()
    }
    yield from _layers(spec, labels, tensors)
    yield from _cache(spec, labels, tensors, kv_precision)


def _files(directory: Path) -> Iterator[str]:
    for path in sorted(directory.iterdir()):
        if path.is_symlink():
            yield (
                f"{path.name} is a symbolic link, which its runtime refuses "
                "(NVIDIA/TensorRT-Edge-LLM#184): copy it with `cp -rL`"
            )
    if not any(directory.glob("*.safetensors")) and any(directory.glob("*.bin")):
        yield "its weights are pickled (.bin): only safetensors are read (#162)"
    config = directory / "tokenizer_config.json"
    if config.is_file() and isinstance(read_json(config).get("chat_template"), list):
        yield "it has a list of named chat templates, of which its runtime reads none"


def _layers(spec: ModelSpec, labels: Labels, tensors: Mapping[str, TensorInfo]) -> Iterator[str]:
    for layer, rows, columns in linear_layers(spec):
        short, precision = layer.removeprefix("model."), layer_precision(labels.precision, layer)
        is_excluded = any(fnmatch(layer, e) or fnmatch(short, e) for e in labels.excluded)
        if is_excluded and precision != "fp16":
            yield f"{layer} is excluded from quantization: it would stay at FP16"
            continue
        yield from _widths(layer, rows, columns, precision, labels.group)
        parts = linear_parts(precision, rows, columns)
        for suffix, part in parts.items():
            if problem := _tensor(f"{layer}.{suffix}", part, tensors):
                yield problem


def _widths(
    layer: str, rows: int, columns: int, precision: str, group: int | None
) -> Iterator[str]:
    where = f"{layer} is {rows} x {columns}"
    if precision == "int4_awq":
        if rows % WIDTH or columns % WIDTH:
            yield f"{where}: its INT4 kernels take multiples of {WIDTH} alone"
        if group not in (None, GROUP) or columns % GROUP:
            yield (
                f"{where} in groups of {group or 'other sizes'}: its INT4 kernels are compiled for "
                f"groups of {GROUP}, others are exported and then computed with the wrong scales"
            )
    if precision == "nvfp4" and columns % NVFP4_BLOCK:
        yield f"{where}: NVFP4 has blocks of {NVFP4_BLOCK} inputs"


def _tensor(name: str, part: Part, tensors: Mapping[str, TensorInfo]) -> str | None:
    info = tensors.get(name)
    if info is None:
        left = "the layer would be left at FP16 or without its scale"
        return f"{name} is missing: {left}" if part.is_needed else None
    if info.dtype not in part.dtypes:
        return f"{name} is {info.dtype}, not {' or '.join(part.dtypes)}"
    # a single scale may be written as one of one
    if info.shape != part.shape and not (part.shape == () and info.shape == (1,)):
        return f"{name} is {list(info.shape)}, not {list(part.shape)}"
    return None


def _cache(
    spec: ModelSpec, labels: Labels, tensors: Mapping[str, TensorInfo], kv_precision: str
) -> Iterator[str]:
    if labels.kv_precision != kv_precision:
        yield f"its cache is labelled {labels.kv_precision}, wanted is {kv_precision}"
    found: dict[str, Any] = {
        f"model.layers.{i}.self_attn.{scale}": None
        for i in range(spec.num_layers)
        for scale in _KV_SCALES
    }
    there = [name for name in found if name in tensors]
    if kv_precision == "fp8" and labels.precision == "int4_awq":
        yield "an FP8 cache beside INT4 weights is dropped by its export without a word"
    if kv_precision == "fp8" and len(there) < len(found):
        missing = next(name for name in found if name not in tensors)
        yield f"{missing} is missing: its cache would be FP16, without a word"
    if kv_precision != "fp8" and there:
        yield f"{there[0]} is there: its cache would be FP8, asked or not"
