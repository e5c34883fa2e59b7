"""Checkpoints and networks for the tests of TensorRT-RTX, in the shape of SmolLM2's layers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.footprint.rows import FOOTPRINTS
from edgekit.profile import Storage

SMOLLM2_LAYERS = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 512,
    "tie_word_embeddings": True,
}
_LARGEST = {"int8": 127, "int4_awq": 7, "fp8": 448}


@pytest.fixture(scope="session")
def rtx_storage() -> Callable[[str], Storage]:
    """`storage(precision)`: TensorRT-RTX's own, in groups of 64 as SmolLM2 has them."""

    def storage(precision: str) -> Storage:
        row = FOOTPRINTS["tensorrt-rtx"].storage[precision]
        return replace(row, group_size=64 if precision == "int4_awq" else None)

    return storage


@pytest.fixture(scope="session")
def rtx_checkpoint(
    make_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`make(precision, group=64)`: two layers of SmolLM2, rounded, in ModelOpt's layout."""
    import torch
    from safetensors.torch import load_file, save_file

    made: dict[tuple[str, int], Path] = {}
    plain = make_tiny("llama", **SMOLLM2_LAYERS)

    def linear(precision: str, group: int, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        rows, columns = weight.shape
        blocks = {"fp8": (1, -1), "int8": (rows, columns), "int4_awq": (-1, group)}[precision]
        grouped = weight.float().reshape(blocks)
        steps = grouped.abs().amax(dim=1, keepdim=True) / _LARGEST[precision]
        ratio = (grouped / steps).reshape(rows, columns)
        if precision == "fp8":
            entering = torch.tensor(0.05)
            codes = ratio.to(torch.float8_e4m3fn)
            return {"weight": codes, "weight_scale": steps[0, 0], "input_scale": entering}
        codes = ratio.round().to(torch.int8)
        if precision == "int8":
            return {"weight": codes, "weight_scale": steps[:, 0]}
        nibbles = codes.view(torch.uint8)
        packed = (nibbles[0::2] & 15) | (nibbles[1::2] << 4)
        return {"weight": packed, "weight_scale": steps.reshape(rows, -1)}

    def make(precision: str, group: int = 64) -> Path:
        if precision == "fp16":
            return plain
        if (precision, group) not in made:
            out = tmp_path_factory.mktemp(precision)
            shutil.copytree(plain, out, dirs_exist_ok=True)
            tensors = {}
            for name, value in load_file(plain / "model.safetensors").items():
                if not name.endswith("_proj.weight"):
                    tensors[name] = value
                    continue
                layer = name.removesuffix(".weight")
                for end, tensor in linear(precision, group, value).items():
                    tensors[f"{layer}.{end}"] = tensor.contiguous()
            save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
            (out / "hf_quant_config.json").write_text(json.dumps({}))
            made[precision, group] = out
        return made[precision, group]

    return make


@pytest.fixture(scope="session")
def rtx_graph(
    rtx_checkpoint: Callable[..., Path],
    rtx_storage: Callable[[str], Storage],
    export_standard: Callable[..., Path],
) -> Callable[..., Path]:
    """`graph(precision)`: that checkpoint's graph, for 256 tokens of context."""

    def graph(precision: str, group: int = 64) -> Path:
        return export_standard(
            rtx_checkpoint(precision, group), rtx_storage(precision), context_tokens=256
        )

    return graph
