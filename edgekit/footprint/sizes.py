"""The arithmetic of memory: bytes of weights, cache, workspace and engines."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from edgekit.footprint.rows import Compilation, Footprint
from edgekit.model import ModelSpec
from edgekit.profile import Storage
from edgekit.units import MIB

_SMALLEST_GROUP = 16
STEP_TOKENS: Mapping[str, int] = MappingProxyType({"none": 1, "ngram": 5})
"""How an engine drafts by itself -> tokens that a conversation has in one step: the next one, and
drafts. "ngram": what followed the last tokens when they came before is taken for what follows."""


def input_widths(spec: ModelSpec) -> dict[str, int]:
    """Name of every linear layer of a block (the widest, where blocks differ) -> its inputs."""
    hidden = spec.hidden_size
    attention = {"q_proj": hidden, "k_proj": hidden, "v_proj": hidden, "o_proj": spec.q_size}
    mlp = {"gate_proj": hidden, "up_proj": hidden, "down_proj": spec.intermediate_size}
    return attention | mlp


def kept_layers(spec: ModelSpec, storage: Storage) -> tuple[str, ...]:
    """Names of linear layers that are left out of quantization, in a block's order."""
    if storage.down_bits is not None:
        return ("down_proj",)
    group = storage.group_size
    if not storage.keeps_undivided or group is None:
        return ()
    return tuple(name for name, width in input_widths(spec).items() if width % group)


def fitting_group(spec: ModelSpec, wanted: int, *, is_fixed: bool = False) -> int | None:
    """The largest power-of-two group up to `wanted` that divides every layer's input width;
    `None` where not even 16 does, the smallest that kernels take.

    With `is_fixed` it is `wanted`, where that divides the input width of any layer.
    """
    widths = set(input_widths(spec).values())
    if is_fixed:
        return wanted if any(width % wanted == 0 for width in widths) else None
    group = wanted
    while group >= _SMALLEST_GROUP:
        if all(width % group == 0 for width in widths):
            return group
        group //= 2
    return None


def table_bytes(count: int, bits: int, group_size: int | None, scale_bits: int) -> int:
    """Bytes of `count` values of `bits` in groups that share a scale, rounded up."""
    scales = count * scale_bits / group_size if group_size and bits < 16 else 0
    return -int(-(count * bits + scales) // 8)


def weights_by_class(
    spec: ModelSpec, storage: Storage, *, shares_tied_tables: bool = True
) -> dict[str, int]:
    """Bytes of every tensor class as it lies in memory: linears, head, embedding, norms, what the
    kernels add when they pack matrices, and what prompts go through where that is a set of its own.

    Scales are counted with the tensors that they belong to. A head that is tied to the embedding
    and stored like it is one tensor, unless the backend packs it for itself: its bytes stand under
    `head`, and `embedding` is 0.
    """
    group, bits = storage.group_size, storage.linear_bits
    wide, wide_outputs = 0, 0
    if storage.down_bits is not None:
        wide, wide_outputs = spec.down_params, spec.hidden_size * spec.num_layers
    elif storage.keeps_undivided and group is not None:
        wide = spec.undivided_params(group)
    linears = table_bytes(spec.linear_params - wide, bits, group, storage.bits_per_group)
    linears += wide * (storage.down_bits or 16) // 8
    if storage.down_group_size is not None:
        linears += spec.down_params // storage.down_group_size * storage.scale_bits // 8
    if group is None and bits < 16:
        linears += (spec.linear_outputs - wide_outputs) * storage.scale_bits // 8
    head_group = group if storage.is_head_calibrated else storage.head_group_size
    head = _vocab_bytes(spec, storage, storage.head_bits, head_group)
    if storage.is_head_calibrated and storage.has_zero_points and group is not None:
        head += table_bytes(spec.embedding_params // group, bits, None, 0)
    embedding = _vocab_bytes(spec, storage, storage.embedding_bits, storage.head_group_size)
    is_alike = storage.head_bits == storage.embedding_bits and not storage.is_head_calibrated
    is_apart = storage.is_head_apart or not shares_tied_tables
    is_shared = spec.has_tied_embeddings and is_alike and not is_apart
    return {
        "linears": linears,
        "head": head,
        "embedding": 0 if is_shared else embedding,
        "norms": spec.small_params * storage.norm_bits // 8,
        "packing": _packing_bytes(spec, storage, head_group),
        "prompts": _prompt_bytes(spec, storage),
    }


def _packing_bytes(spec: ModelSpec, storage: Storage, head_group: int | None) -> int:
    groups = 0
    if storage.group_size is not None:
        groups += spec.linear_params // storage.group_size
    if storage.down_group_size is not None:
        groups += spec.down_params // storage.down_group_size
    if head_group is not None and storage.head_bits < 16:
        groups += spec.embedding_params // head_group
    return groups * storage.packed_bits // 8


def _prompt_bytes(spec: ModelSpec, storage: Storage) -> int:
    """Linear layers at `prompt_bits` with a scale for each output channel, and down_proj once more
    as it is, packed. Of the last layer only what fills its cache."""
    bits = storage.prompt_bits
    if bits is None:
        return 0
    hidden, mlp = spec.hidden_size, spec.intermediate_size
    whole, packed = spec.num_layers - 1, spec.q_size + 2 * spec.kv_size
    count = hidden * (spec.num_layers * packed + whole * (spec.q_size + 2 * mlp))
    outputs = spec.num_layers * packed + whole * (hidden + 2 * mlp)
    down, group = whole * hidden * mlp, storage.group_size
    size = table_bytes(count, bits, None, 0) + outputs * storage.scale_bits // 8
    size += table_bytes(down, storage.linear_bits, group, storage.bits_per_group)
    return size + (down // group * storage.packed_bits // 8 if group else 0)


def weights_bytes(spec: ModelSpec, storage: Storage) -> int:
    """All weights as they lie in memory while the engine runs."""
    return sum(weights_by_class(spec, storage).values())


def read_bytes(spec: ModelSpec, storage: Storage) -> int:
    """Weights that one token reads: all but the embedding, of which it reads one row."""
    weights = weights_by_class(spec, storage)
    return weights["linears"] + weights["head"] + weights["norms"]


def _vocab_bytes(spec: ModelSpec, storage: Storage, bits: int, group: int | None) -> int:
    """Embedding or head, `[V, H]`; without groups, one scale per row."""
    scales = spec.vocab_size * storage.scale_bits // 8 if group is None and bits < 16 else 0
    return table_bytes(spec.embedding_params, bits, group, storage.scale_bits) + scales


def kv_cache_bytes(
    spec: ModelSpec,
    *,
    context_tokens: int,
    batch: int = 1,
    kv_bits: int = 16,
    page_tokens: int = 1,
) -> int:
    """Memory of a full KV cache, in bytes, whole pages for each conversation.

    K and V are each `[L, B, Hkv, S, D]`. Only KV heads are cached, so grouped-query attention
    shrinks this by Hq / Hkv (Ainslie et al. 2023, arXiv:2305.13245).
    """
    tokens = -(-context_tokens // page_tokens) * page_tokens
    return batch * tokens * spec.kv_values_per_token * kv_bits // 8


def loading_bytes(spec: ModelSpec, storage: Storage) -> int:
    """What loading holds for a moment beside weights: of widened ones, the head at 16 and at 32
    bits once more, while the embedding has not been touched yet."""
    if not storage.is_widened:
        return 0
    return spec.embedding_params * (2 + 4 - storage.embedding_bits // 8)


def engine_bytes(
    spec: ModelSpec, storage: Storage, compilation: Compilation, *, context_tokens: int, batch: int
) -> int:
    """Size of a compiled engine: weights, four fp16 rotary tables `[S, D / 2]`, kernels."""
    fixed, per_layer = compilation.batch_code_bytes if batch > 1 else compilation.code_bytes
    tables = 4 * context_tokens * spec.head_dim // 2 * 2
    return weights_bytes(spec, storage) + tables + fixed + per_layer * spec.num_layers


def compile_seconds(spec: ModelSpec, storage: Storage, compilation: Compilation) -> float:
    """How long the compiler takes, on the machine that `Footprint.source` names."""
    size = weights_bytes(spec, storage)
    return compilation.layer_seconds * spec.num_layers + compilation.gigabyte_seconds * size / 1e9


def workspace_bytes(
    spec: ModelSpec,
    footprint: Footprint,
    *,
    context_tokens: int,
    batch: int = 1,
    precision: str = "",
    kv_precision: str = "",
    step_tokens: int = 1,
) -> int:
    """Activations of one prefill chunk, or of the longest prompt where it cannot be cut, K and V
    of one layer for all query heads where they are held so, fp32 logits of `step_tokens` (of one
    step) for each conversation, and the backend's fixed part."""
    chunk = min(footprint.chunk_tokens, context_tokens)
    if (precision, kv_precision) in footprint.whole_prompts:
        chunk = context_tokens
    if footprint.prefills_together:
        chunk *= batch
    activations = (
        chunk * _widest(spec) * footprint.live_activations * footprint.activation_bits // 8
    )
    copies = 0
    if precision in footprint.holds_all_heads and spec.num_query_heads > spec.num_kv_heads:
        copies = 2 * context_tokens * spec.q_size * footprint.activation_bits // 8
    logits = 4 * batch * step_tokens * spec.vocab_size
    return activations + copies + logits + footprint.fixed_workspace_bytes


def _widest(spec: ModelSpec) -> int:
    """Values a token has in the widest block: 3 F + 4 H + Hq D + 2 Hkv D."""
    return 3 * spec.intermediate_size + 4 * spec.hidden_size + spec.q_size + 2 * spec.kv_size


def describe_workspace(
    spec: ModelSpec, footprint: Footprint, *, whole_prompt_tokens: int | None = None
) -> str:
    """The formula of `workspace_bytes` with its numbers; a prompt that goes through whole has so
    many tokens."""
    at_once = f"{footprint.chunk_tokens} tokens of a prompt at once"
    if whole_prompt_tokens is not None:
        at_once = f"all {whole_prompt_tokens} tokens at once (with such a cache no prompt is cut)"
        if footprint.prefills_together:
            at_once = f"all {whole_prompt_tokens} tokens of every conversation at once"
    parts = [
        f"{at_once} x {_widest(spec):,} values x "
        f"{footprint.live_activations * footprint.activation_bits // 8} bytes"
    ]
    if footprint.holds_all_heads and spec.num_query_heads > spec.num_kv_heads:
        parts.append(
            f"K and V of one layer for all {spec.num_query_heads} heads (quantized weights)"
        )
    parts.append(f"logits {spec.vocab_size:,} x 4 bytes per conversation")
    if footprint.fixed_workspace_bytes:
        parts.append(f"{footprint.fixed_workspace_bytes // MIB} MiB")
    return " + ".join(parts)
