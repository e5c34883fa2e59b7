"""The last steps of a build: a quantized checkpoint is exported, compiled and checked.

quantized/ ─► graph ─┬─► compile ─► engine ─► check it, where its device is here
                     └─► twin    ─► check it, where it is not: before the long part
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from edgekit.backends import Backend, Session
from edgekit.backends.base import Wanted
from edgekit.checkpoint import Checkpoint, read_checkpoint
from edgekit.checkpoint.tokenizer_files import copy_tokenizer
from edgekit.device import Device, read_device, run_tool
from edgekit.engine import Manifest, device_cache
from edgekit.plan import Plan
from edgekit.precision import find_precision
from edgekit.preflight import require_room
from edgekit.profile import Profile
from edgekit.progress import Progress, no_progress
from edgekit.reference import REFERENCE_FILE
from edgekit.scratch import scratch_directory
from edgekit.verify import ON_ENGINE, ON_TWIN, Quality, check_answers


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
    """Make the engine at `final`. Nothing appears there unless it passes its check."""
    require_room(plan, "compile")
    checkpoint = read_checkpoint(quantized)
    machine = read_device(run=run_tool)
    with scratch_directory(final) as scratch, _own_cache(scratch, final):
        copy_tokenizer(checkpoint.path, scratch / "tokenizer")
        reference = scratch / "reference" / REFERENCE_FILE
        reference.parent.mkdir()
        reference.write_bytes((quantized / REFERENCE_FILE).read_bytes())
        source = scratch / "graph"
        source.mkdir()
        export_graph(checkpoint, plan, profile, backend, source, report=report)

        def check(*ways: Callable[[int], Session], on: str) -> Quality:
            return check_answers(
                *ways,
                engine=scratch,
                context_tokens=plan.context_tokens,
                precision=plan.precision,
                on=on,
                report=report,
            )

        quality = None
        if backend.info.compiles_ahead and not is_here(plan, machine):
            twin = partial(backend.open_twin, source, num_slots=1)
            ways = [lambda n: twin(context_tokens=n)]
            if find_precision(plan.precision).activation_bits < 16:
                ways.append(lambda n: twin(context_tokens=n, keeps_activations=True))
            quality = check(*ways, on=ON_TWIN)
        compiled = backend.compile(source, scratch / "backend", wanted(plan), report=report)
        shutil.rmtree(source)
        if quality is None:
            engine = scratch / "backend"
            quality = check(
                lambda n: backend.open(engine, context_tokens=n, num_slots=1), on=ON_ENGINE
            )
        manifest = Manifest(
            model=model,
            checkpoint_sha256=checkpoint_sha256,
            precision=plan.precision,
            kv_precision=plan.kv_precision,
            profile=profile.name,
            backend={"name": plan.backend, "version": backend.version()},
            context_tokens=plan.context_tokens,
            batch=plan.batch,
            plan=plan.to_dict(),
            device={**machine.to_dict(), **compiled},
            quality=quality.to_dict(),
            build_key=build_key,
        ).sealed(scratch)
        manifest.write(scratch)
    return manifest


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


def wanted(plan: Plan) -> Wanted:
    """What the backend is told of the plan."""
    return Wanted(
        precision=plan.precision,
        context_tokens=plan.context_tokens,
        batch=plan.batch,
        capabilities=plan.capabilities,
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

    EXPORTERS[backend.info.consumes](
        checkpoint,
        profile.storage_for(plan.precision, checkpoint.spec.num_params),
        out,
        context_tokens=plan.context_tokens,
        report=report,
    )
