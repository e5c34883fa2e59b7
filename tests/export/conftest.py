"""Quantized checkpoints made by hand, in ModelOpt's layout, beside what they stand for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Floats = NDArray[np.float32]
Codes = NDArray[np.int8]


def slow_pack_int4(codes: Codes) -> NDArray[np.uint8]:
    """ModelOpt's layout, byte by byte: low nibble = even output row, high nibble = odd one."""
    rows, columns = codes.shape
    packed = np.zeros((rows // 2, columns), np.uint8)
    for row in range(rows):
        for column in range(columns):
            nibble = int(codes[row, column]) & 0xF
            packed[row // 2, column] |= nibble << (4 * (row % 2))
    return packed


@pytest.fixture
def make_quantized(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """`make(checkpoint, bits, group, scales)`: a quantized checkpoint and its meaning in fp32.

    `scales` maps the end of a layer's name to its `pre_quant_scale`. The second directory holds
    plain weights, `codes x scale x pre_quant_scale`, which transformers can run.
    """

    def make(
        checkpoint: Path, bits: int, group: int | None, scales: Mapping[str, Floats]
    ) -> tuple[Path, Path]:
        stored: dict[str, NDArray[Any]] = {}
        plain: dict[str, NDArray[Any]] = {}
        for name, value in load_file(checkpoint / "model.safetensors").items():
            stored[name] = plain[name] = value.astype(np.float32)
            if not name.endswith("_proj.weight"):
                continue
            layer = name.removesuffix(".weight")
            codes, steps = _round(value.astype(np.float32), bits, group)
            stored[name] = slow_pack_int4(codes) if bits == 4 else codes
            stored[f"{layer}.weight_scale"] = steps if group else steps[:, 0]
            plain[name] = codes * np.repeat(steps, codes.shape[1] // steps.shape[1], axis=1)
            for ending, scale in scales.items():
                if layer.endswith(ending):
                    stored[f"{layer}.pre_quant_scale"] = scale
                    plain[name] = plain[name] * scale
        return _write(tmp_path / "quantized", checkpoint, stored, is_quantized=True), _write(
            tmp_path / "plain", checkpoint, plain, is_quantized=False
        )

    return make


def _round(weight: Floats, bits: int, group: int | None) -> tuple[Codes, Floats]:
    rows, columns = weight.shape
    largest = (1 << (bits - 1)) - 1
    grouped = weight.reshape(rows, columns // (group or columns), -1)
    steps = (np.abs(grouped).max(axis=2) / largest).astype(np.float32)
    codes = np.rint(grouped / steps[..., None]).astype(np.int8).reshape(rows, columns)
    return codes, steps


def _write(
    path: Path, source: Path, tensors: dict[str, NDArray[Any]], *, is_quantized: bool
) -> Path:
    path.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(source / name, path / name)
    config = json.loads((source / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    if is_quantized:
        (path / "hf_quant_config.json").write_text("{}")
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(scope="session")
def exact_logits() -> Callable[[Path, Sequence[int]], Floats]:
    """`logits(graph, ids)`: `[T, V]` of the exported CPU graph at fp32 activations.

    MatMulNBits' `accuracy_level` is set to 1: as exported, the kernel rounds activations to int8,
    and that noise would hide a small mistake in a scale.
    """
    import onnx
    import onnxruntime as ort

    def logits(graph: Path, ids: Sequence[int]) -> Floats:
        model = onnx.load(graph / "model.onnx", load_external_data=False)
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = 1
        onnx.save(model, graph / "exact.onnx")
        session = ort.InferenceSession(graph / "exact.onnx", providers=["CPUExecutionProvider"])
        count = len(ids)
        feeds: dict[str, NDArray[Any]] = {
            "input_ids": np.array([ids], np.int64),
            "seqlens_k": np.array([count - 1], np.int32),
            "total_sequence_length": np.array(count, np.int32),
            "logits_index": np.arange(count, dtype=np.int64),
        }
        for value in session.get_inputs():
            if value.name.startswith("past."):
                _, heads, _, size = value.shape
                feeds[value.name] = np.zeros((1, heads, count, size), np.float32)
        result: Floats = session.run(["logits"], feeds)[0][0]
        return result

    return logits
