"""Tiny checkpoints and GGUF files, made on the spot from a seed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from edgekit.families import expected_tensors, read_spec

Tensors = dict[str, NDArray[Any]]

TINY: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """`make(edit=..., **config)`: a checkpoint directory; `edit` may change its tensors."""

    def make(
        edit: Callable[[Tensors], None] | None = None, name: str = "tiny", **changes: Any
    ) -> Path:
        config = {**TINY, **changes}
        rng = np.random.default_rng(0)
        tensors: Tensors = {
            tensor: rng.standard_normal(shape).astype(np.float16)
            for tensor, shape in expected_tensors(read_spec(config)).items()
        }
        if edit is not None:
            edit(tensors)
        path = tmp_path / name
        path.mkdir()
        save_file(tensors, path / "model.safetensors")
        (path / "config.json").write_text(json.dumps(config))
        (path / "tokenizer.json").write_text("{}")
        return path

    return make


@pytest.fixture
def make_tensors() -> Callable[..., Tensors]:
    """`make(**config)`: random fp16 weights under Hugging Face names, as `write_gguf` wants them.

    The vocabulary is that of `write_gguf`, and the head is tied unless `config` says otherwise.
    """

    def make(**changes: Any) -> Tensors:
        config = {**TINY, "vocab_size": len(_tokens()), "tie_word_embeddings": True, **changes}
        rng = np.random.default_rng(0)
        return {
            name: rng.standard_normal(shape).astype(np.float16)
            for name, shape in expected_tensors(read_spec(config)).items()
        }

    return make


@pytest.fixture
def write_gguf(tmp_path: Path, make_tensors: Callable[..., Tensors]) -> Callable[..., Path]:
    """`write(tensors, arch=..., ...)`: a GGUF file of `tensors` (Hugging Face names).

    q and k are reordered as llama.cpp's converter does for llama. `metadata` changes keys, and
    leaves out those set to `None`; `extra` holds tensors under GGUF names; `quantize` maps GGUF
    names to the ggml type to store. The vocabulary: 256 bytes, "he", "ll", "hell", "hello",
    " hello", then `<s>` (261), `</s>` (262) and the user-defined `<tool>` (263).
    """

    def write(
        tensors: Tensors | None = None,
        *,
        arch: str = "llama",
        name: str = "tiny.Q8_0.gguf",
        metadata: dict[str, Any] | None = None,
        extra: Tensors | None = None,
        quantize: dict[str, Any] | None = None,
    ) -> Path:
        import gguf

        writer = gguf.GGUFWriter(str(tmp_path / name), arch)
        for key, value in {**_metadata(arch), **(metadata or {})}.items():
            _add_key(writer, key, value)
        stored = _to_gguf(make_tensors() if tensors is None else tensors, arch) | (extra or {})
        for tensor, data in stored.items():
            if kind := (quantize or {}).get(tensor):
                packed = gguf.quants.quantize(data.astype(np.float32), kind)
                writer.add_tensor(tensor, packed, raw_dtype=kind)
            else:
                writer.add_tensor(tensor, data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / name

    return write


def _add_key(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif value is not None:
        adders = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        adders[type(value)](key, value)


def _tokens() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    words = ["he", "ll", "hell", "hello", "Ġhello"]
    return [*sorted(ByteLevel.alphabet()), *words, "<s>", "</s>", "<tool>"]


def _metadata(arch: str) -> dict[str, Any]:
    """What llama.cpp's converter writes for the shape in `TINY`."""
    return {
        f"{arch}.block_count": 2,
        f"{arch}.context_length": 512,
        f"{arch}.embedding_length": 64,
        f"{arch}.feed_forward_length": 96,
        f"{arch}.attention.head_count": 4,
        f"{arch}.attention.head_count_kv": 2,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.freq_base": 10000.0,
        f"{arch}.rope.dimension_count": 16,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": _tokens(),
        "tokenizer.ggml.token_type": [1] * 261 + [3, 3, 4],
        "tokenizer.ggml.merges": ["h e", "l l", "he ll", "hell o", "Ġ hello"],
        "tokenizer.ggml.bos_token_id": 261,
        "tokenizer.ggml.eos_token_id": 262,
        "tokenizer.ggml.padding_token_id": 262,
        "tokenizer.chat_template": "{{ messages }}",
    }


_GGUF_NAMES = {
    "model.embed_tokens.": "token_embd.",
    "model.norm.": "output_norm.",
    "lm_head.": "output.",
    "model.layers.": "blk.",
    "input_layernorm.": "attn_norm.",
    "post_attention_layernorm.": "ffn_norm.",
    "self_attn.q_proj.": "attn_q.",
    "self_attn.k_proj.": "attn_k.",
    "self_attn.v_proj.": "attn_v.",
    "self_attn.o_proj.": "attn_output.",
    "self_attn.q_norm.": "attn_q_norm.",
    "self_attn.k_norm.": "attn_k_norm.",
    "mlp.gate_proj.": "ffn_gate.",
    "mlp.up_proj.": "ffn_up.",
    "mlp.down_proj.": "ffn_down.",
}


def _to_gguf(tensors: Tensors, arch: str) -> Tensors:
    result: Tensors = {}
    for name, data in tensors.items():
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2], 0) if arch == "llama" else 0
        if heads:
            halves = data.reshape(heads, 2, data.shape[0] // heads // 2, *data.shape[1:])
            data = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(data.shape))
        for theirs, ours in _GGUF_NAMES.items():
            name = name.replace(theirs, ours)
        # converters keep one-dimensional tensors at float32
        result[name] = data.astype(np.float32) if data.ndim == 1 else data
    return result
