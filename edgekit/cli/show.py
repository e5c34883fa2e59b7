"""How commands print an engine."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgekit.backends import install_line, runtime_option
from edgekit.engine import Manifest
from edgekit.quality import ON_TWIN, ON_TWIN_ANSWERED
from edgekit.units import format_bytes, join_words


def describe_engine(
    engine: Path, manifest: Manifest, *, as_json: bool, on: str | None = None
) -> str:
    """The manifest as JSON with the engine's path, or the lines that people want first; `on`: the
    other machine that has it."""
    if as_json:
        where = {"engine": str(engine)} | ({"on": on} if on is not None else {})
        return json.dumps({**where, **asdict(manifest)}, indent=2, sort_keys=True)
    size = format_bytes(sum(manifest.file_bytes.values()))
    lines = [
        str(engine) if on is None else f"{on}:{engine}",
        f"  {manifest.model}, {manifest.precision}, {manifest.context_tokens} tokens of context, "
        f"{size} on disk",
        f"  {manifest.backend['name']} {manifest.backend['version'] or '(not compiled yet)'}, "
        f"for {_devices(manifest)}",
        *describe_quality(manifest.quality),
    ]
    return "\n".join(lines)


def _devices(manifest: Manifest) -> str:
    """`rtx-3070 and rtx-4090 (sm_86 and sm_89)`."""
    names = manifest.plan.get("devices") or [manifest.profile]
    held = [f"sm_{sm}" for sm in manifest.plan.get("capabilities") or ()]
    return join_words(names) + (f" ({join_words(held)})" if held else "")


def describe_next(stage: Path, manifest: Manifest) -> str:
    """How a build goes on from a stage."""
    backend = manifest.backend["name"]
    install, option = install_line(backend), runtime_option(backend)
    lines = [
        f"to go on: copy {stage} (`edgekit pack` makes one file of it) to the machine of "
        f"`{manifest.profile}`{'' if install else f' with {backend}'}, and there run",
        *([install] if install else []),
        " ".join(["edgekit compile", shlex.quote(stage.name), *([option] if option else [])]),
    ]
    return "\n  ".join(lines)


def describe_quality(quality: dict[str, Any]) -> list[str]:
    """What `verify` measured, for people."""
    if not quality:
        return []
    after = quality.get("mean_kl_after_prompts")
    after_prompts = "" if after is None else f", {after:.4f} after prompts"
    lines = [
        f"  perplexity {quality['perplexity_ratio']:.3f} x the checkpoint's, mean KL "
        f"{quality['mean_kl']:.4f} nats ({quality['mean_kl_simulated']:.4f} from ModelOpt's "
        f"simulation{after_prompts}), same top token {100 * quality['top1_agreement']:.1f} % "
        f"of {quality['positions']} positions",
        f"  known answer: {quality['known_answer']}",
    ]
    if quality.get("measured_on") == ON_TWIN_ANSWERED:
        lines.append(
            "  figures are of the engine's twin, on a processor; the known answer is the engine's"
        )
    if quality.get("measured_on") == ON_TWIN:
        lines.append(
            "  measured on the engine's twin, on this machine's processor: no GPU of the engine "
            "is here; on its device, `edgekit verify` asks the engine itself"
        )
    return lines
