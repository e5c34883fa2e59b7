"""`Executor` over TensorRT-RTX, and how an engine is opened on this machine's GPU.

One execution context per profile, with the workspace of that profile alone: prompts and steps do
not switch each other's shapes, and the recording of a step (a CUDA graph that the library takes by
itself, from the second pass of a shape on) stays valid. With a single profile (fp16) they share a
context, and a prompt costs the next step its recording.

Kernels are compiled eagerly, the pass waits for them: shapes are few (`session` rounds them), the
file of `kernel_cache` keeps them, and an answer is computed by the same kernels from its first
token to its last. The lazy strategy would run other kernels until a compiler in the background is
done, which a short answer does not live to see.
"""

from __future__ import annotations

import mmap
import re
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.backends.tensorrt_rtx.cuda import CudaDevice, open_device
from edgekit.backends.tensorrt_rtx.device import ALIGNMENT, Call
from edgekit.backends.tensorrt_rtx.inputs import INTEGER_INPUTS
from edgekit.backends.tensorrt_rtx.kernel_cache import KernelCache
from edgekit.backends.tensorrt_rtx.layout import PLAN_FILE, EngineLayout
from edgekit.backends.tensorrt_rtx.log import VendorLog, import_bindings, vendor_log
from edgekit.backends.tensorrt_rtx.session import RtxSession, Shapes
from edgekit.backends.tensorrt_rtx.validity import require_valid, require_version
from edgekit.errors import BudgetError, EdgekitError, EngineError, InputError
from edgekit.units import format_bytes


def open_engine(
    engine: Path, *, context_tokens: int, num_slots: int, cache: Path | None
) -> RtxSession:
    """Load `engine.plan` of the directory `engine` on the first GPU that it was built for.

    A slot may hold `context_tokens`; memory is taken for the context of the engine, whatever is
    asked for. `cache` is a directory for kernels compiled on this GPU, `None` keeps none. Raises
    `EngineError`, `StaleEngineError`, `InputError`, `BudgetError`, `BackendError`,
    `MissingBackendError`.
    """
    layout = EngineLayout.read(engine)
    plan = engine / PLAN_FILE
    if not plan.is_file():
        raise EngineError(f"engine file is missing: {plan}", hint="build it again")
    shapes = _shapes(layout, context_tokens=context_tokens, num_slots=num_slots)
    require_version(layout, import_bindings().__version__)
    device = open_device(layout.capabilities)
    with ExitStack() as undo:
        undo.callback(device.close)
        _require_memory(device, shapes, weights_bytes=plan.stat().st_size)
        file = None if cache is None else cache / _cache_name(device, layout)
        executor = TrtExecutor(plan, layout, device, file)
        undo.pop_all()
    return RtxSession(device, executor, shapes, context_tokens=context_tokens)


class TrtExecutor:
    """One engine, and an execution context for each of its profiles."""

    integers = np.dtype(np.int32)

    def __init__(
        self, plan: Path, layout: EngineLayout, device: CudaDevice, cache: Path | None
    ) -> None:
        """Leaves nothing behind when it fails. Raises as `open_engine` does."""
        self._trt = import_bindings()
        self._log: VendorLog = vendor_log()
        self._log.clear()
        self._device = device
        self._cache: KernelCache | None = None
        self._contexts: list[Any] = []
        self._bound: list[_Bound] = []
        device.use()
        with ExitStack() as undo:
            undo.callback(self.close)
            self._runtime = self._ask("starting", self._trt.Runtime, self._log.logger)
            self._engine = self._load(plan)
            self._check(layout)
            config = self._configure(cache)
            for profile in range(1 + layout.has_decode_profile):
                self._contexts.append(self._context(config, profile))
                self._bound.append(_Bound())
            device.synchronize()
            undo.pop_all()

    def run(self, call: Call) -> None:
        """Bind what changed since the last pass of this profile, and queue the pass."""
        self._log.clear()
        self._device.use()
        context, bound = self._contexts[call.profile], self._bound[call.profile]
        if bound.call is not call:
            self._bind(context, bound, call)
        self._ask("a pass", context.execute_async_v3, self._device.stream)
        if self._cache is not None:
            self._cache.ran((call.profile, *(call.inputs[n].shape for n in INTEGER_INPUTS)))

    def close(self) -> None:
        """Keep the kernels, then unload. Safe to call twice."""
        with suppress(EdgekitError):  # a device that is closed already
            self._device.use()
        if self._cache is not None:
            self._cache.save()
        self._cache = None
        self._bound.clear()
        self._contexts.clear()  # before the engine, and that before its runtime
        self._engine = None
        self._runtime = None

    def _load(self, plan: Path) -> Any:
        """The engine. The file is mapped: read once, by the library, and not kept."""
        with plan.open("rb") as file, ExitStack() as views:
            try:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as exc:  # ValueError: an empty file
                raise EngineError(
                    f"unreadable {plan}: {exc}", hint="build it again with `edgekit build`"
                ) from exc
            whole = views.enter_context(memoryview(views.enter_context(mapped)))
            header = views.enter_context(whole[: self._runtime.engine_header_size])
            verdict, flags = self._ask("reading", self._runtime.get_engine_validity, header)
            require_valid(verdict.name, int(flags), self._log.said)
            return self._ask("loading", self._runtime.deserialize_cuda_engine, whole)

    def _check(self, layout: EngineLayout) -> None:
        """Raises `EngineError` when `engine.json` speaks of another engine."""
        engine = self._engine
        kv = tuple(engine.get_tensor_shape("past.0.key"))[1:]
        expected = (layout.num_kv_heads, layout.context_tokens, layout.head_dim)
        profiles = engine.num_optimization_profiles
        if (
            kv != expected
            or profiles != 1 + layout.has_decode_profile
            or engine.num_io_tensors != len(INTEGER_INPUTS) + 4 * layout.num_layers + 1
            or engine.get_tensor_dtype("input_ids") != self._trt.int32
        ):
            raise EngineError(
                f"engine.json and {PLAN_FILE} do not belong together: a slot is "
                f"{list(kv)}, expected {list(expected)}; {profiles} profiles, "
                f"{engine.num_io_tensors} tensors",
                hint="build it again with `edgekit build`",
            )

    def _configure(self, cache: Path | None) -> Any:
        trt = self._trt
        config = self._ask("configuring", self._engine.create_runtime_config)
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        # by default each context holds the workspace of the largest profile
        config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        )
        if cache is not None:
            inner = self._ask("making a cache", config.create_runtime_cache)
            self._cache = KernelCache(inner, cache)
            self._cache.load()
            self._ask("setting the cache", config.set_runtime_cache, inner)
        return config

    def _context(self, config: Any, profile: int) -> Any:
        doing = f"preparing profile {profile}"
        context = self._ask(doing, self._engine.create_execution_context, config)
        stream = self._device.stream
        self._ask(doing, context.set_optimization_profile_async, profile, stream)
        return context

    def _bind(self, context: Any, bound: _Bound, call: Call) -> None:
        bound.call = None
        for name, tensor in call.inputs.items():
            if bound.shapes.get(name) != tensor.shape:
                bound.shapes.pop(name, None)
                what = f"the shape {list(tensor.shape)} of {name}"
                self._ask(what, context.set_input_shape, name, tensor.shape)
                bound.shapes[name] = tensor.shape
        for name, tensor in (*call.inputs.items(), *call.outputs.items()):
            if bound.addresses.get(name) != tensor.address:
                bound.addresses.pop(name, None)
                what = f"the address of {name}"
                self._ask(what, context.set_tensor_address, name, tensor.address)
                bound.addresses[name] = tensor.address
        bound.call = call

    def _ask(self, doing: str, function: Any, *arguments: Any) -> Any:
        """What the library answers. `None`, `False` and exceptions are how it fails."""
        try:
            given = function(*arguments)
        except Exception as exc:  # the border
            raise self._log.failure(doing, exc) from exc
        if given is None or given is False:
            raise self._log.failure(doing)
        return given


class _Bound:
    """What a context was told last."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}


def _shapes(layout: EngineLayout, *, context_tokens: int, num_slots: int) -> Shapes:
    """Raises `InputError` for more than the engine has, `EngineError` for what cannot be bound."""
    if num_slots > layout.batch:
        raise InputError(
            f"this engine was built for {layout.batch} conversations at once, "
            f"asked for {num_slots}",
            hint=f"build it again with `--batch {num_slots}`",
        )
    if context_tokens > layout.context_tokens:
        raise InputError(
            f"this engine was built for {layout.context_tokens} tokens of context, "
            f"asked for {context_tokens}",
            hint=f"build it again with `--context {context_tokens}`",
        )
    shapes = Shapes(
        num_layers=layout.num_layers,
        num_kv_heads=layout.num_kv_heads,
        head_dim=layout.head_dim,
        vocab_size=layout.vocab_size,
        capacity=layout.context_tokens,
        num_slots=num_slots,
        chunk_tokens=layout.chunk_tokens,
        max_logits=layout.max_logits,
        has_decode_profile=layout.has_decode_profile,
    )
    if num_slots > 1 and shapes.slot_bytes % ALIGNMENT:
        raise EngineError(
            f"{num_slots} conversations cannot lie side by side: one takes {shapes.slot_bytes} "
            f"bytes of a KV buffer, which is no multiple of {ALIGNMENT}",
            hint="build it again with a `--context` that is a multiple of 256",
        )
    return shapes


def _require_memory(device: CudaDevice, shapes: Shapes, *, weights_bytes: int) -> None:
    needed = weights_bytes + shapes.kv_bytes + shapes.logits_bytes
    free = device.free_bytes
    if needed > free:
        raise BudgetError(
            f"the engine needs {format_bytes(needed)} ({format_bytes(weights_bytes)} of weights, "
            f"{format_bytes(shapes.kv_bytes)} of KV cache, {format_bytes(shapes.logits_bytes)} of "
            f"logits), {device.name} has "
            f"{format_bytes(free)} free of {format_bytes(device.total_bytes)}",
            hint="close other programs that use the GPU, or build the engine again with a "
            "smaller `--context`, `--batch` or `--precision`",
        )


def _cache_name(device: CudaDevice, layout: EngineLayout) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-")
    return f"{name}-sm{device.sm}-{layout.version}.kernels"
