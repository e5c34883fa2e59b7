"""From a checkpoint to an engine, and from an engine to a session, on the GPU that is here."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgekit.backends.base import Wanted
from edgekit.backends.environment import paste
from edgekit.backends.tensorrt_llm.builder import build_engine, make_command
from edgekit.backends.tensorrt_llm.command import TOKENS_PER_BLOCK, BuildSizes
from edgekit.backends.tensorrt_llm.container import Mount
from edgekit.backends.tensorrt_llm.environment import cleared, settings
from edgekit.backends.tensorrt_llm.identity import Identity, read_identity, require_same
from edgekit.backends.tensorrt_llm.kinds import Kind, kind_of
from edgekit.backends.tensorrt_llm.layout import EngineLayout
from edgekit.backends.tensorrt_llm.process import WORKER_PATH
from edgekit.backends.tensorrt_llm.runtime import Runtime
from edgekit.backends.tensorrt_llm.session import LoadOptions, TrtLlmSession
from edgekit.backends.tensorrt_llm.timing import timing_cache
from edgekit.backends.worker_wire import WIRE_PATH
from edgekit.device import Gpu, read_device, run_tool
from edgekit.errors import BackendError, storage_errors
from edgekit.footprint import FOOTPRINTS, STEP_TOKENS
from edgekit.progress import Progress
from edgekit.scratch import link_or_copy

_LOG_FILE = "trtllm-build.log"
SPECULATIONS: Mapping[str, Mapping[str, Any] | None] = MappingProxyType(
    {
        "none": None,
        "ngram": {
            "kind": "ngram",
            "max_draft_len": STEP_TOKENS["ngram"] - 1,
            "max_matching_ngram_size": 3,
            "is_keep_all": True,
            "is_use_oldest": False,  # what was said last is said again sooner
            "is_public_pool": False,  # one conversation's words are no drafts for another
        },
    }
)
"""How an engine drafts by itself -> what its session is loaded with (`LoadOptions.speculation`)."""


def compile_checkpoint(
    runtime: Runtime,
    source: Path,
    out: Path,
    wanted: Wanted,
    sizes: BuildSizes,
    *,
    report: Progress,
) -> Identity:
    """Make the engine's directory `out`; returns what the engine is bound to.

    Log and timing caches outlive a failed build: they are kept below the user's cache directory.
    Raises what `builder.build_engine` raises.
    """
    gpu = _gpu_for(wanted)
    identity = read_identity(runtime, read_device(run=run_tool), gpu_index=gpu.index)
    timing = _timing_of(runtime, gpu)
    command = _command(runtime, source, out, wanted, sizes, timing=timing, gpu_index=gpu.index)
    build_engine(
        runtime,
        command,
        checkpoint=source,
        out=out,
        log_file=_cache_directory() / _LOG_FILE,
        report=report,
        gpu_index=gpu.index,
        timing_cache=timing,
    )
    _write_layout(source, out, wanted, sizes, identity)
    return identity


def command_line(
    runtime: Runtime, source: Path, out: Path, wanted: Wanted, sizes: BuildSizes
) -> str:
    """What `compile_checkpoint` runs, on the GPU here that the engine is for, if there is one; to
    be pasted. A `runtime` that is not known yet has no version."""
    gpu = _find_gpu(read_device().gpus, wanted)
    index = None if gpu is None else gpu.index
    timing = None if gpu is None or not runtime.version else _timing_of(runtime, gpu)
    command = _command(runtime, source, out, wanted, sizes, timing=timing, gpu_index=index)
    hidden = tuple(cleared(os.environ, is_own=runtime.is_own))
    return paste(command, settings=settings(gpu_index=index), cleared=hidden)


def _command(
    runtime: Runtime,
    source: Path,
    out: Path,
    wanted: Wanted,
    sizes: BuildSizes,
    *,
    timing: Path | None,
    gpu_index: int | None,
) -> tuple[str, ...]:
    return make_command(
        runtime,
        checkpoint=source,
        out=out,
        sizes=sizes,
        precision=wanted.precision,
        kv_precision=wanted.kv_precision,
        timing_cache=timing,
        gpu_index=gpu_index,
    )


def adopt_checkpoint(
    runtime: Runtime,
    source: Path,
    out: Path,
    wanted: Wanted,
    sizes: BuildSizes,
    *,
    report: Progress,
) -> Identity:
    """Make `out` of the checkpoint as it is, for the PyTorch backend; returns what it is bound to.

    Raises `BackendError` without such a GPU, `StorageError`.
    """
    gpu = _gpu_for(wanted)
    identity = read_identity(runtime, read_device(run=run_tool), gpu_index=gpu.index)
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        files = sorted(path for path in source.iterdir() if path.is_file())
        for done, path in enumerate(files):
            report("compile", done, len(files))
            link_or_copy(path, out / path.name)
    _write_layout(source, out, wanted, sizes, identity)
    report("compile", 1, 1)
    return identity


def _write_layout(
    source: Path, out: Path, wanted: Wanted, sizes: BuildSizes, identity: Identity
) -> None:
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    EngineLayout(
        precision=wanted.precision,
        kv_precision=wanted.kv_precision,
        vocab_size=int(config["vocab_size"]),
        context_tokens=sizes.max_seq_len,
        batch=sizes.max_batch_size,
        max_num_tokens=sizes.max_num_tokens,
        speculation=wanted.speculation,
        identity=identity,
    ).write(out)


def open_engine(
    kind: Kind,
    runtime: Runtime,
    engine: Path,
    *,
    context_tokens: int,
    num_slots: int,
    stop_ids: Collection[int] = (),
    to_score: bool = False,
) -> TrtLlmSession:
    """Start a worker and load `engine`, with a cache for `num_slots` whole contexts; `to_score`:
    so that it gives log-probabilities, too."""
    layout = EngineLayout.read(engine)
    pair = (layout.precision, layout.kv_precision)
    device = read_device(run=run_tool)
    gpu = _nearest(device.gpus, layout.identity)
    index = gpu.index if gpu is not None else 0
    here = read_identity(runtime, device, gpu_index=index)
    require_same(
        layout.identity,
        here,
        engine,
        binding=kind.binding,
        backend=kind_of(runtime).info.name,
        device=device,
    )
    row = FOOTPRINTS[kind.info.name]
    pages = -(-(context_tokens + row.spare_tokens) // TOKENS_PER_BLOCK) * TOKENS_PER_BLOCK
    mounts, scratch = [Mount(path=engine), Mount(path=WORKER_PATH.parent)], None
    if to_score:
        scratch = _cache_directory()
        with storage_errors(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
        mounts.append(Mount(path=scratch, is_writable=True))
    mounts.append(Mount(path=WIRE_PATH))
    # one that was killed may still have the name when the next begins
    name = f"edgekit-worker-{os.getpid()}-{secrets.token_hex(4)}"
    words = runtime.words(
        mounts=mounts, settings=settings(gpu_index=index), name=name, is_interactive=True
    )
    return TrtLlmSession.open(
        (*words, str(WORKER_PATH)),
        LoadOptions(
            model=str(engine.absolute()),
            backend=kind.loads,
            context_tokens=context_tokens,
            kv_tokens=pages * num_slots,
            max_batch_size=min(num_slots, layout.batch),
            max_num_tokens=layout.max_num_tokens,
            chunked_prefill=pair not in row.whole_prompts,
            kv_dtype="fp8" if layout.kv_precision == "fp8" else "auto",
            gather_logits=to_score,
            # what is scored is what the network says, not what drafts make of it
            speculation=None if to_score else SPECULATIONS[layout.speculation],
        ),
        vocab_size=layout.vocab_size,
        stop_ids=stop_ids,
        environment=settings(gpu_index=index) if runtime.kind == "interpreter" else None,
        hidden=tuple(cleared(os.environ, is_own=runtime.is_own)),
        stop_words=runtime.stop_words(name),
        scratch=scratch,
    )


def _nearest(gpus: Sequence[Gpu], recorded: Identity) -> Gpu | None:
    """The GPU that an engine was made on, or one of its generation."""
    same = [gpu for gpu in gpus if gpu.name == recorded.gpu]
    return next(iter([*same, *(gpu for gpu in gpus if gpu.sm == recorded.sm)]), None)


def _timing_of(runtime: Runtime, gpu: Gpu) -> Path:
    versions = {"tensorrt-llm": runtime.version}
    if tensorrt := runtime.details.get("tensorrt"):
        versions["tensorrt"] = tensorrt
    return timing_cache(_cache_directory(), gpu.name, gpu.sm or 0, versions)


def _find_gpu(gpus: Sequence[Gpu], wanted: Wanted) -> Gpu | None:
    """The one that the engine is for, else one of its generation."""
    able = [gpu for gpu in gpus if gpu.sm in wanted.capabilities]
    return min(able, key=lambda gpu: gpu.index != wanted.gpu_index, default=None)


def _gpu_for(wanted: Wanted) -> Gpu:
    """That GPU. Raises `BackendError` where there is none."""
    gpus = read_device().gpus
    if (gpu := _find_gpu(gpus, wanted)) is not None:
        return gpu
    names = ", ".join(f"{gpu.name} (sm_{gpu.sm})" for gpu in gpus) or "no NVIDIA GPU"
    asked = ", ".join(f"sm_{sm}" for sm in wanted.capabilities)
    raise BackendError(
        f"TensorRT-LLM compiles on the GPU that the engine is for, {asked}; here is {names}",
        hint="use `edgekit build --stage checkpoint` here, and `edgekit compile` on the device",
    )


def _cache_directory() -> Path:
    """What edgekit keeps for a user of this machine."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "edgekit" / "tensorrt-llm"
