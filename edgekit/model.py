"""What edgekit needs to know about a model, read without loading a weight."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from edgekit.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the context the model was trained on."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    """`llama3` only."""
    high_freq_factor: float = 4.0
    """`llama3` only."""
    original_context_tokens: int = 8192
    """`llama3` only: the context before stretching."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The shape of a decoder-only model.

    Axis letters used in every docstring: B batch, T tokens in this call, S tokens
    already cached, L layers, H hidden size, F MLP size, Hq query heads, Hkv KV heads,
    D head size, V vocabulary.
    """

    family: str
    """Hugging Face `model_type`, e.g. `"llama"`."""
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_query_heads: int
    num_kv_heads: int
    """Equal to Hq for MHA, 1 for MQA, in between for GQA."""
    head_dim: int
    vocab_size: int
    max_context_tokens: int
    """`max_position_embeddings`."""
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    has_tied_embeddings: bool = False
    """The head reuses the embedding table."""
    has_qkv_bias: bool = False
    has_o_bias: bool = False
    has_mlp_bias: bool = False
    has_qk_norm: bool = False
    """RMSNorm over D on every query and key head, before RoPE (qwen3)."""

    def __post_init__(self) -> None:
        for name in (
            "num_layers",
            "hidden_size",
            "intermediate_size",
            "num_query_heads",
            "num_kv_heads",
            "head_dim",
            "vocab_size",
            "max_context_tokens",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise CheckpointError(f"{name} must be a positive whole number: {value!r}")
        if self.num_query_heads % self.num_kv_heads:
            raise CheckpointError(
                f"{self.num_query_heads} query heads cannot share {self.num_kv_heads} KV heads"
            )
        if self.head_dim % 2:
            raise CheckpointError(
                f"the head size must be even for rotary embedding: {self.head_dim}"
            )

    @property
    def q_size(self) -> int:
        """Hq x D, the output width of q_proj."""
        return self.num_query_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Hkv x D, the output width of k_proj and of v_proj."""
        return self.num_kv_heads * self.head_dim

    @property
    def linear_params(self) -> int:
        """Weights of the linear layers of all blocks, without biases."""
        attention = self.hidden_size * (2 * self.q_size + 2 * self.kv_size)
        mlp = 3 * self.hidden_size * self.intermediate_size
        return self.num_layers * (attention + mlp)

    @property
    def embedding_params(self) -> int:
        """Weights of one embedding table (or of one untied head)."""
        return self.vocab_size * self.hidden_size

    @property
    def small_params(self) -> int:
        """Norms and biases."""
        per_layer = 2 * self.hidden_size
        per_layer += 2 * self.head_dim if self.has_qk_norm else 0
        per_layer += self.q_size + 2 * self.kv_size if self.has_qkv_bias else 0
        per_layer += self.hidden_size if self.has_o_bias else 0
        per_layer += 2 * self.intermediate_size + self.hidden_size if self.has_mlp_bias else 0
        return self.num_layers * per_layer + self.hidden_size

    @property
    def num_params(self) -> int:
        """Stored weights, tied ones counted once."""
        tables = 1 if self.has_tied_embeddings else 2
        return self.linear_params + tables * self.embedding_params + self.small_params

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read what `to_dict` wrote."""
        scaling = data.get("rope_scaling")
        return cls(**{**data, "rope_scaling": RopeScaling(**scaling) if scaling else None})
