"""Names and shapes of the tensors that a Hugging Face checkpoint holds."""

from __future__ import annotations

from edgekit.model import ModelSpec


def expected_tensors(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every stored tensor of `spec`, in the order of computation.

    Weights of linear layers are `[out, in]`. A tied head is not among them.
    """
    tensors: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (spec.vocab_size, spec.hidden_size)
    }
    block = _block_tensors(spec)
    for layer in range(spec.num_layers):
        tensors |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    tensors["model.norm.weight"] = (spec.hidden_size,)
    if not spec.has_tied_embeddings:
        tensors["lm_head.weight"] = (spec.vocab_size, spec.hidden_size)
    return tensors


def _block_tensors(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    h, f, q, kv = spec.hidden_size, spec.intermediate_size, spec.q_size, spec.kv_size
    tensors: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (h,)}
    for name, rows, columns, has_bias in (
        ("self_attn.q_proj", q, h, spec.has_qkv_bias),
        ("self_attn.k_proj", kv, h, spec.has_qkv_bias),
        ("self_attn.v_proj", kv, h, spec.has_qkv_bias),
        ("self_attn.o_proj", h, q, spec.has_o_bias),
        ("mlp.gate_proj", f, h, spec.has_mlp_bias),
        ("mlp.up_proj", f, h, spec.has_mlp_bias),
        ("mlp.down_proj", h, f, spec.has_mlp_bias),
    ):
        tensors[f"{name}.weight"] = (rows, columns)
        if has_bias:
            tensors[f"{name}.bias"] = (rows,)
    if spec.has_qk_norm:
        tensors["self_attn.q_norm.weight"] = (spec.head_dim,)
        tensors["self_attn.k_norm.weight"] = (spec.head_dim,)
    tensors["post_attention_layernorm.weight"] = (h,)
    return tensors
