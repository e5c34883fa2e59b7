"""Ahead-of-time compilation: a graph becomes one engine for all the GPUs that are asked for.

Nothing here needs a GPU or a driver. The plan holds kernels as code for the target architectures;
the last step, to machine code, happens on the card when the engine is first used.

Prefill and decode have a profile each, so that each gets kernels of its shape. fp16 weights would
then be stored twice, once in each profile's layout (quantized ones are shared), so fp16 has one
profile for both. With one profile attention takes the query heads of a KV head as rows of one
matrix: as heads, the compiler would copy the whole cache for each of them in every step. The decode
kernel of the other form reads it once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from edgekit.backends.base import Wanted
from edgekit.backends.tensorrt_rtx.layout import GRAPH_FILE, PLAN_FILE, EngineLayout
from edgekit.backends.tensorrt_rtx.log import import_bindings, vendor_log
from edgekit.backends.tensorrt_rtx.network import NetworkWriter
from edgekit.errors import BackendError, InputError, storage_errors
from edgekit.progress import Progress

CHUNK_TOKENS = 512
"""Of a prompt, at once."""
MAX_LOGITS = 32
"""Rows of one call: a draft checked at once is no longer."""
ONE_PROFILE = ("fp16",)
"""Precisions whose weights two profiles would hold twice."""
FIRST_CAPABILITY = {"fp8": 89, "int4_awq": 80}
"""The oldest GPU with that arithmetic: the compiler refuses fp8 for sm_86 and INT4 for sm_75."""
_POLL_S = 0.2


def compile_graph(
    source: Path, out: Path, wanted: Wanted, *, version: str, report: Progress
) -> EngineLayout:
    """Write `engine.plan` and `engine.json` into the directory `out`.

    Raises `InputError` for GPUs that the compiler or the precision does not have, `BackendError`
    with the compiler's own words, `StorageError`.
    """
    trt, log = import_bindings(), vendor_log()
    require_capabilities(wanted)
    log.clear()
    builder = trt.Builder(log.logger)
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    writer = NetworkWriter(
        network,
        source / GRAPH_FILE,
        context_tokens=wanted.context_tokens,
        packs_queries=wanted.precision in ONE_PROFILE,
    )
    writer.write()
    layout = _layout(network, wanted, version)
    config = _configure(builder, network, layout)
    with storage_errors(out), (out / PLAN_FILE).open("wb") as file:
        output, watch = _Output(file), _Watch()
        config.progress_monitor = watch.monitor
        built = _build(
            lambda: builder.build_serialized_network_to_stream(network, config, output.writer),
            watch,
            profiles=config.num_optimization_profiles,
            report=report,
        )
        if output.problem is not None:
            raise output.problem
    if not built:
        raise log.failure(
            "compiling",
            hint="report the model's shape and the line above; another way is to build for one "
            "card, with `--profile` and `--backend onnxruntime`",
        )
    layout.write(out)
    return layout


def require_capabilities(wanted: Wanted) -> None:
    """Raises `InputError` for a GPU that cannot be compiled for, naming those that can."""
    trt = import_bindings()
    known = sorted(
        int(name[2:]) for name in trt.ComputeCapability.__members__ if name.startswith("SM")
    )
    listed = ", ".join(f"sm_{n}" for n in known)
    first = FIRST_CAPABILITY.get(wanted.precision, 0)
    for capability in wanted.capabilities:
        if capability not in known:
            raise InputError(
                f"TensorRT-RTX does not compile for sm_{capability}",
                hint=f"it compiles for {listed}; use `--backend auto` for another compiler",
            )
        if capability < first:
            raise InputError(
                f"{wanted.precision} is not possible on sm_{capability}: it begins with sm_{first}",
                hint="leave that GPU out of `--for`, or use `--precision int8`",
            )
    if not wanted.capabilities:
        raise InputError(
            "TensorRT-RTX compiles for NVIDIA GPUs, none was named",
            hint=f"name a profile, as `--profile rtx-4090`, or several with `--for`; "
            f"GPUs can be {listed}",
        )


def _layout(network: Any, wanted: Wanted, version: str) -> EngineLayout:
    shapes = {
        tensor.name: tuple(tensor.shape)
        for tensor in (network.get_input(i) for i in range(network.num_inputs))
    }
    _, heads, _, size = shapes["past.0.key"]
    logits = next(
        tensor
        for tensor in (network.get_output(i) for i in range(network.num_outputs))
        if tensor.name == "logits"
    )
    return EngineLayout(
        version=version,
        capabilities=tuple(sorted(set(wanted.capabilities))),
        num_layers=sum(name.endswith(".key") for name in shapes),
        num_kv_heads=heads,
        head_dim=size,
        vocab_size=int(logits.shape[2]),
        context_tokens=wanted.context_tokens,
        batch=wanted.batch,
        chunk_tokens=min(CHUNK_TOKENS, wanted.context_tokens),
        max_logits=min(MAX_LOGITS, wanted.context_tokens),
        has_decode_profile=wanted.precision not in ONE_PROFILE,
    )


def profile_shapes(layout: EngineLayout) -> list[dict[str, tuple[tuple[int, ...], ...]]]:
    """For each profile: input -> its smallest, typical and largest shape."""
    chunk, logits = layout.chunk_tokens, layout.max_logits
    if layout.has_decode_profile:
        rows = [(1, chunk, logits), (layout.batch, 1, 1)]
    else:
        rows = [(layout.batch, chunk, logits)]
    profiles = []
    for batch, tokens, wanted in rows:
        # decode is what a single profile does most
        typical = tokens if layout.has_decode_profile else 1
        ids = ((1, 1), (batch, typical), (batch, tokens))
        shapes: dict[str, tuple[tuple[int, ...], ...]] = {
            "input_ids": ids,
            "position_ids": ids,
            "write_indices": ((1,), (batch,), (batch,)),
            "kv_lengths": ((1,), (batch,), (batch,)),
            "logits_index": ((1,), (1,), (wanted,)),
        }
        cache = (layout.num_kv_heads, layout.context_tokens, layout.head_dim)
        for index in range(layout.num_layers):
            for kind in ("key", "value"):
                name = f"past.{index}.{kind}"
                shapes[name] = ((1, *cache), (batch, *cache), (batch, *cache))
        profiles.append(shapes)
    return profiles


def _configure(builder: Any, network: Any, layout: EngineLayout) -> Any:
    trt = import_bindings()
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(layout.capabilities)
    for index, capability in enumerate(layout.capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), index)
    for shapes in profile_shapes(layout):
        profile = builder.create_optimization_profile()
        for name, three in shapes.items():
            profile.set_shape(name, *three)
        if config.add_optimization_profile(profile) < 0:
            raise BackendError("TensorRT-RTX refuses the shapes of the engine")
    return config


class _Output:
    """Writes the engine as it is serialized: it never lies in memory whole."""

    def __init__(self, file: BinaryIO) -> None:
        trt = import_bindings()
        # made by hand: a base class that is found at run time is none to a type checker
        kind = type("Writer", (trt.IStreamWriter,), {"write": lambda _, data: self._write(data)})
        self._file = file
        self.problem: OSError | ValueError | None = None
        self.writer: Any = kind()

    def _write(self, data: bytes) -> int:
        """An exception may not cross into the compiler: kept, and the write refused."""
        try:
            self._file.write(data)
        except (OSError, ValueError) as exc:  # a full disk, a closed file
            self.problem = exc
            return -1
        return len(data)


class _Watch:
    """Counts the profiles that are compiled, and ends the compilation when told to."""

    def __init__(self) -> None:
        trt = import_bindings()
        self.done = 0
        self.is_cancelled = False
        self.is_interrupted = False
        calls: dict[str, Callable[..., object]] = {
            "phase_start": lambda *_: None,
            "step_complete": lambda *_: not self.is_cancelled,
            "phase_finish": lambda _, name: self._finish(name),
        }
        self.monitor: Any = type("Monitor", (trt.IProgressMonitor,), calls)()

    def _finish(self, phase: str) -> None:
        # what takes long has this name, whatever it may mean; once for each profile
        self.done += phase == "Determining refit engines"


def _build(run: Callable[[], Any], watch: _Watch, *, profiles: int, report: Progress) -> bool:
    """`run()` in a thread of its own, so that progress is shown and Ctrl-C is heard."""
    result: list[Any] = []
    # not `join`: interrupted, it takes the thread for ended, and the compiler writes into the void
    ended = threading.Event()

    def work() -> None:
        try:
            result.append(run())
        except Exception as exc:  # whatever the bindings raise, for the caller's thread
            result.append(exc)
        finally:
            ended.set()

    with _cancelled_by_ctrl_c(watch):
        threading.Thread(target=work, name="tensorrt-rtx", daemon=True).start()
        try:
            while not ended.is_set():
                report("compile", min(watch.done, profiles), profiles + 1)
                ended.wait(_POLL_S)
        except BaseException:
            watch.is_cancelled = True
            ended.wait()
            raise
    report("compile", profiles + 1, profiles + 1)
    if isinstance(result[0], Exception):
        raise BackendError(f"TensorRT-RTX failed: {result[0]}") from result[0]
    return bool(result[0])


@contextmanager
def _cancelled_by_ctrl_c(watch: _Watch) -> Iterator[None]:
    """Ctrl-C, however often it is pressed, tells the compiler to end, and is raised when it has.

    The compiler cannot be left alone, and an exception at any moment leaves it so now and then:
    between two waits, or in one, whose lock is then held for ever.
    """
    usual = signal.default_int_handler
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not usual:
        yield  # no Ctrl-C comes here, or it is the caller's own
        return

    def heard(*_: object) -> None:
        watch.is_cancelled = watch.is_interrupted = True

    signal.signal(signal.SIGINT, heard)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if watch.is_interrupted:
            raise KeyboardInterrupt
