"""What edgekit needs to know about a model, read without loading a weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
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
class BlockSpec:
    """One block of a model whose blocks differ: found by architecture search, not repeated.

    A half that is `"none"` is missing with its norm; one that is `"linear"` is one H x H layer.
    """

    num_kv_heads: int = 0
    """0 where the attention is not `"gqa"`: nothing is cached."""
    intermediate_size: int = 0
    """0 where the MLP is not `"gated"`."""
    attention: Literal["gqa", "linear", "none"] = "gqa"
    mlp: Literal["gated", "linear", "none"] = "gated"

    def __post_init__(self) -> None:
        if (self.attention == "gqa") != (self.num_kv_heads > 0):
            raise CheckpointError(f"attention `{self.attention}` with {self.num_kv_heads} KV heads")
        if (self.mlp == "gated") != (self.intermediate_size > 0):
            raise CheckpointError(f"MLP `{self.mlp}` of size {self.intermediate_size}")


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
    """Of the widest block where blocks differ."""
    num_query_heads: int
    num_kv_heads: int
    """Equal to Hq for MHA, 1 for MQA, in between for GQA; the most where blocks differ."""
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
    blocks: tuple[BlockSpec, ...] = ()
    """Every block in order where they differ; empty: all are alike."""

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
        for _, block in self._runs():
            if block.num_kv_heads and self.num_query_heads % block.num_kv_heads:
                raise CheckpointError(
                    f"{self.num_query_heads} query heads cannot share {block.num_kv_heads} KV heads"
                )
        if self.head_dim % 2:
            raise CheckpointError(
                f"the head size must be even for rotary embedding: {self.head_dim}"
            )
        if self.blocks:
            self._check_blocks(self.blocks)

    def _check_blocks(self, blocks: tuple[BlockSpec, ...]) -> None:
        if len(blocks) != self.num_layers:
            raise CheckpointError(f"{len(blocks)} blocks are described, of {self.num_layers}")
        widest = max(block.intermediate_size for block in blocks)
        most = max(block.num_kv_heads for block in blocks)
        if (widest, most) != (self.intermediate_size, self.num_kv_heads):
            raise CheckpointError(
                f"the blocks have up to {most} KV heads and an MLP size of {widest}, the model "
                f"says {self.num_kv_heads} and {self.intermediate_size}"
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
    def kv_values_per_token(self) -> int:
        """Values that a token leaves in the KV cache: 2 (K and V) x sum over blocks of Hkv x D."""
        return 2 * self.head_dim * sum(n * block.num_kv_heads for n, block in self._runs())

    @property
    def linear_params(self) -> int:
        """Weights of the linear layers of all blocks, without biases."""
        return sum(n * width * out for n, b in self._runs() for width, out in self._linears(b))

    @property
    def down_params(self) -> int:
        """Weights of every down_proj."""
        return self.hidden_size * sum(n * block.intermediate_size for n, block in self._runs())

    def undivided_params(self, group_size: int) -> int:
        """Weights of the linear layers whose inputs have no whole groups of that size."""
        return sum(
            n * width * out
            for n, block in self._runs()
            for width, out in self._linears(block)
            if width % group_size
        )

    @property
    def linear_outputs(self) -> int:
        """Output channels of the linear layers of all blocks: a scale each where there is one per
        channel."""
        return sum(n * out for n, block in self._runs() for _, out in self._linears(block))

    @property
    def embedding_params(self) -> int:
        """Weights of one embedding table (or of one untied head)."""
        return self.vocab_size * self.hidden_size

    @property
    def small_params(self) -> int:
        """Norms and biases."""
        return sum(n * self._small(block) for n, block in self._runs()) + self.hidden_size

    @property
    def num_params(self) -> int:
        """Stored weights, tied ones counted once."""
        tables = 1 if self.has_tied_embeddings else 2
        return self.linear_params + tables * self.embedding_params + self.small_params

    @property
    def size_params(self) -> int:
        """Weights with one vocabulary table counted, tied or not: what tells a small model from a
        large one must not change when quantization gives a tied head weights of its own."""
        return self.linear_params + self.embedding_params + self.small_params

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads it back. Blocks are written as runs of like ones."""
        runs = self._runs() if self.blocks else []
        return {**asdict(self), "blocks": [{"count": n, **asdict(block)} for n, block in runs]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote."""
        scaling = data.get("rope_scaling")
        return cls(
            **{
                **data,
                "rope_scaling": RopeScaling(**scaling) if scaling else None,
                "blocks": _expand(data.get("blocks", ())),
            }
        )

    def _runs(self) -> list[tuple[int, BlockSpec]]:
        """The blocks in order: how many of one kind follow each other."""
        if self.blocks:
            return [(len(list(run)), block) for block, run in groupby(self.blocks)]
        mlp, heads = self.intermediate_size, self.num_kv_heads
        return [(self.num_layers, BlockSpec(num_kv_heads=heads, intermediate_size=mlp))]

    def _linears(self, block: BlockSpec) -> list[tuple[int, int]]:
        """Inputs and outputs of every linear layer of a block."""
        hidden, mlp, kv = self.hidden_size, block.intermediate_size, block.num_kv_heads
        kv *= self.head_dim
        of_attention = {
            "gqa": [(hidden, self.q_size), (hidden, kv), (hidden, kv), (self.q_size, hidden)],
            "linear": [(hidden, hidden)],
            "none": [],
        }
        of_mlp = {
            "gated": [(hidden, mlp), (hidden, mlp), (mlp, hidden)],
            "linear": [(hidden, hidden)],
            "none": [],
        }
        return of_attention[block.attention] + of_mlp[block.mlp]

    def _small(self, block: BlockSpec) -> int:
        """Norms and biases of a block."""
        count = self.hidden_size * ((block.attention != "none") + (block.mlp != "none"))
        if block.attention == "gqa":
            count += 2 * self.head_dim if self.has_qk_norm else 0
            qkv = self.q_size + 2 * block.num_kv_heads * self.head_dim
            count += qkv if self.has_qkv_bias else 0
            count += self.hidden_size if self.has_o_bias else 0
        if block.mlp == "gated" and self.has_mlp_bias:
            count += 2 * block.intermediate_size + self.hidden_size
        return count


def _expand(runs: Iterable[Mapping[str, Any]]) -> tuple[BlockSpec, ...]:
    """`[{count = 3, …}, …]` -> three blocks, …"""
    return tuple(
        BlockSpec(**{key: value for key, value in run.items() if key != "count"})
        for run in runs
        for _ in range(run.get("count", 1))
    )
