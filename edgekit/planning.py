"""From what a user names to a plan: model, profile, this machine's memory, measured bandwidth."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.checkpoint import Checkpoint, read_checkpoint
from edgekit.device import read_device
from edgekit.engine import WORK
from edgekit.errors import InputError
from edgekit.families import read_spec
from edgekit.model import ModelSpec
from edgekit.models import DEFAULT_MODEL, find_model
from edgekit.pipeline import load_checkpoint
from edgekit.plan import Plan, make_plan, require_fit
from edgekit.profile import Profile, find_profile
from edgekit.progress import Progress, no_progress
from edgekit.scratch import exists

BANDWIDTH_FILE = "bandwidth.json"
"""Below `store/.work`: what `edgekit bench` measured on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The planning options of the command line."""

    model: str | None
    profile: str
    precision: str
    context_tokens: int | None
    batch: int
    backend: str
    store: Path


def request_plan(request: Request, checkpoint: Checkpoint | None = None) -> tuple[Plan, Profile]:
    """Plan for a checkpoint, or for a known model by name alone, which needs no download."""
    profile = find_profile(request.profile)
    if request.backend not in ("auto", *profile.backends):
        raise InputError(
            f"the profile `{profile.name}` has no backend {request.backend}",
            hint=f"it has {', '.join(profile.backends)}",
        )
    if checkpoint is not None:
        name, spec = checkpoint.name, checkpoint.spec
    else:
        name, spec = read_model(DEFAULT_MODEL if request.model is None else request.model)
    device = read_device()
    plan = make_plan(
        name,
        spec,
        profile,
        available_bytes=profile.memory_bytes or device.available_bytes,
        precision=request.precision,
        context_tokens=request.context_tokens,
        batch=request.batch,
        backend=None if request.backend == "auto" else request.backend,
        bandwidth_bytes_per_s=read_bandwidth(request.store),
    )
    return plan, profile


def request_quantized(request: Request, quantized: Path, name: str | None) -> tuple[Plan, Profile]:
    """Plan for a checkpoint that `edgekit quantize` wrote: its precision is settled."""
    from edgekit.quantize.recipe import read_recipe

    recipe = read_recipe(quantized)
    checkpoint = read_checkpoint(quantized)
    return request_plan(
        replace(request, precision=recipe["precision"]),
        replace(checkpoint, name=name or checkpoint.name),
    )


def read_model(model: str) -> tuple[str, ModelSpec]:
    """Name and shape of what `--model` names; downloads and converts nothing.

    Raises `InputError` for what is neither a checkpoint directory, nor a GGUF file, nor known.
    """
    path = Path(model).expanduser()
    if model and exists(path) and path.is_dir():
        checkpoint = read_checkpoint(path)
        return checkpoint.name, checkpoint.spec
    if exists(path) and path.is_file():
        from edgekit.checkpoint.gguf_config import make_config
        from edgekit.checkpoint.gguf_file import read_gguf
        from edgekit.checkpoint.resolve import model_name

        # how the rotary frequencies are stretched changes no size
        return model_name(path), read_spec(make_config(read_gguf(path), rope_factors=None))
    known = find_model(model)
    return known.name, known.spec


def refuse_early(request: Request) -> None:
    """Raises `BudgetError` for a model that cannot fit, before it is downloaded or converted.

    Says nothing of a model whose size is not known before its files are here.
    """
    if request.model is None:
        return
    try:
        plan, _ = request_plan(request)
    except InputError:
        return  # the build says it with all it knows
    require_fit(plan)


def require_checkpoint(
    request: Request, *, offline: bool, report: Progress = no_progress
) -> Checkpoint:
    """The checkpoint to build from. Raises `InputError` when none was named: nothing is
    downloaded that was not asked for by name."""
    if request.model is None:
        hub_id = find_model(DEFAULT_MODEL).hub_id
        raise InputError(
            "which model?",
            hint=f"name a directory, a GGUF file or a hub id: `--model {hub_id}` downloads 16 GB",
        )
    return load_checkpoint(request.model, request.store, offline=offline, report=report)


def read_bandwidth(store: Path) -> float | None:
    """Bytes per second that `edgekit bench` measured on this machine, if it ever did."""
    try:
        data = json.loads((store / WORK / BANDWIDTH_FILE).read_text(encoding="utf-8"))
        return float(data["bytes_per_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
