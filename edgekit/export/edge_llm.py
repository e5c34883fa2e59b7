"""Quantized checkpoint -> ModelOpt's unified checkpoint as TensorRT Edge-LLM takes it.

    out/
    ├── config.json, hf_quant_config.json   as ModelOpt wrote them
    ├── model.safetensors                   every tensor, in one file
    └── tokenizer and generation files, one chat template

Weights and their scales are copied bit by bit. Norms, biases, `pre_quant_scale` and layers that are
not quantized become fp16, which is what engines compute with: TensorRT Edge-LLM fails over a
`pre_quant_scale` that is fp32.
An FP8 cache adds k_proj.k_scale and v_proj.v_scale, float32 [], as ModelOpt names and stores them.
A model that is not quantized keeps its own files, as hard links where that can be.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edgekit.checkpoint import Checkpoint, TensorInfo, read_tensor
from edgekit.checkpoint.read import read_json
from edgekit.checkpoint.safetensors import encode_header
from edgekit.checkpoint.tokenizer_files import copy_tokenizer
from edgekit.errors import CheckpointError, storage_errors
from edgekit.export.cache import cache_scales
from edgekit.export.store import to_float16
from edgekit.export.weights import require_symmetric
from edgekit.profile import Storage
from edgekit.progress import Progress, no_progress
from edgekit.scratch import link_or_copy, write_beside

WEIGHTS_FILE = "model.safetensors"
QUANT_FILE = "hf_quant_config.json"
_INDEX_FILE = "model.safetensors.index.json"
_WIDE = ("F32", "BF16")
_TEXT_ALONE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def export_edge_llm_checkpoint(
    checkpoint: Checkpoint,
    storage: Storage,
    out: Path,
    *,
    context_tokens: int,
    kv_precision: str = "fp16",
    report: Progress = no_progress,
) -> None:
    """Write the checkpoint into the directory `out`.

    `storage` and `context_tokens` are no property of it. Raises `CheckpointError`, `StorageError`.
    """
    require_symmetric(checkpoint)
    scales = _cache_scales(checkpoint) if kv_precision == "fp8" else {}
    with storage_errors(out):
        if checkpoint.is_quantized or scales:
            _write_weights(checkpoint, scales, out / WEIGHTS_FILE, report)
        else:
            _link_weights(checkpoint, out)
        config = dict(checkpoint.config)
        labels_file = checkpoint.path / QUANT_FILE
        labels = read_json(labels_file) if labels_file.is_file() else {}
        if scales:
            labels.setdefault("quantization", {})["kv_cache_quant_algo"] = "FP8"
            if isinstance(quantization := config.get("quantization_config"), dict):
                scheme = {"dynamic": False, "num_bits": 8, "type": "float"}
                config["quantization_config"] = {**quantization, "kv_cache_scheme": scheme}
        _write(out / "config.json", config)
        if labels:
            _write(out / QUANT_FILE, labels)
        copy_tokenizer(checkpoint.path, out)
        _keep_one_template(out)


def _cache_scales(checkpoint: Checkpoint) -> dict[str, float]:
    values: dict[str, float] = {}
    for layer, (key, value) in enumerate(cache_scales(checkpoint, "FP8")):
        name = f"model.layers.{layer}.self_attn"
        values |= {f"{name}.k_proj.k_scale": key, f"{name}.v_proj.v_scale": value}
    return values


def _link_weights(checkpoint: Checkpoint, out: Path) -> None:
    for shard in sorted({info.path for info in checkpoint.tensors.values()}):
        link_or_copy(shard, out / shard.name)
    if (checkpoint.path / _INDEX_FILE).is_file():
        shutil.copyfile(checkpoint.path / _INDEX_FILE, out / _INDEX_FILE)


def _write_weights(
    checkpoint: Checkpoint, scales: dict[str, float], path: Path, report: Progress
) -> None:
    tensors = checkpoint.tensors
    kinds = {name: _kind(info) for name, info in tensors.items()}
    shapes: dict[str, tuple[int, ...]] = {name: info.shape for name, info in tensors.items()}
    total = sum(info.num_bytes for info in tensors.values())
    with path.open("wb") as file:
        header = shapes | dict.fromkeys(scales, ())
        file.write(encode_header(header, kinds | dict.fromkeys(scales, "F32")))
        done = 0
        for name, info in tensors.items():
            report("export", done, total)
            if kinds[name] == info.dtype:
                _copy(info, file)
            else:
                file.write(to_float16(read_tensor(info).astype(np.float32), name).tobytes())
            done += info.num_bytes
        file.write(np.array([*scales.values()], "<f4").tobytes())
    report("export", total, total)


def _kind(info: TensorInfo) -> str:
    """The type that a tensor is written in."""
    layer, _, part = info.name.rpartition(".")
    is_small = part in ("bias", "pre_quant_scale") or layer.endswith("norm")
    is_kept = part == "weight" and layer.endswith("_proj")  # what is quantized is not that wide
    return "F16" if (is_small or is_kept) and info.dtype in _WIDE else info.dtype


def _copy(info: TensorInfo, file: BinaryIO) -> None:
    with info.path.open("rb") as source:
        source.seek(info.offset)
        left = info.num_bytes
        while left:
            block = source.read(min(left, 16 * 1024**2))
            if not block:
                raise CheckpointError(f"{info.path} ends in the middle of {info.name}")
            file.write(block)
            left -= len(block)


def _keep_one_template(out: Path) -> None:
    """Compilers read one chat template: of several named ones that which is called `default`. Where
    there is none, they are given the text alone, which is all that edgekit asks of them."""
    shutil.rmtree(out / "additional_chat_templates", ignore_errors=True)
    path = out / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    found = config.get("chat_template")
    if not isinstance(found, list):
        others = (out / "chat_template.jinja", out / "chat_template.json")
        if not found and not any(other.is_file() for other in others):
            write_beside(others[0], _TEXT_ALONE)
        return
    named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
    if not isinstance(named.get("default"), str):
        raise CheckpointError(
            "the checkpoint has a list of chat templates and none is called `default`",
            hint="leave one in tokenizer_config.json, under `chat_template`",
        )
    _write(path, {**config, "chat_template": named["default"]})


def _write(path: Path, data: dict[str, Any]) -> None:
    write_beside(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
