"""GGUF -> checkpoint: the same weights, the same model, and a refusal for everything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Quant
from numpy.typing import NDArray

from edgekit.checkpoint import Checkpoint, read_tensor, resolve_model
from edgekit.checkpoint import gguf as converter
from edgekit.checkpoint.gguf_config import llama3_factors
from edgekit.errors import CheckpointError
from edgekit.model import RopeScaling

Tensors = dict[str, NDArray[Any]]
MakeTensors = Callable[..., Tensors]
Write = Callable[..., Path]
Convert = Callable[[Path], Checkpoint]
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def convert(tmp_path: Path) -> Convert:
    return lambda path: resolve_model(str(path), work=tmp_path / "work")


def refusal(convert: Convert, path: Path) -> str:
    """The words of a refusal that left nothing behind."""
    with pytest.raises(CheckpointError) as caught:
        convert(path)
    assert caught.value.exit_code == 2
    assert list((path.parent / "work").glob("*")) == []
    return str(caught.value)


def assert_same(checkpoint: Checkpoint, tensors: Tensors) -> None:
    assert set(checkpoint.tensors) == set(tensors)
    for name, expected in tensors.items():
        found = read_tensor(checkpoint.tensors[name])
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, expected, err_msg=name)


def test_llama_comes_back_as_it_was(
    convert: Convert, write_gguf: Write, make_tensors: MakeTensors
) -> None:
    tensors = make_tensors()
    checkpoint = convert(write_gguf(tensors))
    assert_same(checkpoint, tensors)
    assert checkpoint.spec.has_tied_embeddings
    assert checkpoint.spec.rms_norm_eps == 1e-5
    assert checkpoint.spec.vocab_size == 264


@pytest.mark.parametrize(
    ("arch", "changes", "metadata"),
    [
        ("llama", {"tie_word_embeddings": False}, {}),
        ("llama", {"attention_bias": True, "mlp_bias": True}, {}),
        (
            "llama",
            {"head_dim": 32},
            {
                "llama.attention.key_length": 32,
                "llama.attention.value_length": 32,
                "llama.rope.dimension_count": 32,
            },
        ),
        ("qwen2", {}, {}),
        (
            "qwen3",
            {"head_dim": 32},
            {
                "qwen3.attention.key_length": 32,
                "qwen3.attention.value_length": 32,
                "qwen3.rope.dimension_count": 32,
            },
        ),
    ],
)
def test_every_shape_of_model_comes_back_as_it_was(
    convert: Convert,
    write_gguf: Write,
    make_tensors: MakeTensors,
    arch: str,
    changes: dict[str, Any],
    metadata: dict[str, Any],
) -> None:
    tensors = make_tensors(model_type=arch, **{"head_dim": 16, **changes})
    checkpoint = convert(write_gguf(tensors, arch=arch, metadata=metadata))
    assert_same(checkpoint, tensors)
    assert checkpoint.spec.family == arch


def test_tensors_are_written_in_pieces_of_whole_heads(
    convert: Convert,
    write_gguf: Write,
    make_tensors: MakeTensors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 20 rows of 64: not a multiple of the head size 16, which q and k need
    monkeypatch.setattr(converter, "_PIECE_ELEMENTS", 20 * 64)
    tensors = make_tensors()
    assert_same(convert(write_gguf(tensors)), tensors)


def test_quantized_rows_are_unpacked_before_they_are_reordered(
    convert: Convert, write_gguf: Write, make_tensors: MakeTensors
) -> None:
    tensors = make_tensors()
    types = {
        "blk.1.attn_q.weight": Quant.Q8_0,
        "blk.1.ffn_up.weight": Quant.Q4_1,
        "token_embd.weight": Quant.BF16,
    }
    checkpoint = convert(write_gguf(tensors, quantize=types))
    for name, kind in (
        (Q_PROJ, Quant.Q8_0),
        ("model.layers.1.mlp.up_proj.weight", Quant.Q4_1),
        ("model.embed_tokens.weight", Quant.BF16),
    ):
        # blocks lie along rows, so reordering rows does not change what they round to
        packed = gguf.quants.quantize(tensors[name].astype(np.float32), kind)
        expected = gguf.quants.dequantize(packed, kind).astype(np.float16)
        np.testing.assert_array_equal(read_tensor(checkpoint.tensors[name]), expected)


def test_the_source_is_recorded(convert: Convert, write_gguf: Write) -> None:
    path = write_gguf(quantize={"token_embd.weight": Quant.Q8_0})
    source = convert(path).source
    assert source["kind"] == "gguf"
    assert source["file"] == "tiny.Q8_0.gguf"
    assert len(source["sha256"]) == 64
    # tied: 20 tensors, of which 5 are norms
    assert source["quant_types"] == {"F16": 14, "F32": 5, "Q8_0": 1}


def test_transformers_computes_the_same_from_the_conversion(
    convert: Convert, write_gguf: Write, make_tensors: MakeTensors, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=264,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
    )
    model: Any = LlamaForCausalLM(config)  # its `to` is hidden from mypy by a decorator
    model = model.to(torch.float16)
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    path = convert(write_gguf(tensors)).path
    again = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = torch.arange(40)[None] * 5
    with torch.no_grad():
        expected, found = model.float()(ids).logits, again(ids).logits
    torch.testing.assert_close(found, expected)


def rope_freqs(factor: float, *, head_dim: int = 16, theta: float = 500000.0) -> Tensors:
    """The tensor as llama.cpp's converter makes it (its `generate_extra_tensors`)."""
    frequencies = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    factors = []
    for wavelength in 2 * np.pi / frequencies:
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192 / 1:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return {"rope_freqs.weight": np.array(factors, np.float32)}


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_recognised_by_its_factors(
    convert: Convert, write_gguf: Write, factor: float
) -> None:
    path = write_gguf(extra=rope_freqs(factor), metadata={"llama.rope.freq_base": 500000.0})
    spec = convert(path).spec
    assert spec.rope_theta == 500000.0
    assert spec.rope_scaling == RopeScaling(
        kind="llama3",
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_context_tokens=8192,
    )


def test_llama3_factors_by_hand() -> None:
    scaling = RopeScaling(kind="llama3", factor=8.0)
    factors = llama3_factors(scaling, 500000.0, 128)
    assert len(factors) == 64
    # pair 0: wavelength 2 pi = 6.28 tokens, below 8192 / 4 = 2048: untouched
    assert factors[0] == 1.0
    # pair 30: 2 pi 500000^(60/128) = 2948.6 tokens, 2.7783 turns in 8192 tokens;
    # blend (2.7783 - 1) / 3 = 0.59277; 1 / (0.40723 / 8 + 0.59277) = 1.55355
    assert factors[30] == pytest.approx(1.55355, rel=1e-4)
    # pair 63: 2 pi 500000^(126/128) = 2.56 million tokens, above 8192: divided by 8
    assert factors[63] == 8.0


@pytest.mark.parametrize(
    "extra",
    [
        rope_freqs(16.0),
        rope_freqs(8.0, theta=10000.0),
        rope_freqs(8.0, head_dim=32),
        {"rope_freqs.weight": np.full(8, np.nan, np.float32)},
    ],
)
def test_unknown_rope_factors_are_refused(
    convert: Convert, write_gguf: Write, extra: Tensors
) -> None:
    path = write_gguf(extra=extra, metadata={"llama.rope.freq_base": 500000.0})
    assert "not those of Llama 3.1 to 3.3" in refusal(convert, path)


def test_factors_of_one_are_no_scaling(convert: Convert, write_gguf: Write) -> None:
    ones = {"rope_freqs.weight": np.ones(8, np.float32)}
    assert convert(write_gguf(extra=ones)).spec.rope_scaling is None


def test_linear_scaling_is_kept(convert: Convert, write_gguf: Write) -> None:
    metadata = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    spec = convert(write_gguf(metadata=metadata)).spec
    assert spec.rope_scaling == RopeScaling(kind="linear", factor=4.0)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "unsupported rotary scaling: yarn"),
        ({"llama.rope.dimension_count": 8}, "a part of each head"),
        ({"llama.attention.value_length": 8}, "value heads of another size"),
        ({"llama.expert_count": 8}, "mixtures of experts"),
        ({"llama.logit_scale": 16.0}, "does not do: llama.logit_scale"),
        ({"llama.attention.sliding_window": 64}, "does not do: llama.attention.sliding_window"),
        ({"llama.block_count": None}, "lacks a key: llama.block_count"),
        ({"llama.block_count": 3}, "9 of 29 tensors are missing"),
        ({"llama.block_count": 1}, "a tensor that edgekit does not know: blk.1."),
        ({"llama.block_count": 4_000_000_000}, "out of range: 4000000000"),
        ({"llama.block_count": 2_000_000_000}, "20 tensors cannot make 2000000000 layers"),
        ({"llama.feed_forward_length": 128}, "another shape than the metadata says"),
        ({"llama.attention.head_count": "4"}, "is not a positive whole number: '4'"),
        ({"llama.attention.head_count": 0}, "is not a positive whole number: 0"),
        ({"llama.attention.head_count": [4, 4]}, "is not a positive whole number: [4, 4]"),
        ({"llama.attention.layer_norm_rms_epsilon": "x"}, "is not a number: 'x'"),
        ({"llama.rope.freq_base": -1.0}, "llama.rope.freq_base is out of range: -1.0"),
        ({"llama.rope.freq_base": 0.0}, "llama.rope.freq_base is out of range: 0.0"),
        ({"llama.rope.freq_base": float("inf")}, "llama.rope.freq_base is out of range: inf"),
        ({"tokenizer.ggml.tokens": None}, "lacks a key: tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.eos_token_id": 264}, "is not the id of a token: 264"),
        ({"split.count": 2}, "split into 2 GGUF files"),
    ],
)
def test_metadata_that_means_another_model_is_refused(
    convert: Convert, write_gguf: Write, metadata: dict[str, Any], words: str
) -> None:
    assert words in refusal(convert, write_gguf(metadata=metadata))


@pytest.mark.parametrize("arch", ["gpt2", "qwen3moe", "deci", "clip"])
def test_another_architecture_is_refused_by_name(
    convert: Convert, write_gguf: Write, arch: str
) -> None:
    assert f"unsupported GGUF architecture: {arch}" in refusal(convert, write_gguf(arch=arch))


@pytest.mark.parametrize("value", [65520.0, -1e6, np.inf, np.nan])
def test_a_weight_beyond_fp16_is_refused(
    convert: Convert, write_gguf: Write, make_tensors: MakeTensors, value: float
) -> None:
    tensors: Tensors = make_tensors()
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float32)
    tensors["model.norm.weight"][3] = value
    assert "output_norm.weight has a value beyond" in refusal(convert, write_gguf(tensors))


def test_an_unpackable_quant_type_is_refused_by_name(
    convert: Convert, write_gguf: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dequantize(data: Any, kind: Any) -> Any:
        raise NotImplementedError

    path = write_gguf()
    monkeypatch.setattr(gguf.quants, "dequantize", dequantize)
    assert "cannot be unpacked: F16" in refusal(convert, path)


def test_every_end_of_turn_is_in_the_generation_config(convert: Convert, write_gguf: Write) -> None:
    path = write_gguf(metadata={"tokenizer.ggml.eot_token_id": 263})
    written = json.loads((convert(path).path / "generation_config.json").read_text())
    assert written == {"bos_token_id": 261, "eos_token_id": [262, 263], "pad_token_id": 262}


def test_one_end_of_turn_is_a_plain_number(convert: Convert, write_gguf: Write) -> None:
    written = json.loads((convert(write_gguf()).path / "generation_config.json").read_text())
    assert written["eos_token_id"] == 262


def test_a_chat_model_without_an_end_of_turn_id_is_searched_for_one(
    convert: Convert, write_gguf: Write, make_tensors: MakeTensors
) -> None:
    # as in base vocabularies of qwen: eos is <|endoftext|>, turns end with <|im_end|>
    import gguf

    tokens = gguf.GGUFReader(write_gguf()).fields["tokenizer.ggml.tokens"].contents()
    path = write_gguf(metadata={"tokenizer.ggml.tokens": [*tokens[:-1], "<|im_end|>"]})
    written = json.loads((convert(path).path / "generation_config.json").read_text())
    assert written["eos_token_id"] == [262, 263]
