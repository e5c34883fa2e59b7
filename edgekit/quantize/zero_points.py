"""4-bit weights with zero points: the scale and the zero point of every group.

A weight is `(code - zero_point) * scale`, code and zero point integers of -8..7: groups whose
weights lie to one side of zero use all sixteen codes. On SmolLM2-135M that is worth as much as
groups of half the size.

ModelOpt's INT4 formats are symmetric, but its quantizer knows a bias for each block, which it takes
off before rounding and puts back after (affine quantization). With `bias = -zero_point * scale`
that is this format: so ModelOpt simulates it, and once the biases are taken off the weights, its
export writes the codes and the scales. The zero points go beside them, int8 `[N, K / group]` as
`<layer>.weight_zero_point`.

They are searched as `local_hessian` searches a symmetric scale: what is minimised is
`(W - Wq) H (W - Wq)^T` with `H = sum of x^T x` over the calibration texts, block by block.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekit.progress import Progress, no_progress
from edgekit.quantize.model import is_quantized

NAME = "zero_point_search"
FRACTIONS = tuple(round(0.6 + 0.05 * step, 2) for step in range(10))
"""Of the distance from the smallest to the largest weight of a group: scales that are tried, each
with the two zero points next to the middle."""
_ZERO_POINT = "weight_zero_point"
_LOW, _HIGH = -8, 7
_VALUES = 4 * 1024**2
"""Searched at once: a few dozen MiB."""
_STEP = "search zero points"


def search_zero_points(
    model: Any, loop: Callable[[Any], None], group_size: int, report: Progress = no_progress
) -> None:
    """Give every layer that ModelOpt quantizes new scales, and zero points.

    `loop` runs the calibration texts through the model.
    """
    import torch

    layers = {name: layer for name, layer in model.named_modules() if is_quantized(layer)}
    with collected_inputs(layers, group_size) as hessians:
        loop(model)
    done, total = 0, sum(layer.weight.numel() for layer in layers.values())
    report(_STEP, 0, total)
    for name, layer in layers.items():
        parts = []
        for rows in layer.weight.detach().split(max(1, _VALUES // layer.weight.shape[1])):
            parts.append(search(rows, hessians[name], group_size))
            done += rows.numel()
            report(_STEP, done, total)
        scales, zero_points = (torch.cat(part) for part in zip(*parts, strict=True))
        _set(layer, scales, zero_points)


@contextmanager
def collected_inputs(layers: dict[str, Any], group_size: int) -> Iterator[dict[str, Any]]:
    """Name -> `[K / g, g, g]`: sums of `x^T x` over what enters the layers meanwhile, as their
    weights meet it; the weights are not rounded. Layers that read one tensor, as q, k and v do,
    share one sum."""
    import torch

    sums: dict[str, Any] = {}
    last: tuple[str, Any] = ("", None)

    def note(name: str) -> Callable[[Any, Any, Any], None]:
        def hook(_quantizer: Any, _given: Any, entering: Any) -> None:
            nonlocal last
            if entering is last[1]:
                sums[name] = sums[last[0]]
                return
            x = entering.detach().float().reshape(-1, entering.shape[-1] // group_size, group_size)
            products = torch.einsum("tbg,tbh->bgh", x, x)
            # never in place: the sum before may be that of another layer, too
            sums[name] = sums[name] + products if name in sums else products
            last = (name, entering)

        return hook

    handles = []
    for name, layer in layers.items():
        layer.weight_quantizer.disable()
        handles.append(layer.input_quantizer.register_forward_hook(note(name)))
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers.values():
            layer.weight_quantizer.enable()


def search(weight: Any, hessians: Any, group_size: int) -> tuple[Any, Any]:
    """Scales and zero points, `[N, K / g]` both, of a weight `[N, K]` whose inputs have the sums of
    products `hessians` `[K / g, g, g]`."""
    import torch

    groups = weight.float().reshape(len(weight), -1, group_size)
    # zero is always among the values: what is zero stays so
    high, low = groups.amax(dim=2).clamp(min=0), groups.amin(dim=2).clamp(max=0)
    distance = torch.where(high > low, high - low, torch.ones_like(high))
    best = torch.full_like(high, torch.inf)
    scales, zero_points = torch.ones_like(high), torch.zeros_like(high)

    def try_out(step: Any, zeros: Any) -> None:
        nonlocal best, scales, zero_points
        error = round_groups(groups, step, zeros) * step[..., None] - groups
        found = _products(error, error, hessians)
        is_better = found < best
        best = torch.where(is_better, found, best)
        scales = torch.where(is_better, step, scales)
        zero_points = torch.where(is_better, zeros, zero_points)

    for fraction in FRACTIONS:
        step = distance * (fraction / (_HIGH - _LOW))
        middle = (_LOW + _HIGH) / 2 - (high + low) / (2 * step)
        for zeros in (middle.floor(), middle.ceil()):
            try_out(step, zeros.clamp(_LOW, _HIGH))
    # the best scale for the codes as they are; with it they may be others
    codes = round_groups(groups, scales, zero_points)
    fitted = _products(codes, groups, hessians) / _products(codes, codes, hessians)
    try_out(torch.where(fitted > 0, fitted, scales), zero_points)
    if not best.isfinite().all():
        raise ValueError("weights or the inputs that meet them are not finite")
    return scales, zero_points


def round_groups(groups: Any, scales: Any, zero_points: Any) -> Any:
    """Codes less the zero point, `[N, K / g, g]`, of groups of weights."""
    zeros = zero_points[..., None]
    return (groups / scales[..., None] + zeros).round().clamp(_LOW, _HIGH) - zeros


def _products(a: Any, b: Any, hessians: Any) -> Any:
    """`a H b^T` of every group: `[N, K / g]`."""
    import torch

    # an einsum of three would not be a product of matrices
    return (torch.einsum("nbg,bgh->nbh", a, hessians) * b).sum(dim=2)


def _set(layer: Any, scales: Any, zero_points: Any) -> None:
    """Have ModelOpt simulate them. Its blocks are rows of `[N * K / g, g]`."""
    import torch

    quantizer = layer.weight_quantizer
    quantizer.amax = (scales * _HIGH).reshape(quantizer.amax.shape).to(quantizer.amax.dtype)
    stored = quantizer.amax.float().reshape(-1, 1) / _HIGH  # as the type of the weights holds it
    quantizer._bias = {-1: None, "type": "static"}
    quantizer.bias_value = (-zero_points.reshape(-1, 1) * stored).to(layer.weight.dtype)
    layer.register_buffer(_ZERO_POINT, zero_points.to(torch.int8))


def take_off_biases(model: Any) -> bool:
    """Leave what a symmetric export rounds to the right codes; the zero points stay as buffers.

    Whether there were any.
    """
    import torch

    layers = [layer for layer in model.modules() if hasattr(layer, _ZERO_POINT)]
    for layer in layers:
        quantizer = layer.weight_quantizer
        with torch.no_grad():
            blocks = layer.weight.view(len(quantizer.bias_value), -1)
            blocks -= quantizer.bias_value
        quantizer._bias = None
        quantizer._bias_calibrator = None
        quantizer.reset_bias()
    return bool(layers)


def say_zero_points(out: Path) -> None:
    """Correct what ModelOpt's export wrote about the format."""
    path = out / "hf_quant_config.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    found["quantization"]["has_zero_point"] = True
    path.write_text(json.dumps(found, indent=4) + "\n", encoding="utf-8")
