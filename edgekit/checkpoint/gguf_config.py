"""GGUF metadata -> `config.json` and `generation_config.json`.

Only keys known to leave the llama graph as it is are accepted: an unknown key below the
architecture's name (a logit scale, experts, a soft cap) would mean a graph that edgekit does
not compute, and a model that talks nonsense.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.checkpoint.gguf_file import GgufFile
from edgekit.errors import CheckpointError
from edgekit.model import RopeScaling


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How llama.cpp stores one family."""

    model_type: str
    transformers_class: str
    is_permuted: bool
    """Rows of q and k are interleaved for llama.cpp's first rotary form."""


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(
        model_type="llama", transformers_class="LlamaForCausalLM", is_permuted=True
    ),
    "qwen2": Architecture(
        model_type="qwen2", transformers_class="Qwen2ForCausalLM", is_permuted=False
    ),
    "qwen3": Architecture(
        model_type="qwen3", transformers_class="Qwen3ForCausalLM", is_permuted=False
    ),
}
_HARMLESS_KEYS = frozenset(
    {
        "attention.causal",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_rms_epsilon",
        "attention.value_length",
        "block_count",
        "context_length",
        "embedding_length",
        "expert_count",
        "expert_used_count",
        "feed_forward_length",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.factor",
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",
        "rope.scaling.type",
        "tensor_data_layout",
        "vocab_size",
    }
)
_LLAMA3_FACTORS = (8.0, 32.0)
"""Llama 3.1 and 3.3; Llama 3.2. Low 1, high 4 and 8192 tokens in all of them."""
_END_OF_TURN = ("<|eot_id|>", "<|im_end|>")
"""Found by their text where the file has no `eot_token_id`, as llama.cpp does."""


def find_architecture(gguf: GgufFile) -> Architecture:
    """The row of `general.architecture`. Raises `CheckpointError`."""
    name = gguf.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise CheckpointError(
            f"unsupported GGUF architecture: {name}", hint=f"supported are {_listed(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def make_config(gguf: GgufFile, *, rope_factors: list[float] | None) -> dict[str, Any]:
    """The `config.json` of the model in `gguf`, for `families` to check.

    `rope_factors` is the content of `rope_freqs.weight`, D / 2 numbers. Raises
    `CheckpointError`.
    """
    architecture = find_architecture(gguf)
    prefix = architecture.model_type
    _refuse_other_graphs(gguf.metadata, prefix)
    keys = _Keys(gguf.metadata, prefix)
    num_heads = keys.whole("attention.head_count")
    head_dim = keys.whole("attention.key_length", keys.whole("embedding_length") // num_heads)
    if keys.whole("rope.dimension_count", head_dim) != head_dim:
        raise CheckpointError("unsupported rotary embedding: it turns a part of each head")
    if keys.whole("attention.value_length", head_dim) != head_dim:
        raise CheckpointError("value heads of another size than key heads are not supported")
    theta = keys.number("rope.freq_base", 10_000.0)
    if theta < 1:
        raise CheckpointError(f"{prefix}.rope.freq_base is out of range: {theta}")
    return {
        "architectures": [architecture.transformers_class],
        "model_type": architecture.model_type,
        "hidden_size": keys.whole("embedding_length"),
        "intermediate_size": keys.whole("feed_forward_length"),
        "num_hidden_layers": keys.whole("block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": keys.whole("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "vocab_size": len(read_list(gguf.metadata, "tokenizer.ggml.tokens", str)),
        "max_position_embeddings": keys.whole("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(keys, theta, head_dim, rope_factors),
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in gguf.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in gguf.tensors,
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "torch_dtype": "float16",
        **read_special_ids(gguf),
    }


def make_generation_config(gguf: GgufFile) -> dict[str, Any]:
    """Ids that begin, end and pad; every id that ends a turn is in `eos_token_id`."""
    ids: dict[str, Any] = read_special_ids(gguf)
    tokens = read_list(gguf.metadata, "tokenizer.ggml.tokens", str)
    end_of_turn, end_of_message = (
        _read_id(gguf, f"tokenizer.ggml.{key}_token_id", len(tokens)) for key in ("eot", "eom")
    )
    ends = [ids.get("eos_token_id"), end_of_turn, end_of_message]
    if end_of_turn is None:
        ends += [tokens.index(text) for text in _END_OF_TURN if text in tokens]
    unique = list(dict.fromkeys(end for end in ends if end is not None))
    if unique:
        ids["eos_token_id"] = unique if len(unique) > 1 else unique[0]
    return ids


def read_special_ids(gguf: GgufFile) -> dict[str, int]:
    """`bos_token_id`, `eos_token_id` and `pad_token_id`, as far as the file has them."""
    num_tokens = len(read_list(gguf.metadata, "tokenizer.ggml.tokens", str))
    found = {
        f"{name}_token_id": _read_id(gguf, f"tokenizer.ggml.{key}_token_id", num_tokens)
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    return {name: value for name, value in found.items() if value is not None}


def read_list(metadata: Mapping[str, Any], key: str, *types: type) -> list[Any]:
    """A list whose items have one of `types`. Raises `CheckpointError`."""
    value = metadata.get(key)
    if value is None:
        raise CheckpointError(f"the GGUF file lacks a key: {key}")
    if not isinstance(value, list) or not all(isinstance(item, types) for item in value):
        raise CheckpointError(f"{key} in the GGUF file is of the wrong type")
    return value


def llama3_factors(scaling: RopeScaling, theta: float, head_dim: int) -> list[float]:
    """What llama.cpp divides each of the D / 2 rotary frequencies by.

    The inverse of the frequency change in Llama 3.1's reference code (`apply_scaling`): 1 for
    short wavelengths, `factor` for long ones, a blend between.
    """
    factors = []
    for index in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (index / head_dim)
        turns = scaling.original_context_tokens / wavelength
        span = scaling.high_freq_factor - scaling.low_freq_factor
        blend = min(max((turns - scaling.low_freq_factor) / span, 0.0), 1.0)
        factors.append(1 / ((1 - blend) / scaling.factor + blend))
    return factors


class _Keys:
    """Typed access to the keys below the architecture's name."""

    def __init__(self, metadata: Mapping[str, Any], prefix: str) -> None:
        self._metadata = metadata
        self._prefix = prefix

    def whole(self, key: str, default: int | None = None) -> int:
        value = self._read(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{self._prefix}.{key} is not a positive whole number: {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._read(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise CheckpointError(f"{self._prefix}.{key} is not a number: {value!r}")
        if not 0 <= value < math.inf:
            raise CheckpointError(f"{self._prefix}.{key} is out of range: {value}")
        # stored as float32: seven digits give back what was meant, 1e-05 and not 9.9999997e-06
        return float(f"{value:.7g}")

    def text(self, key: str, default: str) -> str:
        return str(self._read(key, default))

    def _read(self, key: str, default: Any) -> Any:
        value = self._metadata.get(f"{self._prefix}.{key}", default)
        if value is None:
            raise CheckpointError(f"the GGUF file lacks a key: {self._prefix}.{key}")
        return value


def _refuse_other_graphs(metadata: Mapping[str, Any], prefix: str) -> None:
    known = {f"{prefix}.{key}" for key in _HARMLESS_KEYS}
    for key, value in metadata.items():
        if key.startswith(f"{prefix}.") and key not in known:
            raise CheckpointError(f"the GGUF file asks for something edgekit does not do: {key}")
        if key in (f"{prefix}.expert_count", f"{prefix}.expert_used_count") and value != 0:
            raise CheckpointError("mixtures of experts are not supported")


def _rope_scaling(
    keys: _Keys, theta: float, head_dim: int, factors: list[float] | None
) -> dict[str, Any] | None:
    kind = keys.text("rope.scaling.type", "linear")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    if kind not in ("none", "linear"):
        raise CheckpointError(f"unsupported rotary scaling: {kind}")
    is_linear = kind == "linear" and factor not in (0.0, 1.0)
    if factors is None or all(factor == 1.0 for factor in factors):
        return {"rope_type": "linear", "factor": factor} if is_linear else None
    for candidate in _LLAMA3_FACTORS if 2 * len(factors) == head_dim and not is_linear else ():
        scaling = RopeScaling(kind="llama3", factor=candidate)
        expected = llama3_factors(scaling, theta, head_dim)
        if all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(factors, expected, strict=True)):
            return {
                "rope_type": "llama3",
                "factor": candidate,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_context_tokens,
            }
    raise CheckpointError("rope_freqs.weight holds factors that are not those of Llama 3.1 to 3.3")


def _read_id(gguf: GgufFile, key: str, num_tokens: int) -> int | None:
    value = gguf.metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < num_tokens:
        raise CheckpointError(f"{key} is not the id of a token: {value!r}")
    return value


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names))
