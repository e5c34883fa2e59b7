"""From a checkpoint to a proven engine: `build` = plan, quantize, compile, verify.

    store/
    ├── <model>/<profile>/<precision>-<backend>/     finished engines
    └── .work/
        ├── checkpoint-<key>/   a GGUF file as a Hugging Face directory
        ├── hub/                downloads
        └── quantized-<key>/    ModelOpt's checkpoint

Every step's output is named after a digest of all that went into it, so the same inputs are never
worked on twice and a changed one is noticed. A step writes beside and renames; one that was killed
starts again, the finished ones before it do not. One build at a time per store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit import __version__
from edgekit.backends import Backend, find_backend
from edgekit.checkpoint import Checkpoint, read_checkpoint, resolve_model
from edgekit.checkpoint.tokenizer_files import copy_tokenizer
from edgekit.engine import Manifest, engine_path, open_manifest, read_manifest
from edgekit.errors import (
    EngineError,
    InputError,
    MissingBackendError,
    QualityError,
    storage_errors,
)
from edgekit.plan import Plan, require_fit
from edgekit.precision import find_precision
from edgekit.profile import Profile
from edgekit.progress import Progress, no_progress
from edgekit.reference import REFERENCE_FILE, Reference
from edgekit.scratch import remove_scratch, scratch_directory, sha256_file
from edgekit.verify import Quality, measure_quality, require_quality

WORK = ".work"
_EXPORT_VERSION = 1
"""Raise it with every change of what `export` writes: engines are then built again."""
_QUANTIZE_VERSION = 1
"""The same for `quantize`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What a build is told besides its plan."""

    calibration: Path | None = None
    calibration_tokens: int | None = None
    """`None`: the default amount."""
    seed: int = 0
    offline: bool = False
    force: bool = False
    """Build although the same engine is there."""


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
    require_fit(plan)
    backend = find_backend(plan.backend)
    if plan.precision not in backend.info.precisions:
        raise InputError(
            f"the backend `{plan.backend}` has no {plan.precision}",
            hint=f"it has {', '.join(sorted(backend.info.precisions))}",
        )
    checkpoint_sha256 = checkpoint.sha256(report)
    final = engine_path(
        store, model=checkpoint.name, profile=profile.name, precision=plan.precision,
        backend=plan.backend,
    )
    with build_lock(store):
        remove_scratch(store)
        quantize_key = _quantize_key(checkpoint_sha256, checkpoint, plan, profile, options)
        key = _digest(
            quantize_key, _EXPORT_VERSION, backend.version(), plan.context_tokens, plan.batch,
            repr(profile.storage[plan.precision]),
        )
        if not options.force and (manifest := _same_engine(final, key)):
            return BuildResult(engine=final, manifest=manifest, was_reused=True)
        quantized = store / WORK / f"quantized-{quantize_key[:16]}"
        if not (quantized / REFERENCE_FILE).is_file():
            quantize(
                checkpoint, plan.precision, profile, quantized, options,
                checkpoint_sha256=checkpoint_sha256, report=report,
            )
        manifest = compile_engine(
            quantized, plan, profile, final, backend, model=checkpoint.name,
            checkpoint_sha256=checkpoint_sha256, build_key=key, report=report,
        )
    return BuildResult(engine=final, manifest=manifest, was_reused=False)


def quantize(
    checkpoint: Checkpoint,
    precision: str,
    profile: Profile,
    out: Path,
    options: BuildOptions,
    *,
    checkpoint_sha256: str,
    report: Progress = no_progress,
) -> None:
    """The quantize step: `out` becomes a quantized checkpoint. See `quantize_checkpoint`."""
    from edgekit.quantize import quantize_checkpoint
    from edgekit.quantize.calibration import DEFAULT_TOKENS

    with scratch_directory(out) as scratch:
        quantize_checkpoint(
            checkpoint, find_precision(precision), scratch,
            group_size=group_size(checkpoint, precision, profile),
            calibration=options.calibration,
            calibration_tokens=options.calibration_tokens or DEFAULT_TOKENS,
            seed=options.seed, checkpoint_sha256=checkpoint_sha256, report=report,
        )


def group_size(checkpoint: Checkpoint, precision: str, profile: Profile) -> int | None:
    """The group size that this checkpoint gets on this profile; `None`: per channel."""
    from edgekit.quantize import choose_group_size

    if find_precision(precision).group_size is None:
        return None
    wanted = profile.storage[precision].group_size or find_precision(precision).group_size or 128
    return choose_group_size(checkpoint.spec, wanted)


def compile_quantized(
    quantized: Path, plan: Plan, profile: Profile, store: Path, *, report: Progress = no_progress
) -> BuildResult:
    """The rest of a build from a checkpoint that `quantize` wrote, perhaps on another machine."""
    from edgekit.quantize.recipe import read_recipe

    require_fit(plan)
    backend = find_backend(plan.backend)
    recipe = read_recipe(quantized)
    checkpoint = read_checkpoint(quantized)
    key = _digest(
        checkpoint.sha256(report), _EXPORT_VERSION, backend.version(), plan.context_tokens,
        plan.batch, repr(profile.storage[plan.precision]),
    )
    final = engine_path(
        store, model=plan.model, profile=profile.name, precision=plan.precision,
        backend=plan.backend,
    )
    with build_lock(store):
        remove_scratch(store)
        manifest = compile_engine(
            quantized, plan, profile, final, backend, model=plan.model,
            checkpoint_sha256=recipe.get("checkpoint_sha256", ""), build_key=key, report=report,
        )
    return BuildResult(engine=final, manifest=manifest, was_reused=False)


def compile_engine(
    quantized: Path,
    plan: Plan,
    profile: Profile,
    final: Path,
    backend: Backend,
    *,
    model: str,
    checkpoint_sha256: str,
    build_key: str,
    report: Progress = no_progress,
) -> Manifest:
    """The compile and verify steps: a quantized checkpoint becomes the engine at `final`.

    Nothing appears there unless the engine passes its check.
    """
    checkpoint = read_checkpoint(quantized)
    with scratch_directory(final) as scratch:
        device = _compile(checkpoint, plan, profile, scratch, backend, report)
        reference = scratch / "reference" / REFERENCE_FILE
        reference.parent.mkdir()
        reference.write_bytes((quantized / REFERENCE_FILE).read_bytes())
        quality = check_engine(scratch, backend, plan, report=report)
        manifest = Manifest(
            model=model, checkpoint_sha256=checkpoint_sha256, precision=plan.precision,
            kv_precision=plan.kv_precision, profile=profile.name,
            backend={"name": plan.backend, "version": backend.version()},
            context_tokens=plan.context_tokens, batch=plan.batch, plan=plan.to_dict(),
            device=device, quality=quality.to_dict(), build_key=build_key,
        ).sealed(scratch)
        manifest.write(scratch)
    return manifest


def _compile(
    checkpoint: Checkpoint, plan: Plan, profile: Profile, scratch: Path, backend: Backend,
    report: Progress,
) -> dict[str, Any]:
    """Export what the backend consumes, and let it compile. Returns the manifest's `device`."""
    from edgekit.device import read_device

    try:
        from edgekit.export import export_decoder
    except ImportError as exc:
        raise MissingBackendError(
            f"compiling needs a package that is not installed: {exc.name}",
            hint="pip install 'edgekit[build]'",
        ) from exc
    copy_tokenizer(checkpoint.path, scratch / "tokenizer")
    source = scratch / "graph"
    source.mkdir()
    export_decoder(
        checkpoint, profile.storage[plan.precision], source,
        context_tokens=plan.context_tokens, report=report,
    )
    compiled = backend.compile(source, scratch / "backend", report=report)
    source.rmdir()
    return {**read_device().to_dict(), **compiled}


def check_engine(
    engine: Path, backend: Backend, plan: Plan, *, report: Progress = no_progress
) -> Quality:
    """Ask the engine the reference prompts; raises `QualityError` beyond a limit."""
    reference = Reference.load(engine / "reference" / REFERENCE_FILE)
    quality = _ask_engine(engine, backend, plan.context_tokens, reference, report)
    require_quality(quality, plan.precision)
    return quality


def verify(engine: Path, *, report: Progress = no_progress) -> Quality:
    """Check every file of an engine, then its answers, on this machine."""
    manifest = open_manifest(engine, full=True)
    backend = find_backend(manifest.backend["name"])
    reference = Reference.load(engine / "reference" / REFERENCE_FILE)
    quality = _ask_engine(engine, backend, manifest.context_tokens, reference, report)
    require_quality(quality, manifest.precision)
    return quality


def _ask_engine(
    engine: Path, backend: Backend, context_tokens: int, reference: Reference, report: Progress
) -> Quality:
    from tokenizers import Tokenizer

    longest = max(len(p) for p in (*reference.prompts, reference.known_prompt))
    needed = longest + len(reference.known_answer)
    if needed > context_tokens:
        raise QualityError(
            f"checking an engine takes {needed} tokens of context, this one has {context_tokens}",
            hint=f"build with `--context {needed}` or more",
        )
    session = backend.open(engine / "backend", context_tokens=needed, num_slots=1)
    try:
        quality = measure_quality(session, reference, report=report)
    finally:
        session.close()
    text = Tokenizer.from_file(str(engine / "tokenizer" / "tokenizer.json"))
    return replace(quality, known_answer=text.decode(list(quality.known_answer_ids)).strip())


@contextmanager
def build_lock(store: Path) -> Iterator[None]:
    """One build at a time per store; the lock goes with its process. Raises `InputError`."""
    import fcntl

    path = store / WORK / "lock"
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise InputError(
                f"another build is running in this store: {store}",
                hint="wait for it, or choose another place with `--store`",
            ) from exc
        yield


def _same_engine(final: Path, key: str) -> Manifest | None:
    """The engine at `final` if it is whole and was built from the same inputs."""
    try:
        manifest = read_manifest(final)
        return open_manifest(final, full=True) if manifest.build_key == key else None
    except EngineError:
        return None


def _quantize_key(
    checkpoint_sha256: str, checkpoint: Checkpoint, plan: Plan, profile: Profile,
    options: BuildOptions,
) -> str:
    from edgekit.quantize.calibration import DEFAULT_TOKENS, data_digest

    calibration = data_digest()
    if options.calibration is not None:
        if not options.calibration.is_file():
            raise InputError(f"no such calibration file: {options.calibration}")
        calibration = sha256_file(options.calibration)
    return _digest(
        checkpoint_sha256, checkpoint.name, plan.precision,
        group_size(checkpoint, plan.precision, profile), calibration,
        options.calibration_tokens or DEFAULT_TOKENS, options.seed, _QUANTIZE_VERSION,
    )


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps([*map(str, parts), __version__]).encode()).hexdigest()


