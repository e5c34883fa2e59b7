"""Embedding and head at 4 or 8 bits mean what rounding their weights gives."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from edgekit.export.weights import round_to_int
from edgekit.profile import Storage

Logits = Callable[[Path, Sequence[int]], NDArray[np.float32]]
MakePath = Callable[..., Path]
IDS = [7, 300, 12, 45, 45, 380, 1, 99]


def rounded(source: Path, out: Path, bits: dict[str, int]) -> Path:
    """The checkpoint with its tables rounded, as plain fp32 weights."""
    out.mkdir()
    for file in source.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    tensors = {k: v.astype(np.float32) for k, v in load_file(out / "model.safetensors").items()}
    for name, count in bits.items():
        tensors[name] = round_to_int(tensors[name], count, 32).dequantize()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    return out


@pytest.mark.parametrize(("embedding", "head"), [(4, 4), (8, 8), (4, 8), (8, 4)])
def test_untied_tables_are_rounded_each_to_its_own_bits(
    embedding: int, head: int, make_tiny: MakePath, export_graph: MakePath, exact_logits: Logits,
    hf_logits: Logits, tmp_path: Path,
) -> None:  # fmt: skip
    storage = Storage(linear_bits=32, head_bits=head, head_group_size=32, embedding_bits=embedding)
    graph = export_graph(make_tiny("llama"), storage)
    plain = rounded(
        make_tiny("llama"), tmp_path / "plain",
        {"model.embed_tokens.weight": embedding, "lm_head.weight": head},
    )  # fmt: skip
    # fp32 on both sides, sums in another order; rounding to 8 bits alone moves logits by 1e-2
    assert np.abs(exact_logits(graph, IDS) - hf_logits(plain, IDS)).max() < 1e-4


@pytest.mark.parametrize("bits", [4, 8])
def test_a_tied_table_is_the_same_at_both_ends(
    bits: int, make_tiny: MakePath, export_graph: MakePath, exact_logits: Logits,
    hf_logits: Logits, tmp_path: Path,
) -> None:  # fmt: skip
    storage = Storage(linear_bits=32, head_bits=bits, head_group_size=32, embedding_bits=bits)
    graph = export_graph(make_tiny("qwen2"), storage)
    plain = rounded(make_tiny("qwen2"), tmp_path / "plain", {"model.embed_tokens.weight": bits})
    # as above; logits reach 30 here
    assert np.abs(exact_logits(graph, IDS) - hf_logits(plain, IDS)).max() < 1e-3
