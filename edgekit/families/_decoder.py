"""The keys of `config.json` that every Llama-shaped family shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.errors import CheckpointError
from edgekit.families._fields import read_flag, read_number, read_value, read_whole
from edgekit.families._rope import read_rope
from edgekit.model import ModelSpec


def read_decoder(
    config: Mapping[str, Any],
    *,
    has_qkv_bias: bool = False,
    has_o_bias: bool = False,
    has_mlp_bias: bool = False,
    has_qk_norm: bool = False,
) -> ModelSpec:
    """The `ModelSpec` of a Llama-shaped decoder.

    Absent keys take the value that `transformers` gives them in all families here. Raises
    `CheckpointError` for an activation other than SiLU and for a sliding window in use.
    """
    _refuse_other_graphs(config)
    num_query_heads = read_whole(config, "num_attention_heads")
    rope_theta, rope_scaling = read_rope(config)
    return ModelSpec(
        family=config["model_type"],
        num_layers=read_whole(config, "num_hidden_layers"),
        hidden_size=read_whole(config, "hidden_size"),
        intermediate_size=read_whole(config, "intermediate_size"),
        num_query_heads=num_query_heads,
        num_kv_heads=read_whole(config, "num_key_value_heads", num_query_heads),
        head_dim=_read_head_dim(config),
        vocab_size=read_whole(config, "vocab_size"),
        max_context_tokens=read_whole(config, "max_position_embeddings"),
        rms_norm_eps=read_number(config, "rms_norm_eps"),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        has_tied_embeddings=read_flag(config, "tie_word_embeddings"),
        has_qkv_bias=has_qkv_bias,
        has_o_bias=has_o_bias,
        has_mlp_bias=has_mlp_bias,
        has_qk_norm=has_qk_norm,
    )


def _read_head_dim(config: Mapping[str, Any]) -> int:
    """D: `head_dim`, or H / Hq where the key is absent."""
    if config.get("head_dim") is not None:
        return read_whole(config, "head_dim")
    hidden_size = read_whole(config, "hidden_size")
    num_query_heads = read_whole(config, "num_attention_heads")
    if hidden_size % num_query_heads:
        raise CheckpointError(
            f"hidden_size {hidden_size} is not a multiple of {num_query_heads} attention heads"
        )
    return hidden_size // num_query_heads


def _refuse_other_graphs(config: Mapping[str, Any]) -> None:
    activation = read_value(config, "hidden_act", "silu")
    if activation != "silu":
        raise CheckpointError(
            f"unsupported activation: {activation}", hint="edgekit computes SiLU only"
        )
    if _has_sliding_window(config):
        raise CheckpointError(
            "the model uses sliding-window attention, which edgekit does not compute"
        )


def _has_sliding_window(config: Mapping[str, Any]) -> bool:
    """Whether some layer sees less than the whole context.

    A `sliding_window` counts unless `use_sliding_window` is false (qwen), no layer is left for
    it (qwen: the first `max_window_layers` see everything), or it is as long as the context
    (mistral).
    """
    layer_types = config.get("layer_types")
    if isinstance(layer_types, list) and any(kind != "full_attention" for kind in layer_types):
        return True
    if config.get("sliding_window") is None:
        return False
    if not read_flag(config, "use_sliding_window", default=True):
        return False
    num_layers = read_whole(config, "num_hidden_layers")
    if config.get("max_window_layers") == num_layers:
        return False
    window = read_whole(config, "sliding_window")
    return window < read_whole(config, "max_position_embeddings")
