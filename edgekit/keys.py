"""What a step's output is named after: digests of everything that decides it."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from edgekit import __version__
from edgekit.backends import list_backends
from edgekit.checkpoint import Checkpoint
from edgekit.errors import InputError
from edgekit.footprint import kept_layers
from edgekit.precision import find_precision
from edgekit.profile import Profile
from edgekit.scratch import sha256_file

_LOG = logging.getLogger(__name__)
EXPORT_VERSION = 5
"""Raise it with every change of what `export` writes: engines are then built again."""
QUANTIZE_VERSION = 6
"""The same for `quantize`."""


def group_size(
    checkpoint: Checkpoint, precision: str, profile: Profile, *, tells: bool = False
) -> int | None:
    """The group size that this checkpoint gets on this profile; `None`: per channel.

    With `tells` the log says when the profile's own does not divide the layers. Raises
    `CheckpointError` where there is none.
    """
    from edgekit.quantize import choose_group_size

    if find_precision(precision).group_size is None:
        return None
    storage = profile.storage_for(precision, checkpoint.spec.size_params)
    wanted = storage.group_size or find_precision(precision).group_size or 128
    chosen = choose_group_size(checkpoint.spec, wanted, is_fixed=storage.keeps_undivided)
    if tells and chosen != wanted:
        _LOG.warning("groups of %d, not %d: the layer widths do not divide", chosen, wanted)
    return chosen


def includes_head(checkpoint: Checkpoint, precision: str, profile: Profile) -> bool:
    """Whether the profile has the head quantized together with the linear layers."""
    return profile.storage_for(precision, checkpoint.spec.size_params).is_head_calibrated


def target_backend(backend: str, precision: str) -> str:
    """The backend that a checkpoint of that precision is quantized for alone; empty: any."""
    info = next((info for info in list_backends() if info.name == backend), None)
    return backend if info is not None and precision in info.keeps_input_scales else ""


def tables_key(checkpoint: Checkpoint, precision: str, profile: Profile) -> str:
    """How embedding and head are rounded, what is left as it is, and whether there are zero points,
    in words."""
    row = profile.storage_for(precision, checkpoint.spec.size_params)
    if find_precision(precision).modelopt_config is None:
        return "as they are"
    bits = row.down_bits or 16
    kept = "".join(f", {name} {bits}" for name in kept_layers(checkpoint.spec, row))
    zeros = ", zero points" if row.has_zero_points else ""
    return f"{row.embedding_bits} {row.head_bits} in groups of {row.head_group_size}{kept}{zeros}"


def quantize_key(
    checkpoint_sha256: str,
    checkpoint: Checkpoint,
    precision: str,
    profile: Profile,
    *,
    calibration: Path | None,
    calibration_tokens: int | None,
    seed: int,
    target_backend: str = "",
) -> str:
    """Digest of all that decides a quantized checkpoint. Raises `InputError` for a missing file."""
    from edgekit.quantize import library_versions
    from edgekit.quantize.calibration import DEFAULT_TOKENS, data_digest

    if calibration is not None and not calibration.is_file():
        raise InputError(
            f"no such calibration file: {calibration}",
            hint="name a .txt or .jsonl file, or leave `--calibration` out for the bundled texts",
        )
    return digest(
        checkpoint_sha256,
        checkpoint.name,
        precision,
        group_size(checkpoint, precision, profile),
        includes_head(checkpoint, precision, profile),
        tables_key(checkpoint, precision, profile),
        data_digest()
        if calibration is None
        else f"{calibration.suffix} {sha256_file(calibration)}",
        calibration_tokens or DEFAULT_TOKENS,
        seed,
        QUANTIZE_VERSION,
        library_versions(),
        *((target_backend,) if target_backend else ()),
    )


def digest(*parts: object) -> str:
    """Digest of values by their text, and of edgekit's own version."""
    return hashlib.sha256(json.dumps([*map(str, parts), __version__]).encode()).hexdigest()
