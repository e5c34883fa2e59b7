"""A unified checkpoint read as Edge-LLM and its kernels read it, on this processor.

Nothing but what Edge-LLM loads is looked at, and which way a layer is read follows from the label
in `hf_quant_config.json` as it does there: so logits that agree with ModelOpt's simulation prove
what is shipped. What a kernel does to its input is done here too: `rounding` has the arithmetic.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.backends.edge_llm import rounding
from edgekit.backends.edge_llm.formats import layer_precision
from edgekit.backends.edge_llm.labels import Labels, read_labels
from edgekit.backends.torch_decoder import Shape, TorchDecoder
from edgekit.checkpoint import read_checkpoint
from edgekit.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


_NORMS = {"input": "input_layernorm", "post": "post_attention_layernorm"}
_LAYERS = {"o": "self_attn.o_proj", "down": "mlp.down_proj"}


class CheckpointReader(TorchDecoder):
    """The network that an engine is built of, in torch at fp32."""

    def __init__(
        self,
        directory: Path,
        *,
        context_tokens: int,
        num_slots: int,
        keeps_activations: bool = False,
    ) -> None:
        """`keeps_activations`: what enters a layer is not rounded, nor what lies in the cache.

        Raises `CheckpointError` for a checkpoint that Edge-LLM would read as something else.
        """
        checkpoint = read_checkpoint(directory)
        spec = self._spec = checkpoint.spec
        self._labels: Labels = read_labels(directory)
        super().__init__(
            Shape(
                num_layers=spec.num_layers,
                num_heads=spec.num_query_heads,
                num_kv_heads=spec.num_kv_heads,
                head_size=spec.head_dim,
                vocab_size=spec.vocab_size,
                epsilon=spec.rms_norm_eps,
                rotary_base=spec.rope_theta,
                rotary_scaling=spec.rope_scaling,
                num_params=spec.num_params,
            ),
            checkpoint.tensors,
            context_tokens=context_tokens,
            num_slots=num_slots,
            keeps_activations=keeps_activations,
        )

    def _table(self, name: str) -> Tensor:
        is_own = name == "head" and "lm_head.weight" in self._tensors
        return self._weight("lm_head.weight" if is_own else "model.embed_tokens.weight")

    def _norm_weight(self, layer: int | None, name: str) -> Tensor:
        if layer is None:
            return self._weight("model.norm.weight")
        return self._weight(f"model.layers.{layer}.{_NORMS[name]}.weight")

    def _qkv(self, x: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        name = f"model.layers.{layer}.self_attn"
        q, k, v = (
            self._product(x, f"{name}.{part}_proj").unflatten(-1, (-1, self._spec.head_dim))
            for part in "qkv"
        )
        if self._spec.has_qk_norm:
            q = self._normed(q, self._weight(f"{name}.q_norm.weight"))
            k = self._normed(k, self._weight(f"{name}.k_norm.weight"))
        return q, k, v

    def _linear(self, x: Tensor, layer: int, name: str) -> Tensor:
        return self._product(x, f"model.layers.{layer}.{_LAYERS[name]}")

    def _gate_up(self, x: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        name = f"model.layers.{layer}.mlp"
        return self._product(x, f"{name}.gate_proj"), self._product(x, f"{name}.up_proj")

    def _stored(self, values: Tensor, layer: int, kind: str) -> Tensor:
        if self._labels.kv_precision != "fp8" or self._keeps_activations:
            return values
        scale = self._raw(f"model.layers.{layer}.self_attn.{kind}_proj.{kind}_scale")
        return rounding.to_e4m3(values, scale.float())

    def _product(self, x: Tensor, name: str) -> Tensor:
        """`x [T, K]` through a layer -> `[T, N]`."""
        if (scale := f"{name}.pre_quant_scale") in self._tensors:
            x = x * self._weight(scale)
        precision = layer_precision(self._labels.precision, name, x.shape[-1])
        if precision in rounding.ENTERING and not self._keeps_activations:
            x = rounding.ENTERING[precision](x, self._raw(f"{name}.input_scale").float())
        out = x @ self._weight(f"{name}.weight").T
        return out + self._weight(f"{name}.bias") if f"{name}.bias" in self._tensors else out

    def _weight(self, name: str) -> Tensor:
        """A tensor as the kernels compute with it, in fp32."""
        if name in self._weights:
            return self._weights[name]
        layer, _, part = name.rpartition(".")
        precision = "fp16"
        if part == "weight" and layer.endswith("_proj"):
            # of INT4, whose precision depends on it, the inputs are not packed
            columns = self._tensors[name].shape[-1] if name in self._tensors else 0
            precision = layer_precision(self._labels.precision, layer, columns)
        scales = [self._raw(f"{layer}.{scale}") for scale in rounding.SCALES.get(precision, ())]
        return self._kept(name, rounding.STORED[precision](self._raw(name), *scales))

    def _missing(self, name: str) -> CheckpointError:
        return CheckpointError(f"the checkpoint has no {name}", hint="quantize it again")
