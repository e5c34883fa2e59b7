"""Input scales of AWQ and SmoothQuant, folded: the graph computes what the checkpoint means.

The yardstick is transformers on plain fp32 weights, `codes x scale x pre_quant_scale`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from edgekit.checkpoint import read_checkpoint
from edgekit.errors import CheckpointError
from edgekit.export.linear import load_block
from edgekit.profile import Storage

Floats = NDArray[np.float32]
Logits = Callable[[Path, Sequence[int]], Floats]
MakeQuantized = Callable[..., tuple[Path, Path]]

INT4 = Storage(linear_bits=4, group_size=32, head_bits=32, embedding_bits=16)
INT8 = Storage(linear_bits=8, group_size=32, head_bits=32, embedding_bits=16)
IDS = [7, 300, 12, 45, 45, 380, 1, 99]


def scale(count: int, seed: int) -> Floats:
    """Factors between 1/4 and 4."""
    return np.exp2(np.random.default_rng(seed).uniform(-2, 2, count)).astype(np.float32)


def per_kv_head(head_dim: int) -> Floats:
    """o_proj's scale where both query heads of each of the two KV heads agree."""
    one = scale(2 * head_dim, 3).reshape(2, 1, head_dim)
    return np.broadcast_to(one, (2, 2, head_dim)).reshape(-1).copy()


def scaled_inputs(graph: Path) -> list[str]:
    """Layers whose input is multiplied when the graph runs."""
    model = onnx.load(graph / "model.onnx", load_external_data=False)
    return [n.name for n in model.graph.node if n.name.endswith(".scaled")]


CASES: dict[str, tuple[dict[str, Floats], int]] = {
    "nothing": ({}, 0),
    "the norm before q, k and v": ({f"{x}_proj": scale(64, 1) for x in "qkv"}, 0),
    "the norm before gate and up": ({f"{x}_proj": scale(64, 2) for x in ("gate", "up")}, 0),
    "the rows of up": ({"down_proj": scale(160, 4)}, 0),
    "the rows of v": ({"o_proj": per_kv_head(16)}, 0),
    # query heads that share a KV head but not a scale: one Mul in each of the two layers
    "a multiplication": ({"o_proj": scale(64, 5)}, 2),
    "all of them": (
        {
            **{f"{x}_proj": scale(64, 1) for x in "qkv"},
            **{f"{x}_proj": scale(64, 2) for x in ("gate", "up")},
            "down_proj": scale(160, 4),
            "o_proj": per_kv_head(16),
        },
        0,
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_scale_goes_into(
    case: str, bits: int, make_tiny: Callable[..., Path], make_quantized: MakeQuantized,
    export_graph: Callable[..., Path], exact_logits: Logits, hf_logits: Logits,
) -> None:  # fmt: skip
    scales, num_multiplications = CASES[case]
    # qwen2 has biases on q, k and v: what is folded into v's rows belongs to its bias as well
    checkpoint, plain = make_quantized(make_tiny("qwen2"), bits, 32 if bits == 4 else None, scales)
    graph = export_graph(checkpoint, INT4 if bits == 4 else INT8)
    assert len(scaled_inputs(graph)) == num_multiplications
    expected = hf_logits(plain, IDS)
    # fp32 on both sides, sums in another order: 1e-5 of logits that reach 30. A scale in the
    # wrong place moves them by whole units.
    assert np.abs(exact_logits(graph, IDS) - expected).max() < 2e-4
    assert np.abs(expected).max() > 5


def test_query_heads_that_disagree_keep_their_scales(
    make_tiny: Callable[..., Path], make_quantized: MakeQuantized
) -> None:
    factors = scale(64, 5)
    path, _ = make_quantized(make_tiny("qwen2"), 4, 32, {"o_proj": factors})
    block = load_block(read_checkpoint(path), "model.layers.0")
    layer = block.linears["model.layers.0.self_attn.o_proj"]
    assert layer is not None
    assert layer.pre_quant_scale is not None
    np.testing.assert_array_equal(layer.pre_quant_scale, factors)


def test_layers_behind_one_norm_must_agree(
    make_tiny: Callable[..., Path], make_quantized: MakeQuantized
) -> None:
    scales = {"q_proj": scale(64, 1), "k_proj": scale(64, 1), "v_proj": scale(64, 6)}
    path, _ = make_quantized(make_tiny("qwen2"), 4, 32, scales)
    with pytest.raises(CheckpointError, match=r"input_layernorm do not share one pre_quant_scale"):
        load_block(read_checkpoint(path), "model.layers.0")


def test_a_product_of_mixed_precision_is_refused(
    make_tiny: Callable[..., Path], make_quantized: MakeQuantized,
    export_graph: Callable[..., Path],
) -> None:  # fmt: skip
    path, _ = make_quantized(make_tiny(), 4, 32, {})
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    del tensors[f"{name}.weight_scale"]
    tensors[f"{name}.weight"] = np.zeros((160, 64), np.float16)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError, match="mixed precision in one product"):
        export_graph(path, INT4)
