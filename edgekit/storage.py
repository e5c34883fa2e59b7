"""How the weights of one precision lie in memory on one device: a row of a profile."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgekit.schema import FieldError, require_positive

ZERO_POINT_PRECISION = "int4_awq"
"""The one whose weights may have zero points."""
_PROMPT_BITS = 8
"""What there are kernels for, with 8-bit activations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How one precision lies in memory on one device. Bits are per stored value."""

    linear_bits: int
    """Of the linear layers' weights as the kernels read them (fp16 runs as fp32 on a CPU: 32)."""
    group_size: int | None = None
    """Weights per scale along the input axis; `None`: one scale per output channel."""
    small_model_params: int = 0
    """Models with fewer parameters get `small_model_group_size`: few weights forgive less."""
    small_model_group_size: int | None = None
    # engines are named after the text of this; what the next two decide is in `keys.tables_key`
    has_zero_points: bool = field(default=False, repr=False)
    """Every group has a zero point, as wide as the codes, beside its scale."""
    small_model_zero_points: bool = field(default=False, repr=False)
    """The same for models below `small_model_params`."""
    scale_bits: int = 16
    """Of a scale; 0: no scales worth counting (one per tensor)."""
    packed_bits: int = 0
    """Per group, what the kernels keep besides codes and scales once they have packed a matrix."""
    down_group_size: int | None = None
    """W8A8: down_proj stays W8A16, in groups of this size; `None`: it is like the others."""
    down_bits: int | None = None
    """Of down_proj's weights where it is left out of quantization; `None`: as the others."""
    head_bits: int = 16
    """Of lm_head; where the head is tied, the embedding is the same tensor."""
    is_head_calibrated: bool = False
    """The head is quantized with the linear layers: same bits, same groups, same search. A tied
    head then parts from the embedding, which keeps its own bits. Otherwise it is rounded."""
    head_group_size: int | None = None
    """Of the rounded tables."""
    embedding_bits: int = 16
    is_head_apart: bool = False
    """A tied head is stored apart from the embedding, even where both have the same bits."""
    norm_bits: int = 16
    """Of norms and biases."""
    is_widened: bool = False
    """fp16 in the file, fp32 in memory: while the largest matrix is widened, it is there twice."""
    int8_activations: bool = False
    """W8A8: activations are quantized too, while the engine runs."""
    prompt_bits: int | None = None
    """Of a second set of the linear layers' weights, but down_proj's, with one scale per channel
    and 8-bit activations (W8A8), which prompts go through; `None`: prompts go through the first."""
    small_model_prompt_bits: int | None = None
    """The same for models below `small_model_params`."""
    # as `has_zero_points`
    keeps_undivided: bool = field(default=False, repr=False)
    """The kernels have groups of `group_size` alone: layers whose inputs it does not divide stay at
    16 bits. Otherwise all layers get a smaller group."""

    def __post_init__(self) -> None:
        require_positive(
            self, "linear_bits", "head_bits", "embedding_bits", "norm_bits", "group_size",
            "small_model_group_size", "head_group_size", "down_group_size", "down_bits",
        )  # fmt: skip
        for name, group in (
            ("has_zero_points", self.group_size),
            ("small_model_zero_points", self.small_model_group_size),
        ):
            if getattr(self, name) and (self.linear_bits != 4 or group is None):
                raise FieldError(name, f"`{name}` is for 4-bit weights in groups")
        for name in ("prompt_bits", "small_model_prompt_bits"):
            bits = getattr(self, name)
            if bits is None:
                continue
            if bits != _PROMPT_BITS:
                raise FieldError(name, f"`{name}` must be {_PROMPT_BITS}, or left out: {bits}")
            if self.linear_bits >= 16 or self.int8_activations:
                raise FieldError(
                    name,
                    f"`{name}` is for weights that are quantized, beside activations that are not",
                    hint=f"take `{name}` out of this table",
                )

    @property
    def bits_per_group(self) -> int:
        """What a group of the linear layers has beside its codes."""
        return self.scale_bits + (self.linear_bits if self.has_zero_points else 0)
