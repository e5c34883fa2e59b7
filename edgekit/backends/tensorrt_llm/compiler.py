"""From a checkpoint to an engine, and from an engine to a session, on the GPU that is here."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path

from edgekit.backends.base import Wanted
from edgekit.backends.tensorrt_llm.builder import build_engine, make_command
from edgekit.backends.tensorrt_llm.command import TOKENS_PER_BLOCK, BuildSizes, chunks_prompts
from edgekit.backends.tensorrt_llm.container import Mount
from edgekit.backends.tensorrt_llm.environment import settings
from edgekit.backends.tensorrt_llm.identity import Identity, read_identity, require_same
from edgekit.backends.tensorrt_llm.layout import EngineLayout
from edgekit.backends.tensorrt_llm.process import WORKER_PATH
from edgekit.backends.tensorrt_llm.runtime import Runtime
from edgekit.backends.tensorrt_llm.session import LoadOptions, TrtLlmSession
from edgekit.backends.tensorrt_llm.timing import timing_cache
from edgekit.backends.worker_wire import WIRE_PATH
from edgekit.device import Gpu, read_device, run_tool
from edgekit.errors import BackendError, storage_errors
from edgekit.progress import Progress

_LOG_FILE = "trtllm-build.log"


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
    kept = _cache_directory()
    versions = {"tensorrt-llm": runtime.version}
    if identity.tensorrt:
        versions["tensorrt"] = identity.tensorrt
    timing = timing_cache(kept, gpu.name, gpu.sm or 0, versions)
    command = make_command(
        runtime,
        checkpoint=source,
        out=out,
        sizes=sizes,
        precision=wanted.precision,
        kv_precision=wanted.kv_precision,
        timing_cache=timing,
        gpu_index=gpu.index,
    )
    build_engine(
        runtime,
        command,
        checkpoint=source,
        out=out,
        log_file=kept / _LOG_FILE,
        report=report,
        gpu_index=gpu.index,
        timing_cache=timing,
    )
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    EngineLayout(
        precision=wanted.precision,
        kv_precision=wanted.kv_precision,
        vocab_size=int(config["vocab_size"]),
        context_tokens=sizes.max_seq_len,
        batch=sizes.max_batch_size,
        max_num_tokens=sizes.max_num_tokens,
        identity=identity,
    ).write(out)
    return identity


def open_engine(
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
    device = read_device(run=run_tool)
    gpu = next((gpu for gpu in device.gpus if gpu.name == layout.identity.gpu), None)
    index = gpu.index if gpu is not None else 0
    require_same(layout.identity, read_identity(runtime, device, gpu_index=index), engine)
    pages = -(-context_tokens // TOKENS_PER_BLOCK) * TOKENS_PER_BLOCK
    mounts, scratch = [Mount(path=engine), Mount(path=WORKER_PATH.parent)], None
    if to_score:
        scratch = _cache_directory()
        with storage_errors(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
        mounts.append(Mount(path=scratch, is_writable=True))
    mounts.append(Mount(path=WIRE_PATH))
    words = runtime.words(
        mounts=mounts,
        settings=settings(gpu_index=index),
        name=f"edgekit-worker-{os.getpid()}",
        is_interactive=True,
    )
    return TrtLlmSession.open(
        (*words, str(WORKER_PATH)),
        LoadOptions(
            model=str(engine.absolute()),
            backend="tensorrt",
            context_tokens=context_tokens,
            kv_tokens=pages * num_slots,
            max_batch_size=min(num_slots, layout.batch),
            max_num_tokens=layout.max_num_tokens,
            chunked_prefill=chunks_prompts(layout.precision, layout.kv_precision),
            gather_logits=to_score,
        ),
        vocab_size=layout.vocab_size,
        stop_ids=stop_ids,
        environment=settings(gpu_index=index) if runtime.kind == "interpreter" else None,
        scratch=scratch,
    )


def _gpu_for(wanted: Wanted) -> Gpu:
    """The first GPU here that the engine is for. Raises `BackendError`."""
    gpus = read_device().gpus
    for gpu in gpus:
        if gpu.sm in wanted.capabilities:
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
