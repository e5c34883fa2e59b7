"""What lies in memory while an engine runs or is made: exact where it is arithmetic, a stated
formula where a backend decides.

Weights and KV cache follow from the model and the profile's bits (`sizes`). Workspace, libraries
and the compiler's peak are the backend's: one row of `FOOTPRINTS` each, with its source (`rows`).
To add a backend, add a row.
"""

from __future__ import annotations

from edgekit.footprint.rows import FOOTPRINTS, Compilation, Footprint, find_footprint
from edgekit.footprint.sizes import (
    STEP_TOKENS,
    compile_seconds,
    describe_workspace,
    engine_bytes,
    fitting_group,
    input_widths,
    kept_layers,
    kv_cache_bytes,
    loading_bytes,
    read_bytes,
    table_bytes,
    weights_by_class,
    weights_bytes,
    workspace_bytes,
)

__all__ = [
    "FOOTPRINTS",
    "STEP_TOKENS",
    "Compilation",
    "Footprint",
    "compile_seconds",
    "describe_workspace",
    "engine_bytes",
    "find_footprint",
    "fitting_group",
    "input_widths",
    "kept_layers",
    "kv_cache_bytes",
    "loading_bytes",
    "read_bytes",
    "table_bytes",
    "weights_by_class",
    "weights_bytes",
    "workspace_bytes",
]
