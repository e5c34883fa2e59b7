"""The last steps of a build: a quantized checkpoint is exported, compiled and checked.

quantized/ ─► source ─┬─► compile ─► engine ─► check it, where its device is here
                      ├─► twin    ─► check it, where it is not: before the long part
                      └─► stage: everything but the compiler's work, to be carried to the device

    <engine>.stage/
    ├── stage.json      a manifest as an engine has one; `device` holds the model's shape
    ├── source/         what the backend compiles
    └── tokenizer/, reference/
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from edgekit.backends import Backend, Session
from edgekit.backends.base import FillsApart, Prepares, Streams, Wanted
from edgekit.checkpoint import Checkpoint, read_checkpoint
from edgekit.checkpoint.tokenizer_files import copy_tokenizer
from edgekit.device import Device, read_device, run_tool
from edgekit.engine import STAGE_FILE, Manifest, device_cache, open_manifest
from edgekit.errors import PromptError, storage_errors
from edgekit.plan import Plan
from edgekit.precision import find_precision
from edgekit.preflight import require_room
from edgekit.profile import Profile
from edgekit.progress import Progress, no_progress
from edgekit.quality import ON_ENGINE, ON_TWIN, Quality
from edgekit.reference import REFERENCE_FILE
from edgekit.scratch import give_memory_back, link_or_copy, scratch_directory
from edgekit.target import own_gpu
from edgekit.verify import check_answers, check_streamed

_LOG = logging.getLogger(__name__)
_SOURCE = "source"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where an engine comes from."""

    model: str
    checkpoint_sha256: str
    build_key: str
    """Digest of every input of the build."""


def compile_engine(
    quantized: Path,
    plan: Plan,
    profile: Profile,
    final: Path,
    backend: Backend,
    origin: Origin,
    *,
    report: Progress = no_progress,
) -> Manifest:
    """Make the engine at `final`. Nothing appears there unless it passes its check."""
    require_room(plan, "compile")
    with scratch_directory(final) as scratch, _own_cache(scratch, final):
        quality = _prepare(quantized, plan, profile, backend, scratch, report=report)
        return _finish(plan, profile, backend, origin, quality, scratch, report=report)


def make_stage(
    quantized: Path,
    plan: Plan,
    profile: Profile,
    final: Path,
    backend: Backend,
    origin: Origin,
    *,
    report: Progress = no_progress,
) -> Manifest:
    """Make the stage at `final`: what the compiler takes, proved by its twin."""
    with scratch_directory(final) as scratch:
        quality = _prepare(quantized, plan, profile, backend, scratch, is_stage=True, report=report)
        spec = read_checkpoint(quantized).spec.to_dict()
        manifest = replace(_manifest(plan, profile, origin, quality), device={"spec": spec}).sealed(
            scratch
        )
        manifest.write(scratch, file=STAGE_FILE)
    return manifest


def compile_stage(
    stage: Path,
    plan: Plan,
    profile: Profile,
    final: Path,
    backend: Backend,
    build_key: str,
    *,
    report: Progress = no_progress,
) -> Manifest:
    """The rest of a build from a stage, perhaps from another machine.

    Raises `EngineError` for a stage that is not as it was made.
    """
    require_room(plan, "compile")
    staged = open_manifest(stage, full=True, file=STAGE_FILE)
    origin = Origin(
        model=staged.model, checkpoint_sha256=staged.checkpoint_sha256, build_key=build_key
    )
    with scratch_directory(final) as scratch, _own_cache(scratch, final):
        with storage_errors(scratch):
            for name in staged.files:
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(stage / name, scratch / name)
        quality = None if backend.info.exposes_logits else Quality.from_dict(staged.quality)
        return _finish(plan, profile, backend, origin, quality, scratch, report=report)


def _prepare(
    quantized: Path,
    plan: Plan,
    profile: Profile,
    backend: Backend,
    scratch: Path,
    *,
    is_stage: bool = False,
    report: Progress,
) -> Quality | None:
    """Texts, answers and the compiler's source below `scratch`; what its twin answered, where the
    engine cannot be asked (all), or not here."""
    give_memory_back()
    checkpoint = read_checkpoint(quantized)
    copy_tokenizer(checkpoint.path, scratch / "tokenizer")
    reference = scratch / "reference" / REFERENCE_FILE
    reference.parent.mkdir()
    reference.write_bytes((quantized / REFERENCE_FILE).read_bytes())
    source = scratch / _SOURCE
    source.mkdir()
    export_graph(checkpoint, plan, profile, backend, source, report=report)
    info = backend.info
    is_asked = info.exposes_logits and not (
        info.compiles_ahead and not is_here(plan, read_device())
    )
    if is_asked and not is_stage:
        return None
    twin = partial(backend.open_twin, source, num_slots=1)
    if is_asked:  # rounded as on the device, where the engine itself is asked
        asked = _check(plan, scratch, lambda n: twin(context_tokens=n), on=ON_ENGINE, report=report)
        return replace(asked, measured_on=ON_TWIN)
    ways: list[Callable[[int], Session]] = [lambda n: twin(context_tokens=n)]
    rounds_cache = backend.info.has_stage and plan.kv_precision != "fp16"
    if find_precision(plan.precision).activation_bits < 16 or rounds_cache:
        ways.append(lambda n: twin(context_tokens=n, keeps_activations=True))
    quality = _check(plan, scratch, *ways, on=ON_TWIN, report=report)
    give_memory_back()  # before the compiler takes it
    if isinstance(backend, Prepares):
        backend.prepare(source, wanted(plan, profile), report=report)
    return quality


def _finish(
    plan: Plan,
    profile: Profile,
    backend: Backend,
    origin: Origin,
    quality: Quality | None,
    scratch: Path,
    *,
    report: Progress,
) -> Manifest:
    """Compile `scratch/source`, ask the engine where that has not been done, write the manifest."""
    source, engine = scratch / _SOURCE, scratch / "backend"
    machine = read_device(run=run_tool)
    compiled = backend.compile(source, engine, wanted(plan, profile), report=report)
    shutil.rmtree(source)
    if quality is not None and isinstance(backend, Streams):
        quality = check_streamed(
            backend,
            quality,
            engine=scratch,
            context_tokens=plan.context_tokens,
            precision=plan.precision,
            kv_precision=plan.kv_precision,
            report=report,
        )
    if quality is None:
        quality = _check_engine(plan, backend, scratch, engine, report=report)
    manifest = replace(
        _manifest(plan, profile, origin, quality),
        backend={"name": plan.backend, "version": backend.version()},
        device={**machine.to_dict(), **compiled},
    ).sealed(scratch)
    manifest.write(scratch)
    return manifest


def _check_engine(
    plan: Plan, backend: Backend, scratch: Path, engine: Path, *, report: Progress
) -> Quality:
    """Prompts whose own kernels do not suit the model go through the others."""

    def check() -> Quality:
        opened = partial(backend.open, engine, num_slots=1)
        return _check(
            plan, scratch, lambda n: opened(context_tokens=n), on=ON_ENGINE, report=report
        )

    try:
        return check()
    except PromptError as exc:
        if not isinstance(backend, FillsApart):
            raise
        _LOG.warning("%s: left out, prompts go through the weights of the answers", exc)
        backend.leave_out_prompts(engine)
        return check()


def _check(
    plan: Plan,
    scratch: Path,
    *ways: Callable[[int], Session],
    on: str,
    report: Progress,
) -> Quality:
    return check_answers(
        *ways,
        engine=scratch,
        context_tokens=plan.context_tokens,
        precision=plan.precision,
        kv_precision=plan.kv_precision,
        on=on,
        report=report,
    )


def _manifest(plan: Plan, profile: Profile, origin: Origin, quality: Quality | None) -> Manifest:
    return Manifest(
        model=origin.model,
        checkpoint_sha256=origin.checkpoint_sha256,
        precision=plan.precision,
        kv_precision=plan.kv_precision,
        profile=profile.name,
        backend={"name": plan.backend, "version": ""},
        context_tokens=plan.context_tokens,
        batch=plan.batch,
        plan=plan.to_dict(),
        device={},
        quality={} if quality is None else quality.to_dict(),
        build_key=origin.build_key,
    )


@contextmanager
def _own_cache(scratch: Path, final: Path) -> Iterator[None]:
    """What a device made of the engine while it was checked follows it to its place, and goes
    where the engine does not come to be."""
    cache, place = device_cache(scratch), device_cache(final)
    try:
        yield
        shutil.rmtree(place, ignore_errors=True)  # of an engine that was there before
        if cache.is_dir():
            cache.rename(place)
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def wanted(plan: Plan, profile: Profile) -> Wanted:
    """What the backend is told of the plan."""
    gpu = own_gpu(profile, read_device())
    return Wanted(
        precision=plan.precision,
        kv_precision=plan.kv_precision,
        context_tokens=plan.context_tokens,
        batch=plan.batch,
        capabilities=plan.capabilities,
        speculation=plan.speculation,
        gpu_index=None if gpu is None else gpu.index,
    )


def is_here(plan: Plan, machine: Device) -> bool:
    """Whether this machine has a GPU that the engine is compiled for."""
    return any(gpu.sm in plan.capabilities for gpu in machine.gpus)


def export_graph(
    checkpoint: Checkpoint,
    plan: Plan,
    profile: Profile,
    backend: Backend,
    out: Path,
    *,
    report: Progress = no_progress,
) -> None:
    """Write what the backend compiles into the directory `out`."""
    from edgekit.export import EXPORTERS

    extra = {}
    if not backend.info.exposes_logits:
        extra["kv_precision"] = plan.kv_precision
    EXPORTERS[backend.info.consumes](
        checkpoint,
        profile.storage_for(plan.precision, checkpoint.spec.size_params, batch=plan.batch),
        out,
        context_tokens=plan.context_tokens,
        report=report,
        **extra,
    )
