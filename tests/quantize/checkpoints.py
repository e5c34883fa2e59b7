"""Tiny quantized checkpoints: in the layouts of TensorRT-LLM and how well they are read back, as
plain weights, and damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from edgekit.backends.base import Session
from edgekit.checkpoint import read_checkpoint
from edgekit.checkpoint.safetensors import read_header
from edgekit.checkpoint.tensors import read_tensor
from edgekit.precision import find_precision
from edgekit.quantize import quantize_checkpoint
from edgekit.reference import REFERENCE_FILE, Reference, ask
from edgekit.verify import measure_quality

GROUP = 64
SHAPE = {"hidden_size": 128, "intermediate_size": 192, "num_key_value_heads": 2}
"""Widths that the kernels take; GQA 4:2, an untied head and llama3 rope scaling come with it."""
Tensors = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Made:
    quantized: Path
    checkpoint: Path


def maker(
    make_tiny: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    write: Callable[[Path, Path, str, str], None],
) -> Callable[..., Made]:
    """`make(precision, kv)`, which quantizes each precision once; `write` exports it."""
    done: dict[tuple[str, bool], Path] = {}

    def make(precision: str, kv: str = "fp16", *, is_tied: bool = False) -> Made:
        if (precision, is_tied) not in done:
            out = done[precision, is_tied] = tmp_path_factory.mktemp(precision)
            model = make_tiny(
                "llama", **SHAPE, **({"tie_word_embeddings": True} if is_tied else {})
            )
            quantize_checkpoint(
                read_checkpoint(model), find_precision(precision), out,
                group_size=GROUP if precision == "int4_awq" else None, calibration_tokens=64,
            )  # fmt: skip
        quantized, target = done[precision, is_tied], tmp_path_factory.mktemp("exported")
        write(quantized, target, precision, kv)
        return Made(quantized, target)

    return make


def tensors(file: Path) -> dict[str, tuple[str, NDArray[Any]]]:
    return {name: (info.dtype, read_tensor(info)) for name, info in read_header(file).items()}


def measure_kl(
    reader: Callable[..., Session], made: Made, *, keeps_activations: bool = False
) -> float:
    """Of what `reader` finds in the checkpoint, to ModelOpt's simulation."""
    session = reader(
        made.checkpoint, context_tokens=128, num_slots=1, keeps_activations=keeps_activations
    )
    return measure_quality(
        session, Reference.load(made.quantized / REFERENCE_FILE)
    ).mean_kl_simulated


def dequantized(path: Path, out: Path) -> Path:
    """The unified checkpoint as plain fp32 weights, by a reader that shares no code with ours."""
    tensors: dict[str, NDArray[Any]] = {}
    stored = load_file(path / "model.safetensors")
    for name, value in stored.items():
        if name.endswith(("_scale", "_zero_point", "_amax", "_quantizer")):
            continue
        layer = name.removesuffix(".weight")
        if f"{layer}.weight_scale" not in stored or not name.endswith(".weight"):
            tensors[name] = value.astype(np.float32)
            continue
        scale = stored[f"{layer}.weight_scale"].astype(np.float32)
        if value.dtype == np.uint8:
            rows = np.stack([value & 15, value >> 4], axis=1).reshape(-1, value.shape[1])
            codes = np.where(rows > 7, rows.astype(np.float32) - 16, rows)
        else:
            codes = value.astype(np.float32)
        scale = scale.reshape(len(codes), -1)
        if (zeros := stored.get(f"{layer}.weight_zero_point")) is not None:
            codes = codes - np.repeat(zeros, codes.shape[1] // scale.shape[1], axis=1)
        weight = codes * np.repeat(scale, codes.shape[1] // scale.shape[1], axis=1)
        tensors[name] = (weight * stored.get(f"{layer}.pre_quant_scale", 1)).astype(np.float32)
    out.mkdir()
    config = json.loads((path / "config.json").read_text())
    config.pop("quantization_config", None)
    (out / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def damaged(path: Path, out: Path, edit: Callable[[dict[str, NDArray[Any]]], None]) -> Path:
    shutil.copytree(path, out)
    tensors = load_file(out / "model.safetensors")
    edit(tensors)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def require_written_as_simulated(
    path: Path, hf_logits: Callable[..., NDArray[np.float32]], tmp_path: Path
) -> None:
    """The weights in the files answer as ModelOpt's simulation did."""
    plain = dequantized(path, tmp_path / "plain")
    reference = Reference.load(path / REFERENCE_FILE)
    answers = ask(
        lambda ids, count: hf_logits(plain, ids)[-count:],
        reference.prompts, first_position=reference.first_position, top_ids=reference.top_ids,
    )  # fmt: skip
    off = np.abs(answers.log_probs - reference.simulated.astype(np.float32))
    likely = reference.simulated > -8
    # the head is exported as fp16, which it was; log-probabilities are stored in steps of 2^-8
    # above -8. A single wrong code of 10^5 would move some of them by more.
    assert off[likely].max() < 2**-8
    # and the simulation is not the original: the comparison could fail
    assert np.abs(reference.simulated - reference.original)[likely].max() > 2**-5
