"""From a precision to what ModelOpt is told to do.

`int4_awq` is three steps of ModelOpt: `awq_lite` searches a scale per input channel; the scales of
layers that read the same input are averaged and folded (`requantize_resmooth_fused_llm_layers`,
`fuse_prequant_to_linear`), which most kernels want and which costs a multiplication less per
layer (TensorRT Edge-LLM multiplies in each layer, which then keeps the scale that was found for
it); then `local_hessian` searches each group's scale again, weighing an error by the inputs that
meet it. The last step is ours to add and is worth more than any other: on SmolLM2-135M it takes
the perplexity ratio of group 32 from 1.20 to 1.12 for a quarter of the search's time. Where a
device's kernels have zero points, `zero_points` searches those, too, in its place.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edgekit.errors import CheckpointError, MissingBackendError
from edgekit.footprint import fitting_group, input_widths
from edgekit.model import ModelSpec
from edgekit.precision import Precision
from edgekit.storage import ZERO_POINT_PRECISION

_PACKAGES = ("nvidia-modelopt", "torch", "transformers")
RECIPE_FILE = "edgekit_quantization.json"
ALPHA_STEPS = 11
"""`awq_lite` tries the exponents 0, 0.1 … 1."""
SMOOTHQUANT_ALPHA = 0.7
"""How much of an activation's range moves into the weights (Xiao et al. 2022, arXiv:2211.10438,
equation 4). ModelOpt's 1.0 leaves the weights with all of it: on SmolLM2-135M the perplexity ratio
was 1.30 at 1.0, 1.10 at 0.8, 1.055 at 0.7, 1.09 at 0.5 and 1.20 at 0.3."""
# the search for a group's scale: fractions of the largest weight, in steps
SCALE_SEARCH = {"start_multiplier": 0.6, "stop_multiplier": 1.15, "step_size": 0.05}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a quantized checkpoint was made: the sidecar `edgekit_quantization.json`."""

    precision: str
    group_size: int | None
    includes_head: bool
    """Whether the head was quantized with the linear layers."""
    calibration_source: str
    calibration_sha256: str
    calibration_samples: int
    calibration_tokens: int
    seed: int
    algorithm: str
    versions: dict[str, str]
    checkpoint_sha256: str
    target_backend: str = ""
    """The only backend that it is for, where each layer keeps an input scale of its own; empty: any
    that has the precision."""
    kept_layers: tuple[str, ...] = ()
    """Names of linear layers that were left as they are."""

    def write(self, directory: Path) -> None:
        """Write the sidecar, keys sorted."""
        text = json.dumps(asdict(self), indent=2, sort_keys=True)
        (directory / RECIPE_FILE).write_text(text + "\n", encoding="utf-8")


def read_recipe(directory: Path) -> dict[str, Any]:
    """The sidecar of a quantized checkpoint. Raises `CheckpointError`."""
    try:
        data = json.loads((directory / RECIPE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise CheckpointError(
            f"not a checkpoint that edgekit quantized: {directory}",
            hint="make one with `edgekit quantize`",
        ) from exc
    if not isinstance(data, dict) or "precision" not in data:
        raise CheckpointError(
            f"{directory / RECIPE_FILE} does not say a precision",
            hint="make it again with `edgekit quantize`",
        )
    return data


def choose_group_size(spec: ModelSpec, wanted: int, *, is_fixed: bool = False) -> int:
    """The largest power-of-two group up to `wanted` that divides every layer's input width; with
    `is_fixed` none but `wanted`, which must divide one of them.

    Raises `CheckpointError` below 16: no kernel takes smaller groups.
    """
    group = fitting_group(spec, wanted, is_fixed=is_fixed)
    if group is not None:
        return group
    widths = set(input_widths(spec).values())
    raise CheckpointError(
        f"no group of {wanted if is_fixed else 'at least 16'} weights divides the layer widths "
        + ", ".join(str(w) for w in sorted(widths)),
        hint="use `--precision int8`, which has one scale per channel",
    )


def modelopt_config(
    precision: Precision,
    group_size: int | None,
    *,
    includes_head: bool = False,
    kept: Sequence[str] = (),
) -> dict[str, Any]:
    """ModelOpt's configuration for a precision, with our group size put in.

    ModelOpt leaves the head alone; with `includes_head` it is a linear layer like the others.
    The linear layers of the names in `kept` are left alone, too.
    """
    import copy

    import modelopt.torch.quantization as mtq

    if precision.modelopt_config is None:
        raise ValueError(f"nothing to quantize at {precision.name}")
    config: dict[str, Any] = copy.deepcopy(getattr(mtq, precision.modelopt_config))
    if config["algorithm"] == "smoothquant":
        config["algorithm"] = {"method": "smoothquant", "alpha": SMOOTHQUANT_ALPHA}
    if includes_head:
        config["quant_cfg"] = [
            row for row in config["quant_cfg"] if row["quantizer_name"] != "*lm_head*"
        ]
    config["quant_cfg"] += [{"quantizer_name": f"*{name}*", "enable": False} for name in kept]
    if group_size is not None:
        for row in config["quant_cfg"]:
            if row["quantizer_name"] == "*weight_quantizer" and row.get("cfg"):
                # NVFP4 says there, too, how its scales are stored
                row["cfg"]["block_sizes"] = {**row["cfg"]["block_sizes"], -1: group_size}
    return config


def is_awq(precision: Precision) -> bool:
    """Whether AWQ searches its input scales."""
    return precision.name == ZERO_POINT_PRECISION


def library_versions() -> dict[str, str]:
    """Versions of what quantizes; `""` for what is not installed. Imports none of them."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def required_versions() -> dict[str, str]:
    """The same, but raises `MissingBackendError` when something is missing."""
    found = library_versions()
    missing = [name for name, version in found.items() if not version]
    if missing:
        raise MissingBackendError(
            f"quantizing needs a package that is not installed: {', '.join(missing)}",
            hint="pip install 'edgekit[build]'",
        )
    return found
