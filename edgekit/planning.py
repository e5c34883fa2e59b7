"""From what a user names to a plan: model, target device, this machine's memory, bandwidth."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgekit.checkpoint import Checkpoint, read_checkpoint
from edgekit.checkpoint.resolve import expand_user
from edgekit.choice import choose_backend
from edgekit.device import Device, read_device
from edgekit.engine import STAGE_FILE, WORK, read_manifest
from edgekit.errors import InputError, MissingBackendError, storage_errors
from edgekit.families import read_spec
from edgekit.model import ModelSpec
from edgekit.models import DEFAULT_MODEL, find_model
from edgekit.pipeline import load_checkpoint
from edgekit.plan import Context, Plan, make_plan, require_fit
from edgekit.preflight import require_shape, require_slots
from edgekit.profile import Profile
from edgekit.progress import Progress, no_progress
from edgekit.question import Question
from edgekit.scratch import exists, write_beside
from edgekit.target import (
    device_budget,
    find_targets,
    host_budget,
    own_gpu,
    with_storage,
)

BANDWIDTH_FILE = "bandwidth.json"
"""Below `store/.work`: what `edgekit bench` measured on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The planning options of the command line."""

    model: str | None
    profile: str | None
    """`None`: what this machine is."""
    precision: str
    kv_precision: str = "auto"
    context: Context
    batch: int | None
    """`None`: as a stage was made for, else 1."""
    backend: str
    store: Path
    is_headless: bool = False
    """No desktop on the device's GPU."""
    targets: tuple[str, ...] = ()
    """Profiles that one engine is for, all of them."""
    offline: bool = False
    stage: Literal["engine", "checkpoint"] = "engine"
    """How far a build goes."""
    speculation: str = "none"
    """How the engine drafts by itself."""
    there: Device | None = None
    """The machine that compiles and runs it; `None`: this one."""


def request_plan(
    request: Request,
    checkpoint: Checkpoint | None = None,
    *,
    to_build: bool = False,
    asks_runtime: bool = False,
) -> tuple[Plan, Profile]:
    """Plan for a checkpoint, or for a model by name or headers alone, which needs no download.

    With `to_build` the backend must be one that this machine has; a plan alone may be for another.
    `asks_runtime`: also then it is not for another version of a runtime than the one named here,
    and layers that no build takes are refused, as a build refuses them.
    Raises what `find_target`, `read_model`, `choose_backend` and `make_plan` raise.
    """
    question, profile = ask(request, checkpoint, to_build=to_build, asks_runtime=asks_runtime)
    plan = make_plan(question, precision=request.precision, context=request.context)
    require_targets(question, plan, is_headless=request.is_headless)
    if asks_runtime and plan.fits:
        require_shape(question.spec, plan, profile)
        require_slots(question.spec, plan)
    return plan, profile


def require_targets(question: Question, plan: Plan, *, is_headless: bool = False) -> None:
    """Raises where one of the other devices cannot run what was planned for the first:
    `InputError` for a precision that it has not, `BudgetError` where it does not fit."""
    for profile in question.targets:
        budget = device_budget(profile, read_device(), is_headless=is_headless)
        own = with_storage(profile, question.backend)
        asked = replace(question, profile=own, budget=budget, targets=())
        require_fit(make_plan(asked, precision=plan.precision, context=plan.context_tokens))


def ask(
    request: Request,
    checkpoint: Checkpoint | None = None,
    *,
    to_build: bool = False,
    asks_runtime: bool = False,
) -> tuple[Question, Profile]:
    """What `make_plan` is asked, but for precision and context."""
    if checkpoint is not None:
        name, spec = checkpoint.name, checkpoint.spec
        return _ask(request, name, spec, to_build=to_build, asks_runtime=asks_runtime)
    name, spec = read_model(
        DEFAULT_MODEL if request.model is None else request.model,
        work=request.store / WORK,
        offline=request.offline,
    )
    return _ask(request, name, spec, to_build=to_build, asks_runtime=asks_runtime)


def _ask(
    request: Request, name: str, spec: ModelSpec, *, to_build: bool, asks_runtime: bool = False
) -> tuple[Question, Profile]:
    here = read_device()
    device = request.there or here
    profile, *others = find_targets(request.profile, request.targets, device)
    backend = choose_backend(
        profile,
        request.backend,
        device,
        is_needed=to_build,
        precision=request.precision,
        kv_precision=request.kv_precision,
        others=others,
        to_stage=request.stage == "checkpoint",
        spec=spec,
        speculation=request.speculation,
        asks_runtime=asks_runtime,
    )
    profile = with_storage(profile, backend)
    budget = device_budget(profile, device, is_headless=request.is_headless)
    if request.there is not None:  # nothing is quantized in a memory that is there
        where, detail = (
            text.replace("this machine", "the other machine")
            for text in (budget.where, budget.detail)
        )
        budget = replace(budget, where=where, detail=detail, is_here=False)
    question = Question(
        model=name,
        spec=spec,
        profile=profile,
        backend=backend,
        targets=tuple(others),
        budget=budget,
        host=host_budget(profile, here),
        kv_precision=request.kv_precision,
        batch=request.batch or 1,
        speculation=request.speculation,
        bandwidth_bytes_per_s=None
        if request.there
        else _measured_bandwidth(profile, device, request.store),
    )
    return question, profile


def request_quantized(request: Request, quantized: Path, name: str | None) -> tuple[Plan, Profile]:
    """Plan for a checkpoint that `edgekit quantize` wrote: its precision is settled."""
    from edgekit.quantize.recipe import read_recipe

    recipe = read_recipe(quantized)
    checkpoint = read_checkpoint(quantized)
    return request_plan(
        replace(request, precision=recipe["precision"]),
        replace(checkpoint, name=name or checkpoint.name),
        to_build=True,
    )


def request_staged(request: Request, stage: Path) -> tuple[Plan, Profile]:
    """Plan, on this machine, for what `edgekit build --stage checkpoint` made.

    Its device, precision and cache are settled; context and batch are as it was made for where
    the request says nothing. Raises `EngineError` for what is no stage.
    """
    staged = read_manifest(stage, file=STAGE_FILE)
    asked = replace(
        request,
        profile=request.profile or staged.profile,
        precision=staged.precision,
        kv_precision=staged.kv_precision,
        backend=staged.backend["name"],
        # it is no part of what was staged
        speculation=request.speculation
        if request.speculation != "none"
        else staged.plan.get("speculation", "none"),
        context=request.context or staged.context_tokens,
        batch=request.batch or staged.batch,
    )
    spec = ModelSpec.from_dict(staged.device["spec"])
    try:
        question, profile = _ask(asked, staged.model, spec, to_build=True)
    except MissingBackendError as exc:
        _, profile = _ask(asked, staged.model, spec, to_build=False)
        if profile.sm is None or own_gpu(profile, read_device()) is not None:
            raise
        raise MissingBackendError(
            f"{stage} is compiled on its device, and no {profile.name} is here",
            hint=f"copy it there, or `edgekit pack` it, and run `edgekit compile {stage.name}`",
        ) from exc
    plan = make_plan(question, precision=asked.precision, context=asked.context)
    return plan, profile


def read_model(model: str, *, work: Path, offline: bool = False) -> tuple[str, ModelSpec]:
    """Name and shape of what `--model` names; downloads no weight and converts nothing.

    A known model needs no network; another hub id costs its config.json and the headers of its
    shards. Raises `InputError` for what is neither a checkpoint directory, nor a GGUF file, nor a
    model.
    """
    path = expand_user(model)
    if model and exists(path) and path.is_dir():
        checkpoint = read_checkpoint(path)
        return checkpoint.name, checkpoint.spec
    if exists(path) and path.is_file():
        from edgekit.checkpoint.gguf_config import make_config
        from edgekit.checkpoint.gguf_file import read_gguf
        from edgekit.checkpoint.resolve import model_name

        # how the rotary frequencies are stretched changes no size
        return model_name(path), read_spec(make_config(read_gguf(path), rope_factors=None))
    try:
        known = find_model(model)
    except InputError:
        from edgekit.checkpoint.hub import HUB_ID, read_hub_spec

        match = HUB_ID.fullmatch(model)
        if model.startswith((".", "/", "~")) or path.suffix.lower() in (".gguf", ".safetensors"):
            raise InputError(
                f"no such file or directory: {model}",
                hint="give a checkpoint directory, a .gguf file, a hub id, or a known model's name",
            ) from None
        if match is None:
            raise
        spec = read_hub_spec(match["repository"], match["revision"], work / "hub", offline=offline)
        return match["repository"].rpartition("/")[2], spec
    return known.name, known.spec


def refuse_early(request: Request) -> None:
    """Raises what forbids the build of a model before it is downloaded or converted: it is known
    and cannot be built, or it cannot fit.

    Says nothing of a model whose size is not known before its files are here.
    """
    if request.model is None:
        return
    refuse_plan_only(request.model)
    try:
        plan, _ = request_plan(request, to_build=True)
    except InputError:
        return  # the build says it with all it knows
    require_fit(plan)


def refuse_plan_only(model: str) -> None:
    """Raises `InputError` for a known model that no family of this version reads."""
    try:
        known = find_model(model)
    except InputError:
        return
    if known.why_not_built is not None:
        raise InputError(
            f"{known.name} cannot be built: {known.why_not_built}",
            hint=f"`edgekit plan --model {known.name}` works; to build: "
            f"`--model {find_model(DEFAULT_MODEL).hub_id}`",
        )


def require_checkpoint(request: Request, *, report: Progress = no_progress) -> Checkpoint:
    """The checkpoint to build from. Raises `InputError` when none was named: nothing is
    downloaded that was not asked for by name."""
    if request.model is None:
        hub_id = find_model(DEFAULT_MODEL).hub_id
        raise InputError(
            "which model?",
            hint=f"name a directory, a GGUF file or a hub id: `--model {hub_id}` downloads 16 GB",
        )
    return load_checkpoint(request.model, request.store, offline=request.offline, report=report)


def _measured_bandwidth(profile: Profile, device: Device, store: Path) -> float | None:
    """What `edgekit bench` measured here, which says nothing of another device."""
    is_here = profile.sm is None and profile.memory_bytes is None
    return read_bandwidth(store, device) if is_here else None


def write_bandwidth(store: Path, device: Device, bytes_per_s: int) -> None:
    """Keep what `edgekit bench` measured, for plans. Raises `StorageError`."""
    path = store / WORK / BANDWIDTH_FILE
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        data = {"bytes_per_s": bytes_per_s, "cpu": device.cpu, "cores": device.cores}
        write_beside(path, json.dumps(data, indent=2, sort_keys=True) + "\n")


def read_bandwidth(store: Path, device: Device) -> float | None:
    """Bytes per second that `edgekit bench` measured on a machine like this, if it ever did."""
    try:
        data = json.loads((store / WORK / BANDWIDTH_FILE).read_text(encoding="utf-8"))
        is_same = (data["cpu"], data["cores"]) == (device.cpu, device.cores)
        value = float(data["bytes_per_s"])
        return value if is_same and 0 < value < math.inf else None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
