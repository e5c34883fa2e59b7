"""Everything that Edge-LLM would silently do wrong, or refuse late, found from headers alone.

Its exporter ends with success where layers have no scales, where an FP8 cache is dropped and where
layers are left at FP16; each case is one that its 0.11.0 was seen to do
(tests/test_edgellm_export.py). No weight is read.
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
_TEMPLATE_FILES = ("chat_template.json", "processor_config.json", "tokenizer_config.json")
_SCALES = ("weight_scale", "pre_quant_scale")


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
        # links to files are read since 0.11 (NVIDIA/TensorRT-Edge-LLM#184)
        if not path.exists():
            yield f"{path.name} is a link to nothing: copy what it was a link to with `cp -rL`"
    if not any(directory.glob("*.safetensors")) and any(directory.glob("*.bin")):
        yield (
            "its weights are pickled (.bin), of which edgekit can check nothing; "
            "Edge-LLM reads them since 0.10.1 (NVIDIA/TensorRT-Edge-LLM#162)"
        )
    yield from _template(directory)


def _template(directory: Path) -> Iterator[str]:
    """Its export needs one, looked for in this order, and ends in an error after all its work."""
    if (directory / "additional_chat_templates").exists():
        yield "it has additional_chat_templates, at which its export ends: it takes one template"
    if (directory / "chat_template.jinja").is_file():
        return
    for name in _TEMPLATE_FILES:
        path = directory / name
        found = read_json(path).get("chat_template") if path.is_file() else None
        if isinstance(found, list):
            found = {str(each.get("name")) for each in found if isinstance(each, dict)}
        if isinstance(found, str) or (found and set(found) == {"default"}):
            return
        if found is not None:
            yield f"{name} has named chat templates, at which its export ends: it takes one"
            return
    yield "it has no chat template, without which its export ends in an error"


def _layers(spec: ModelSpec, labels: Labels, tensors: Mapping[str, TensorInfo]) -> Iterator[str]:
    layers = [*linear_layers(spec)]
    if labels.precision not in {
        layer_precision(labels.precision, name, k) for name, _, k in layers
    }:
        yield f"no layer has inputs in whole groups of {GROUP}, which its INT4 kernels take alone"
    for layer, rows, columns in layers:
        short = layer.removeprefix("model.")
        precision = layer_precision(labels.precision, layer, columns)
        is_excluded = any(fnmatch(layer, e) or fnmatch(short, e) for e in labels.excluded)
        if is_excluded and precision != "fp16":
            yield f"{layer} is excluded from quantization: it would stay at FP16"
            continue
        if precision == "fp16" and (there := [s for s in _SCALES if f"{layer}.{s}" in tensors]):
            yield f"{layer} has a {there[0]}, but stays at FP16 in {labels.precision}"
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
        if group not in (None, GROUP):
            yield (
                f"{where} in groups of {group}: its INT4 kernels are compiled for groups of "
                f"{GROUP}, others are exported and then computed with the wrong scales"
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
