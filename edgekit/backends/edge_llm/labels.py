"""What a unified checkpoint says of its own quantization, and how Edge-LLM takes it.

It reads `hf_quant_config.json` first, then `quantization_config` of `config.json`, and an algorithm
that it does not know is FP16 to its exporter, without a word: the packed integers of the file are
then multiplied as if they were the weights. So whatever is not known to be read right is refused.
Source: `_parse_quant` and `_algo_to_quant_type` in tensorrt_edgellm/config.py of 0.11.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from edgekit.backends.edge_llm.formats import find_format
from edgekit.checkpoint.read import read_json
from edgekit.errors import CheckpointError

QUANT_FILE = "hf_quant_config.json"
_SILENT = "Edge-LLM's export would take the packed numbers for FP16 weights, without a word"
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "W8A16": f"weight-only int8 (W8A16) has no kernel there: {_SILENT}",
        "MIXED_PRECISION": "edgekit cannot check layers of different precisions",
    }
)
"""`quant_algo` -> why not."""
METHODS: Mapping[str, str] = MappingProxyType(
    {
        "compressed-tensors": f"it is of compressed-tensors, which is not read: {_SILENT}",
        "awq": "it is of AutoAWQ, whose zero points are clipped on the way (repacking.py)",
        "gptq": "it is of GPTQ, which edgekit cannot check",
    }
)
"""`quant_method` of config.json -> why not."""
HINT = "quantize the original with `edgekit quantize --profile jetson-thor`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """How the layers of a checkpoint are read."""

    precision: str
    kv_precision: str
    """As it says; Edge-LLM goes by the scales that are there."""
    group: int | None
    """Of INT4 weights, as it says."""
    excluded: tuple[str, ...] = ()
    """Patterns of layers that are left at FP16."""


def read_labels(directory: Path) -> Labels:
    """Raises `CheckpointError` for what Edge-LLM would read as something else."""
    config = read_json(directory / "config.json").get("quantization_config")
    config = config if isinstance(config, dict) else {}
    method = config.get("quant_method")
    if method not in (None, "modelopt"):
        _refuse(directory, METHODS.get(str(method), f"it is of {method}, which is not known here"))
    said: dict[str, Any] = config
    if (directory / QUANT_FILE).is_file():
        said = read_json(directory / QUANT_FILE).get("quantization") or {}
    algo = said.get("quant_algo") or None
    row = find_format(algo)
    if row is None:
        reason = f"its quant_algo is {algo}, which is not known here: {_SILENT}, where it is not"
        _refuse(directory, REFUSED.get(str(algo), f"{reason} known there"))
    group = said.get("group_size")
    return Labels(
        precision=row.precision,
        kv_precision="fp8" if said.get("kv_cache_quant_algo") == "FP8" else "fp16",
        group=int(group) if isinstance(group, int) else None,
        excluded=tuple(map(str, said.get("exclude_modules") or ())),
    )


def _refuse(directory: Path, reason: str) -> NoReturn:
    raise CheckpointError(f"Edge-LLM cannot be given {directory}: {reason}", hint=HINT)
