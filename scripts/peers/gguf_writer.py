"""A Llama checkpoint as an F16 GGUF file, which llama.cpp then quantizes itself.

The tokenizer is copied from the GGUF file of SmolLM2, whose vocabulary both models have.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from edgekit.checkpoint import read_checkpoint, read_tensor

_LAYER_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
_OTHER_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_f16_gguf(directory: Path, tokenizer_gguf: Path, out: Path) -> None:
    """Convert the checkpoint in `directory`, one tensor at a time."""
    checkpoint = read_checkpoint(directory)
    writer = gguf.GGUFWriter(out, "llama", use_temp_file=False)
    _add_shape(writer, checkpoint.config)
    _copy_tokenizer(writer, tokenizer_gguf)
    names = {name: _gguf_name(name) for name in checkpoint.tensors}
    for name, new_name in names.items():
        info = checkpoint.tensors[name]
        is_norm = len(info.shape) == 1
        dtype: type[np.generic] = np.float32 if is_norm else np.float16
        count = int(np.prod(info.shape))
        writer.add_tensor_info(
            new_name, info.shape, np.dtype(dtype), count * np.dtype(dtype).itemsize
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    heads = {
        "q_proj": checkpoint.config["num_attention_heads"],
        "k_proj": checkpoint.config["num_key_value_heads"],
    }
    for name in names:
        tensor = read_tensor(checkpoint.tensors[name])
        kind = name.split(".")[-2]
        if kind in heads:
            tensor = _permute(tensor, heads[kind])
        writer.write_tensor_data(tensor.astype(np.float32 if tensor.ndim == 1 else np.float16))
    writer.close()


def _gguf_name(name: str) -> str:
    if name in _OTHER_NAMES:
        return _OTHER_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def _permute(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows from the two halves that Hugging Face rotates to the pairs that llama.cpp does."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def _add_shape(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    writer.add_name("model")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def _copy_tokenizer(writer: gguf.GGUFWriter, source: Path) -> None:
    for field in gguf.GGUFReader(source).fields.values():
        if field.name.startswith("tokenizer."):
            kind = field.types[0]
            of = field.types[-1] if kind is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=of)
