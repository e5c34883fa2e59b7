"""How an engine is opened and run, over a scripted TensorRT-RTX: order, arguments, failures.

That the real one has these names and types is checked in `test_rtx_bindings.py`; that the driver
understands what the device says, in `test_rtx_cuda.py`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgekit.backends.tensorrt_rtx import runtime
from edgekit.backends.tensorrt_rtx.kernel_cache import KernelCache
from edgekit.backends.tensorrt_rtx.layout import PLAN_FILE, EngineLayout
from edgekit.backends.tensorrt_rtx.log import vendor_log
from edgekit.backends.tensorrt_rtx.runtime import open_engine
from edgekit.backends.tensorrt_rtx.session import RtxSession
from edgekit.backends.tensorrt_rtx.twin import HostDevice
from edgekit.errors import (
    BackendError,
    BudgetError,
    EngineError,
    InputError,
    MissingBackendError,
    StaleEngineError,
)

LAYOUT = EngineLayout(
    version="1.7",
    capabilities=(86, 89),
    num_layers=2,
    num_kv_heads=2,
    head_dim=4,
    vocab_size=20,
    context_tokens=32,
    batch=3,
    chunk_tokens=8,
    max_logits=4,
    has_decode_profile=True,
)
STREAM = 85


class Card(HostDevice):
    """Host memory in the place of a GPU's."""

    name = "NVIDIA GeForce RTX 3070"
    sm = 86  # type: ignore[assignment]
    stream = STREAM

    def __init__(self, *, free_bytes: int = 10**9) -> None:
        super().__init__()
        self._free = free_bytes
        self.is_closed = False

    @property
    def free_bytes(self) -> int:
        return self._free

    @property
    def total_bytes(self) -> int:
        return 8 * 10**9

    @property
    def held(self) -> int:
        return len(self._blocks)

    def use(self) -> None:
        if self.is_closed:
            raise BackendError("closed")

    def close(self) -> None:
        self.is_closed = True


class FakeBindings:
    """The part of `tensorrt_rtx_bindings` that is used; every call is kept."""

    __version__ = "1.7"
    int32 = "int32"
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph")
    ExecutionContextAllocationStrategy = SimpleNamespace(ON_PROFILE_CHANGE="on profile change")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")

    class ILogger:
        pass

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fails: dict[str, Any] = {}
        """What a function answers instead, or the exception that it raises."""
        self.says = ""
        """An error told to the logger by a call that fails."""
        self.verdict, self.flags = "VALID", 0
        self.loaded = b""
        self.dtype = "int32"
        self.cached = b"kernels"
        self.logger: Any = None

    def named(self, *names: str) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] in names]

    def answer(self, name: str, given: Any, *arguments: Any) -> Any:
        self.calls.append((name, *arguments))
        if name not in self.fails:
            return given
        if self.says:
            self.logger.log(SimpleNamespace(name="ERROR"), self.says)
        failure = self.fails[name]
        if isinstance(failure, Exception):
            raise failure
        return failure

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        self.logger = logger
        return self.answer("Runtime", _Runtime(self))


class _Part:
    """An object of the library: what it is asked goes to the bindings that made it."""

    def __init__(self, trt: FakeBindings) -> None:
        self.trt = trt


class _Runtime(_Part):
    engine_header_size = 4

    def get_engine_validity(self, header: memoryview) -> Any:
        given = (SimpleNamespace(name=self.trt.verdict), self.trt.flags)
        return self.trt.answer("validity", given, bytes(header))

    def deserialize_cuda_engine(self, blob: memoryview) -> Any:
        self.trt.loaded = bytes(blob)
        return self.trt.answer("load", _Engine(self.trt))


class _Engine(_Part):
    num_io_tensors = 5 + 4 * 2 + 1
    num_optimization_profiles = 2

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert name == "past.0.key"
        return (-1, 2, 32, 4)

    def get_tensor_dtype(self, name: str) -> str:
        return self.trt.dtype

    def create_runtime_config(self) -> Any:
        return self.trt.answer("config", _Config(self.trt))

    def create_execution_context(self, config: Any) -> Any:
        known = [call[1] for call in self.trt.named("context")]
        given = _Context(self.trt, len(known))
        assert config.cuda_graph_strategy == "whole graph"
        assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
        assert config.allocation == "on profile change"
        return self.trt.answer("context", given, len(known))


class _Config(_Part):
    cuda_graph_strategy = ""
    dynamic_shapes_kernel_specialization_strategy = ""
    allocation = ""

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.allocation = strategy

    def create_runtime_cache(self) -> Any:
        return self.trt.answer("cache", _Cache(self.trt))

    def set_runtime_cache(self, cache: Any) -> Any:
        return self.trt.answer("set cache", True)


class _Cache(_Part):
    def deserialize(self, blob: bytes) -> Any:
        return self.trt.answer("read cache", True, blob)

    def serialize(self) -> Any:
        return self.trt.answer("write cache", self.trt.cached)


class _Context(_Part):
    def __init__(self, trt: FakeBindings, number: int) -> None:
        super().__init__(trt)
        self.number = number

    def set_optimization_profile_async(self, profile: int, stream: int) -> Any:
        return self.trt.answer("profile", True, self.number, profile, stream)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> Any:
        assert type(shape) is tuple
        return self.trt.answer("shape", True, self.number, name, shape)

    def set_tensor_address(self, name: str, address: int) -> Any:
        return self.trt.answer("address", True, self.number, name, address)

    def execute_async_v3(self, stream: int) -> Any:
        return self.trt.answer("execute", True, self.number, stream)


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBindings]:
    fake = FakeBindings()
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", fake)
    vendor_log.cache_clear()
    yield fake
    vendor_log.cache_clear()


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card()

    def open_again(capabilities: tuple[int, ...]) -> Card:
        card.is_closed = False
        return card

    monkeypatch.setattr(runtime, "open_device", open_again)
    return card


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    directory = tmp_path / "engine"
    directory.mkdir()
    LAYOUT.write(directory)
    (directory / PLAN_FILE).write_bytes(b"plan" * 100)
    return directory


Open = Callable[..., RtxSession]


@pytest.fixture
def opened(engine: Path, card: Card, trt: FakeBindings) -> Open:
    def go(
        *, context_tokens: int = 32, num_slots: int = 2, cache: Path | None = None
    ) -> RtxSession:
        return open_engine(engine, context_tokens=context_tokens, num_slots=num_slots, cache=cache)

    return go


def test_an_engine_is_checked_loaded_and_given_a_context_for_each_profile(
    opened: Open, trt: FakeBindings, card: Card
) -> None:
    session = opened()
    assert [call[0] for call in trt.calls] == [
        *("Runtime", "validity", "load", "config"),
        *("context", "profile", "context", "profile"),
    ]
    # the header alone is looked at, the whole is loaded
    assert trt.named("validity") == [("validity", b"plan")]
    assert trt.loaded == b"plan" * 100
    assert trt.named("profile") == [("profile", 0, 0, STREAM), ("profile", 1, 1, STREAM)]
    # one block of keys and values, inputs, logits
    assert card.held == 3
    session.close()
    assert card.held == 0
    assert card.is_closed


def test_a_pass_binds_every_tensor_of_the_graph(opened: Open, trt: FakeBindings) -> None:
    session = opened()
    trt.calls.clear()
    session.prefill(1, [1, 2, 3])
    shapes = {name: shape for _, _, name, shape in trt.named("shape")}
    names = [f"{i}.{kind}" for i in range(2) for kind in ("key", "value")]
    assert shapes == {
        "input_ids": (1, 4),
        "position_ids": (1, 4),
        "write_indices": (1,),
        "kv_lengths": (1,),
        "logits_index": (1,),
        **{f"past.{name}": (1, 2, 32, 4) for name in names},
    }
    addresses = {name: address for _, _, name, address in trt.named("address")}
    assert set(addresses) == {*shapes, "logits", *(f"present.{name}" for name in names)}
    for name in names:
        assert addresses[f"past.{name}"] == addresses[f"present.{name}"]
    assert trt.calls[-1] == ("execute", 0, STREAM)


def test_a_repeated_step_binds_nothing(opened: Open, trt: FakeBindings) -> None:
    session = opened()
    session.decode([0], [1])
    trt.calls.clear()
    session.decode([0], [2])
    assert trt.calls == [("execute", 1, STREAM)]


def test_a_prompt_of_another_length_binds_what_changes(opened: Open, trt: FakeBindings) -> None:
    session = opened()
    session.prefill(0, [1, 2])
    trt.calls.clear()
    session.prefill(0, [1, 2, 3])
    assert trt.named("shape") == [
        ("shape", 0, "input_ids", (1, 4)),
        ("shape", 0, "position_ids", (1, 4)),
    ]
    assert trt.named("address") == []


def test_another_slot_binds_other_addresses(opened: Open, trt: FakeBindings) -> None:
    session = opened()
    session.decode([0], [1])
    before = {name: at for _, _, name, at in trt.named("address")}
    trt.calls.clear()
    session.decode([1], [1])
    assert trt.named("shape") == []
    moved = {name: at - before[name] for _, _, name, at in trt.named("address")}
    # one slot: 2 heads x 32 tokens x 4 x 2 bytes
    assert len(moved) == 8
    assert set(moved.values()) == {512}


def test_a_pass_that_fails_says_what_the_library_said(opened: Open, trt: FakeBindings) -> None:
    session = opened()
    session.prefill(0, [1, 2])
    trt.fails["execute"] = False
    trt.says = "Error Code 1: Cuda Runtime (illegal\n memory access)"
    with pytest.raises(BackendError, match=r"a pass: Error Code 1: Cuda Runtime \(illegal memory"):
        session.decode([0], [1])
    assert session.length(0) == 2
    trt.fails.clear()
    trt.says = ""
    session.decode([0], [1])
    trt.fails["execute"] = False
    # what was said of an earlier failure is not said again
    with pytest.raises(BackendError, match="it does not say why"):
        session.decode([0], [1])


def test_after_a_shape_was_refused_it_is_told_again(opened: Open, trt: FakeBindings) -> None:
    session = opened()
    session.prefill(0, [1, 2])
    trt.fails["shape"] = False
    with pytest.raises(BackendError, match=r"failed at the shape \[1, 4\] of input_ids"):
        session.prefill(0, [1, 2, 3])
    trt.fails.clear()
    trt.calls.clear()
    # the shape before: nobody knows whether it still holds
    session.prefill(0, [1, 2])
    assert ("shape", 0, "input_ids", (1, 2)) in trt.calls


@pytest.mark.parametrize("step", ["Runtime", "load", "config", "context", "profile"])
@pytest.mark.parametrize("failure", [None, RuntimeError("vendor words")], ids=["none", "raises"])
def test_what_fails_on_the_way_leaves_nothing(
    step: str, failure: Any, opened: Open, trt: FakeBindings, card: Card
) -> None:
    trt.fails[step] = failure
    with pytest.raises(BackendError, match="TensorRT-RTX failed at"):
        opened()
    assert card.is_closed
    assert card.held == 0


@pytest.mark.parametrize(
    "said",
    [
        "Error Code 2: OutOfMemory (Requested size was 123 bytes.)",
        "Cuda Runtime (cudaError 2: out of memory)",
    ],
)
def test_too_little_memory_while_loading_is_a_matter_of_budget(
    said: str, opened: Open, trt: FakeBindings, card: Card
) -> None:
    trt.fails["context"] = None
    trt.says = said
    with pytest.raises(BudgetError, match="not enough memory for preparing profile 0") as caught:
        opened()
    assert caught.value.hint is not None
    assert card.is_closed


def test_memory_is_counted_before_anything_is_loaded(
    engine: Path, trt: FakeBindings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 400 bytes of plan, 2 x 2 layers x 2 slots x 512 bytes = 4 KiB of KV cache, and 4 rows of 20
    # fp32 logits: 4816 bytes
    for free_bytes in (4815, 4816):
        card = Card(free_bytes=free_bytes)
        monkeypatch.setattr(runtime, "open_device", lambda capabilities, card=card: card)
        if free_bytes == 4816:
            open_engine(engine, context_tokens=8, num_slots=2, cache=None).close()
            continue
        expected = r"needs 4\.70 KiB \(400 B of weights, 4\.00 KiB of KV cache, 320 B of logits\)"
        with pytest.raises(BudgetError, match=expected) as caught:
            open_engine(engine, context_tokens=8, num_slots=2, cache=None)
        assert "4.70 KiB free of 7.45 GiB" in str(caught.value)
        assert caught.value.hint is not None
        assert trt.calls == []
        assert card.is_closed


def test_the_gpu_is_chosen_by_what_the_engine_holds(
    engine: Path, trt: FakeBindings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []

    def refuse(capabilities: tuple[int, ...]) -> Card:
        asked.append(capabilities)
        raise MissingBackendError("there is no NVIDIA driver here")

    monkeypatch.setattr(runtime, "open_device", refuse)
    with pytest.raises(MissingBackendError):
        open_engine(engine, context_tokens=8, num_slots=1, cache=None)
    assert asked == [(86, 89)]


def test_more_conversations_than_the_engine_has_are_refused(
    opened: Open, trt: FakeBindings
) -> None:
    with pytest.raises(
        InputError, match="built for 3 conversations at once, asked for 4"
    ) as caught:
        opened(num_slots=4)
    assert caught.value.hint is not None
    assert "`--batch 4`" in caught.value.hint
    assert trt.calls == []


def test_more_context_than_the_engine_has_is_refused(opened: Open) -> None:
    with pytest.raises(InputError, match="built for 32 tokens of context, asked for 33") as caught:
        opened(context_tokens=33)
    assert caught.value.hint is not None
    assert "`--context 33`" in caught.value.hint


def test_less_context_is_a_promise_to_the_caller_not_to_the_engine(
    opened: Open, trt: FakeBindings
) -> None:
    session = opened(context_tokens=5)
    with pytest.raises(InputError, match=r"0 \+ 6 tokens do not fit a context of 5"):
        session.prefill(0, [1] * 6)
    session.prefill(0, [1] * 5)
    assert ("shape", 0, "past.0.key", (1, 2, 32, 4)) in trt.calls


def test_another_version_is_stale(opened: Open, trt: FakeBindings) -> None:
    trt.__version__ = "1.8"
    with pytest.raises(StaleEngineError, match=r"TensorRT-RTX 1\.7 .* here is 1\.8"):
        opened()


def test_an_engine_that_is_not_valid_is_not_loaded(
    opened: Open, trt: FakeBindings, card: Card
) -> None:
    trt.verdict, trt.flags = "INVALID", 2
    with pytest.raises(StaleEngineError, match="compute capability"):
        opened()
    assert trt.named("load") == []
    assert card.is_closed


def test_a_plan_that_belongs_to_another_engine_is_refused(
    opened: Open, engine: Path, card: Card
) -> None:
    replace(LAYOUT, head_dim=8).write(engine)
    with pytest.raises(EngineError, match=r"slot is \[2, 32, 4\], expected \[2, 32, 8\]"):
        opened()
    replace(LAYOUT, num_layers=3).write(engine)
    with pytest.raises(EngineError, match="14 tensors"):
        opened()


def test_a_plan_with_wide_integers_is_refused(opened: Open, trt: FakeBindings) -> None:
    trt.dtype = "int64"
    with pytest.raises(EngineError, match="do not belong together"):
        opened()


def test_an_engine_without_its_plan_is_damaged(opened: Open, engine: Path) -> None:
    (engine / PLAN_FILE).write_bytes(b"")
    with pytest.raises(EngineError, match=r"unreadable .*engine\.plan"):
        opened()
    (engine / PLAN_FILE).unlink()
    with pytest.raises(EngineError, match="missing"):
        opened()


def test_slots_that_cannot_be_aligned_are_refused(opened: Open, engine: Path) -> None:
    # 2 heads x 31 tokens x 4 x 2 bytes = 496
    replace(LAYOUT, context_tokens=31).write(engine)
    with pytest.raises(EngineError, match="takes 496 bytes"):
        opened(context_tokens=31)


CACHE_NAME = "nvidia-geforce-rtx-3070-sm86-1.7.kernels"


def test_kernels_are_kept_for_the_next_time(
    opened: Open, trt: FakeBindings, tmp_path: Path
) -> None:
    cache = tmp_path / "kernels"
    session = opened(cache=cache)
    assert trt.named("read cache") == []
    # the cache is set before any context is made
    names = [call[0] for call in trt.calls]
    assert names.index("set cache") < names.index("context")
    session.prefill(0, [1, 2])
    session.close()
    assert (cache / CACHE_NAME).read_bytes() == b"kernels"
    assert [path.name for path in cache.iterdir()] == [CACHE_NAME]
    opened(cache=cache).close()
    assert trt.named("read cache") == [("read cache", b"kernels")]


def test_kernels_are_kept_some_steps_after_the_last_new_shape(
    opened: Open, trt: FakeBindings, tmp_path: Path
) -> None:
    session = opened(cache=tmp_path)
    session.prefill(0, [1, 2])
    for _ in range(8):
        session.decode([0], [1])
    assert trt.named("write cache") == []  # the first step was new, seven came after it
    session.decode([0], [1])
    assert (tmp_path / CACHE_NAME).exists()
    for _ in range(12):
        session.decode([0], [1])
    session.close()
    assert len(trt.named("write cache")) == 1  # nothing was compiled since


def test_a_session_that_computed_nothing_writes_no_kernels(opened: Open, tmp_path: Path) -> None:
    opened(cache=tmp_path / "kernels").close()
    assert not (tmp_path / "kernels").exists()


@pytest.mark.parametrize("failure", [False, RuntimeError("damaged")], ids=["foreign", "damaged"])
def test_kernels_that_do_not_fit_are_ignored(
    failure: Any, opened: Open, trt: FakeBindings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / CACHE_NAME).write_bytes(b"old")
    trt.fails["read cache"] = failure
    caplog.set_level(logging.INFO)
    session = opened(cache=tmp_path)
    assert "compiled kernels in" in caplog.text
    session.prefill(0, [1])
    session.close()
    assert (tmp_path / CACHE_NAME).read_bytes() == b"kernels"


def test_kernels_that_cannot_be_read_or_written_stop_nobody(
    opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / CACHE_NAME).mkdir()  # neither a file to read nor a place for one
    session = opened(cache=tmp_path)
    assert "cannot be read" in caplog.text
    session.prefill(0, [1])
    session.close()
    assert "cannot be kept" in caplog.text
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_cache_that_cannot_be_serialized_leaves_the_old_file(
    tmp_path: Path, trt: FakeBindings
) -> None:
    path = tmp_path / "old"
    path.write_bytes(b"old")
    trt.fails["write cache"] = None
    cache = KernelCache(_Cache(trt), path)
    cache.ran("a shape")
    cache.save()
    assert path.read_bytes() == b"old"


def test_integers_are_those_of_the_engine(opened: Open) -> None:
    session = opened()
    assert session._executor.integers == np.int32
    session.close()
