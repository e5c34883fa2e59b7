"""From a checkpoint to a proven engine: `build` = plan, quantize, compile, verify.

    store/
    ├── <model>/<profile>/<precision>-<backend>/     finished engines
    ├── <model>/<profile>/<precision>-<backend>.stage/   what goes on to be one on the device
    └── .work/
        ├── checkpoint-<key>/   a GGUF file as a Hugging Face directory
        ├── hub/                downloads
        └── quantized-<key>/    ModelOpt's checkpoint

Every step's output is named after a digest of all that went into it, so the same inputs are never
worked on twice and a changed one is noticed. A step writes beside and renames; one that was killed
starts again, the finished ones before it do not. One build at a time per store.
"""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from edgekit.backends import Backend
from edgekit.backends.base import BindsDevice
from edgekit.checkpoint import Checkpoint, read_checkpoint, resolve_model
from edgekit.checkpoint.read import SOURCE_FILE
from edgekit.checkpoint.resolve import expand_user
from edgekit.compile import Origin, compile_engine, compile_stage, make_stage
from edgekit.engine import (
    MANIFEST_FILE,
    STAGE_FILE,
    WORK,
    Manifest,
    build_lock,
    engine_path,
    open_manifest,
    read_manifest,
    remove_leftovers,
    stage_path,
)
from edgekit.errors import (
    CheckpointError,
    EngineError,
)
from edgekit.footprint import kept_layers
from edgekit.keys import (
    EXPORT_VERSION,
    digest,
    group_size,
    includes_head,
    quantize_key,
    target_backend,
)
from edgekit.plan import Plan
from edgekit.precision import find_precision
from edgekit.preflight import (
    require_original,
    require_possible,
    require_room,
    require_stage,
    require_storage,
    require_target,
    require_zero_points,
)
from edgekit.profile import Profile
from edgekit.progress import Progress, no_progress
from edgekit.reference import REFERENCE_FILE
from edgekit.scratch import exists, scratch_directory, sha256_file, write_beside
from edgekit.units import join_words

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What a build is told besides its plan."""

    calibration: Path | None = None
    calibration_tokens: int | None = None
    """`None`: the default amount."""
    seed: int = 0
    force: bool = False
    """Build although the same engine is there."""
    stops_at_stage: bool = False
    """Make everything up to the compiler's work, to be carried to the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """An engine, and whether it was there already."""

    engine: Path
    manifest: Manifest
    was_reused: bool


def load_checkpoint(
    model: str, store: Path, *, offline: bool = False, report: Progress = no_progress
) -> Checkpoint:
    """The checkpoint that `--model` names; conversions and downloads go below `store/.work`."""
    # a build that begins now would take a conversion that is being written for a leftover
    path = expand_user(model)
    lock = build_lock(store) if exists(path) and path.is_file() else nullcontext()
    with lock:
        return resolve_model(model, work=store / WORK, offline=offline, report=report)


def build(
    checkpoint: Checkpoint,
    plan: Plan,
    profile: Profile,
    store: Path,
    options: BuildOptions,
    *,
    report: Progress = no_progress,
) -> BuildResult:
    """Everything from a checkpoint to an engine in `store`; reuses what is there.

    Raises `BudgetError` before any work when the plan does not fit, `QualityError` when the engine
    does not answer as it should, and what its steps raise. On failure the store is as before,
    except for finished steps below `.work`, which the next build uses.
    """
    backend = require_possible(plan, profile, checkpoint.spec)
    require_original(checkpoint)
    final = _place(store, checkpoint.name, plan)
    file, version = MANIFEST_FILE, ""
    if options.stops_at_stage:
        require_stage(backend)
        final, file = stage_path(final), STAGE_FILE
    else:
        version = backend.version()
    checkpoint_sha256 = checkpoint.sha256(report)
    with build_lock(store):
        remove_leftovers(store)
        step_key = quantize_key(
            checkpoint_sha256,
            checkpoint,
            plan.precision,
            profile,
            calibration=options.calibration,
            calibration_tokens=options.calibration_tokens,
            seed=options.seed,
            target_backend=target_backend(plan.backend, plan.precision),
        )
        key = digest(
            step_key,
            EXPORT_VERSION,
            version,
            plan.context_tokens,
            plan.batch,
            plan.kv_precision,
            plan.capabilities,
            plan.speculation,
            repr(profile.storage_for(plan.precision, checkpoint.spec.size_params)),
        )
        if not options.force and (manifest := _same_engine(final, key, backend, file)):
            return BuildResult(engine=final, manifest=manifest, was_reused=True)
        quantized = store / WORK / f"quantized-{step_key[:16]}"
        if not (quantized / REFERENCE_FILE).is_file():
            require_room(plan, "quantize")
            quantize(
                checkpoint,
                plan.precision,
                profile,
                quantized,
                options,
                checkpoint_sha256=checkpoint_sha256,
                backend=plan.backend,
                report=report,
            )
        manifest = (make_stage if options.stops_at_stage else compile_engine)(
            quantized,
            plan,
            profile,
            final,
            backend,
            Origin(model=checkpoint.name, checkpoint_sha256=checkpoint_sha256, build_key=key),
            report=report,
        )
    return BuildResult(engine=final, manifest=manifest, was_reused=False)


def _place(store: Path, model: str, plan: Plan) -> Path:
    """Where the engine of a plan lies: one for several devices is named after all of them."""
    return engine_path(
        store,
        model=model,
        profile="+".join(plan.devices),
        precision=plan.precision,
        backend=plan.backend,
    )


def quantize(
    checkpoint: Checkpoint,
    precision: str,
    profile: Profile,
    out: Path,
    options: BuildOptions,
    *,
    checkpoint_sha256: str,
    backend: str,
    report: Progress = no_progress,
) -> None:
    """The quantize step: `out` becomes a quantized checkpoint, for that backend or for any. See
    `quantize_checkpoint`."""
    from edgekit.quantize import quantize_checkpoint
    from edgekit.quantize.calibration import DEFAULT_TOKENS

    require_original(checkpoint)
    storage = profile.storage_for(precision, checkpoint.spec.size_params)
    require_storage(storage, profile, backend)
    if storage.keeps_undivided and (kept := kept_layers(checkpoint.spec, storage)):
        _LOG.warning(
            "left at fp16: %s; the kernels have groups of %d alone, which do not divide their "
            "inputs",
            join_words(kept),
            storage.group_size,
        )
    with scratch_directory(out) as scratch:
        quantize_checkpoint(
            checkpoint,
            find_precision(precision),
            scratch,
            group_size=group_size(checkpoint, precision, profile, tells=True),
            includes_head=includes_head(checkpoint, precision, profile),
            storage=storage,
            calibration=options.calibration,
            calibration_tokens=options.calibration_tokens or DEFAULT_TOKENS,
            seed=options.seed,
            checkpoint_sha256=checkpoint_sha256,
            target_backend=target_backend(backend, precision),
            report=report,
        )
        # the name decides how the model is told to think, wherever this is compiled
        source = {**checkpoint.source, "name": checkpoint.name}
        write_beside(scratch / SOURCE_FILE, json.dumps(source, indent=2, sort_keys=True) + "\n")


def compile_quantized(
    quantized: Path,
    plan: Plan,
    profile: Profile,
    store: Path,
    *,
    force: bool = False,
    report: Progress = no_progress,
) -> BuildResult:
    """The rest of a build from a checkpoint that `quantize` wrote, perhaps on another machine."""
    from edgekit.quantize.recipe import read_recipe

    recipe = read_recipe(quantized)
    checkpoint = read_checkpoint(quantized)
    backend = require_possible(plan, profile, checkpoint.spec)
    require_target(str(recipe.get("target_backend", "")), plan.backend)
    require_zero_points(checkpoint, backend)
    if not (quantized / REFERENCE_FILE).is_file():
        raise CheckpointError(
            f"the original's answers are missing: {quantized / REFERENCE_FILE}",
            hint="copy the whole directory that `edgekit quantize` wrote",
        )
    key = digest(
        checkpoint.sha256(report),
        EXPORT_VERSION,
        backend.version(),
        plan.context_tokens,
        plan.batch,
        plan.kv_precision,
        plan.capabilities,
        plan.speculation,
        sha256_file(quantized / REFERENCE_FILE),
        repr(profile.storage_for(plan.precision, checkpoint.spec.size_params)),
    )
    final = _place(store, plan.model, plan)
    with build_lock(store):
        remove_leftovers(store)
        if not force and (manifest := _same_engine(final, key, backend)):
            return BuildResult(engine=final, manifest=manifest, was_reused=True)
        manifest = compile_engine(
            quantized,
            plan,
            profile,
            final,
            backend,
            Origin(
                model=plan.model,
                checkpoint_sha256=recipe.get("checkpoint_sha256", ""),
                build_key=key,
            ),
            report=report,
        )
    return BuildResult(engine=final, manifest=manifest, was_reused=False)


def compile_staged(
    stage: Path,
    plan: Plan,
    profile: Profile,
    store: Path,
    *,
    force: bool = False,
    report: Progress = no_progress,
) -> BuildResult:
    """The rest of a build from a stage, which another machine may have made."""
    staged = read_manifest(stage, file=STAGE_FILE)
    backend = require_possible(plan, profile, is_staged=True)
    key = staged_key(staged, backend.version(), plan)
    final = _place(store, staged.model, plan)
    with build_lock(store):
        remove_leftovers(store)
        if not force and (manifest := _same_engine(final, key, backend)):
            return BuildResult(engine=final, manifest=manifest, was_reused=True)
        manifest = compile_stage(stage, plan, profile, final, backend, key, report=report)
    return BuildResult(engine=final, manifest=manifest, was_reused=False)


def staged_key(staged: Manifest, version: str, plan: Plan) -> str:
    """The build key of an engine that is compiled from a stage, by a backend of that version."""
    return digest(staged.build_key, version, plan.context_tokens, plan.batch, plan.speculation)


def _same_engine(
    final: Path, key: str, backend: Backend, file: str = MANIFEST_FILE
) -> Manifest | None:
    """The engine or stage at `final` if it is whole, was built from the same inputs, and, as far as
    its backend knows, on what is here now."""
    try:
        manifest = read_manifest(final, file=file)
        if manifest.build_key != key:
            return None
        if file == MANIFEST_FILE and isinstance(backend, BindsDevice):
            backend.require_here(manifest.device, final)
        return open_manifest(final, full=True, file=file)
    except EngineError as exc:
        _LOG.info("built again: %s", exc)
        return None
