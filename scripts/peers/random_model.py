"""A checkpoint of TinyLlama-1.1B's shape with random weights, for speed on a larger model.

Written in fp16 shards, one layer at a time, with numpy alone. Vocabulary and tokenizer are
SmolLM2's (49,152 tokens instead of TinyLlama's 32,000), so that every converter finds a real
tokenizer: 1.17e9 parameters.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from peers.prepare import smollm2_checkpoint

_CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 49152,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 2048,
    "tie_word_embeddings": False, "torch_dtype": "float16",
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
_HIDDEN, _WIDE, _LAYERS, _KV, _VOCAB = 2048, 5632, 22, 256, 49152
_SEED = 20240229
_STDDEV = 0.02

Tensors = dict[str, NDArray[np.float16]]


def write_random_checkpoint(directory: Path) -> Path:
    """Write the checkpoint to `directory/hf` unless it is there. 2.2 GiB."""
    final = directory / "hf"
    if final.is_dir():
        return final
    scratch = directory / ".hf"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    tokenizer = smollm2_checkpoint(directory.parent / "smollm2")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(tokenizer / name, scratch / name)
    (scratch / "config.json").write_text(json.dumps(_CONFIG, indent=2), encoding="utf-8")
    index: dict[str, str] = {}
    for number, tensors in enumerate(_shards()):
        name = f"model-{number:05d}.safetensors"
        _write_safetensors(scratch / name, tensors)
        index |= dict.fromkeys(tensors, name)
    (scratch / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index}), encoding="utf-8"
    )
    scratch.rename(final)
    return final


def _shards() -> Iterator[Tensors]:
    """The embeddings, then each layer, then the rest."""
    random = np.random.default_rng(_SEED)

    def normal(rows: int, columns: int) -> NDArray[np.float16]:
        values = random.standard_normal((rows, columns), dtype=np.float32)
        return (values * np.float32(_STDDEV)).astype(np.float16)

    ones = np.ones(_HIDDEN, np.float16)
    yield {"model.embed_tokens.weight": normal(_VOCAB, _HIDDEN)}
    for layer in range(_LAYERS):
        prefix = f"model.layers.{layer}"
        yield {
            f"{prefix}.input_layernorm.weight": ones,
            f"{prefix}.self_attn.q_proj.weight": normal(_HIDDEN, _HIDDEN),
            f"{prefix}.self_attn.k_proj.weight": normal(_KV, _HIDDEN),
            f"{prefix}.self_attn.v_proj.weight": normal(_KV, _HIDDEN),
            f"{prefix}.self_attn.o_proj.weight": normal(_HIDDEN, _HIDDEN),
            f"{prefix}.post_attention_layernorm.weight": ones,
            f"{prefix}.mlp.gate_proj.weight": normal(_WIDE, _HIDDEN),
            f"{prefix}.mlp.up_proj.weight": normal(_WIDE, _HIDDEN),
            f"{prefix}.mlp.down_proj.weight": normal(_HIDDEN, _WIDE),
        }
    yield {"model.norm.weight": ones, "lm_head.weight": normal(_VOCAB, _HIDDEN)}


def _write_safetensors(path: Path, tensors: Tensors) -> None:
    """The format by hand: length, JSON header, then the tensors in its order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        header[name] = {
            "dtype": "F16", "shape": list(tensor.shape), "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.tobytes())
