"""The session of TensorRT-RTX: what it binds and sends, and its numbers on the processor."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.backends.tensorrt_rtx.device import ALIGNMENT, Call, Tensor
from edgekit.backends.tensorrt_rtx.session import RtxSession, Shapes
from edgekit.backends.tensorrt_rtx.twin import HostDevice, OrtExecutor, open_twin
from edgekit.errors import BackendError, BudgetError, EngineError, InputError

MakePath = Callable[..., Path]
Logits = Callable[[Path, Sequence[int]], NDArray[np.float32]]

VOCAB, CAPACITY = 20, 32
# two layers of two heads of 4: one slot of one buffer is 2 x 32 x 4 fp16 numbers = 512 bytes
SLOT_BYTES = 512


def shapes(**changes: Any) -> Shapes:
    fields: dict[str, Any] = {
        "num_layers": 2,
        "num_kv_heads": 2,
        "head_dim": 4,
        "vocab_size": VOCAB,
        "capacity": CAPACITY,
        "num_slots": 3,
        "chunk_tokens": 8,
        "max_logits": 4,
        "has_decode_profile": True,
    }
    return Shapes(**{**fields, **changes})


class CountingDevice(HostDevice):
    """Host memory that counts what is given and taken, and can run out."""

    def __init__(self, *, budget: int = 10**9) -> None:
        super().__init__()
        self.budget = budget
        self.events: list[str] = []

    @property
    def held(self) -> int:
        return len(self._blocks)

    def allocate(self, num_bytes: int) -> int:
        self.budget -= num_bytes
        if self.budget < 0:
            raise BudgetError("the scripted device is full")
        return super().allocate(num_bytes)

    def free(self, address: int) -> None:
        assert address in self._blocks, "freed twice, or never allocated"
        self.events.append("free")
        super().free(address)

    def copy_in(self, array: NDArray[Any], address: int) -> None:
        self.events.append("copy_in")
        super().copy_in(array, address)

    def copy_out(self, address: int, array: NDArray[Any]) -> None:
        self.events.append(f"copy_out {array.nbytes}")
        super().copy_out(address, array)

    def synchronize(self) -> None:
        self.events.append("synchronize")

    def close(self) -> None:
        self.events.append("close device")


def read(tensor: Tensor) -> NDArray[Any]:
    """What lies at the address of a tensor."""
    size = int(np.prod(tensor.shape)) * tensor.dtype.itemsize
    raw = (ctypes.c_uint8 * size).from_address(tensor.address)
    return np.frombuffer(bytes(raw), tensor.dtype).reshape(tensor.shape)


class ScriptedExecutor:
    """Remembers every call with the numbers that lay in its inputs, and writes known logits.

    Logits row of a wanted position: its token id in column 0, its position in column 1.
    """

    integers = np.dtype(np.int32)

    def __init__(self, device: CountingDevice) -> None:
        self._device = device
        self.calls: list[Call] = []
        self.read: list[dict[str, NDArray[Any]]] = []
        self.fail = False

    def run(self, call: Call) -> None:
        self._device.events.append("run")
        if self.fail:
            raise BackendError("made to fail")
        given = {n: read(t) for n, t in call.inputs.items() if not n.startswith("past.")}
        self.calls.append(call)
        self.read.append(given)
        out = call.outputs["logits"]
        logits = np.full(out.shape, -1, np.float32)
        index = given["logits_index"]
        logits[..., 0] = given["input_ids"][:, index]
        logits[..., 1] = given["position_ids"][:, index]
        ctypes.memmove(out.address, logits.ctypes.data, logits.nbytes)

    def close(self) -> None:
        self._device.events.append("close executor")


def scripted(**changes: Any) -> tuple[RtxSession, CountingDevice, ScriptedExecutor]:
    device = CountingDevice()
    executor = ScriptedExecutor(device)
    session = RtxSession(device, executor, shapes(**changes), context_tokens=CAPACITY - 2)
    return session, device, executor


def test_every_input_is_sent_as_the_graph_wants_it() -> None:
    session, _, executor = scripted()
    session.prefill(1, [5, 6, 7])
    rows = session.prefill(1, [8, 9, 10], num_logits=2)
    given = executor.read[-1]
    # three tokens after three, made four long; the fourth is nobody's
    assert given["input_ids"].tolist() == [[8, 9, 10, 0]]
    assert given["position_ids"].tolist() == [[3, 4, 5, 6]]
    assert given["write_indices"].tolist() == [3]
    assert given["kv_lengths"].tolist() == [7]
    assert given["logits_index"].tolist() == [1, 2]
    assert {array.dtype for array in given.values()} == {np.dtype(np.int32)}
    assert rows[:, :2].tolist() == [[9, 4], [10, 5]]
    assert session.length(1) == 6


@pytest.mark.parametrize(
    ("tokens", "wanted", "padded", "index"),
    [
        (1, 1, 1, [0]),
        (2, 1, 2, [1]),
        (3, 3, 4, [0, 1, 2, 2]),  # three rows are four, the last one twice
        (5, 2, 8, [3, 4]),
        (8, 4, 8, [4, 5, 6, 7]),
    ],
)
def test_shapes_are_powers_of_two(tokens: int, wanted: int, padded: int, index: list[int]) -> None:
    session, device, executor = scripted()
    rows = session.prefill(0, [3] * tokens, num_logits=wanted)
    assert executor.calls[-1].inputs["input_ids"].shape == (1, padded)
    assert executor.read[-1]["logits_index"].tolist() == index
    assert rows.shape == (wanted, VOCAB)
    assert rows[:, 1].tolist() == list(range(tokens - wanted, tokens))
    # only what is wanted is fetched: rows of 20 fp32 numbers
    assert f"copy_out {wanted * VOCAB * 4}" in device.events


def test_a_limit_that_is_no_power_of_two_is_kept() -> None:
    session, _, executor = scripted(chunk_tokens=6, max_logits=3)
    session.prefill(0, [3] * 5, num_logits=3)
    assert executor.calls[-1].inputs["input_ids"].shape == (1, 6)
    assert executor.calls[-1].inputs["logits_index"].shape == (3,)


def test_rows_too_many_never_go_beyond_the_buffer() -> None:
    session, _, executor = scripted(chunk_tokens=32)
    session.prefill(0, [1] * 25)
    session.prefill(0, [1] * 5)  # 25 + 8 would be 33 of 32
    assert executor.read[-1]["position_ids"].tolist() == [[25, 26, 27, 28, 29, 30, 31]]
    assert executor.read[-1]["kv_lengths"].tolist() == [CAPACITY]


def test_past_and_present_are_one_buffer_and_slots_are_views_of_it() -> None:
    session, _, executor = scripted()
    session.prefill(0, [1, 2])
    session.decode([1, 2], [3, 4])
    first, second = executor.calls
    for name in ("0.key", "0.value", "1.key", "1.value"):
        for call in (first, second):
            assert call.inputs[f"past.{name}"] == call.outputs[f"present.{name}"]
        begin, view = first.inputs[f"past.{name}"], second.inputs[f"past.{name}"]
        assert begin.shape == (1, 2, CAPACITY, 4)
        assert view.shape == (2, 2, CAPACITY, 4)
        assert view.dtype == np.float16
        assert view.address == begin.address + SLOT_BYTES
    addresses = {first.inputs[f"past.{n}"].address for n in ("0.key", "0.value", "1.key")}
    assert len(addresses) == 3


def test_every_address_is_aligned() -> None:
    session, _, executor = scripted()
    session.decode([1, 2], [3, 4])
    for tensor in (*executor.calls[0].inputs.values(), *executor.calls[0].outputs.values()):
        assert tensor.address % ALIGNMENT == 0


def test_inputs_do_not_overlap_at_their_largest() -> None:
    session, _, executor = scripted()
    session.prefill(0, [9] * 8, num_logits=4)
    integers = [t for n, t in executor.calls[0].inputs.items() if not n.startswith("past.")]
    spans = sorted((t.address, t.address + int(np.prod(t.shape)) * 4) for t in integers)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))


def test_a_repeated_step_is_the_same_call_with_other_numbers() -> None:
    session, _, executor = scripted()
    session.prefill(0, [1, 2])
    for token in (3, 4, 5):
        session.decode([0], [token])
    steps, given = executor.calls[1:], executor.read[1:]
    assert steps[0] is steps[1] is steps[2]
    assert [g["input_ids"].item() for g in given] == [3, 4, 5]
    assert [g["write_indices"].item() for g in given] == [2, 3, 4]


def test_inputs_lie_where_they_lay_whatever_the_pass() -> None:
    session, _, executor = scripted()
    session.prefill(0, [1] * 7, num_logits=3)
    session.decode([0], [1])
    session.decode([1, 2], [1, 1])
    for name in ("input_ids", "position_ids", "write_indices", "kv_lengths", "logits_index"):
        assert len({call.inputs[name].address for call in executor.calls}) == 1
    assert len({call.outputs["logits"].address for call in executor.calls}) == 1


@pytest.mark.parametrize(("has_decode_profile", "expected"), [(True, [0, 1, 1]), (False, [0] * 3)])
def test_one_token_a_slot_has_a_profile_of_its_own(
    has_decode_profile: bool, expected: list[int]
) -> None:
    session, _, executor = scripted(has_decode_profile=has_decode_profile)
    session.prefill(0, [1, 2])
    session.prefill(0, [3])
    session.decode([1, 2], [3, 4])
    assert [call.profile for call in executor.calls] == expected


def test_the_numbers_are_sent_before_the_pass_and_fetched_after_it() -> None:
    session, device, _ = scripted()
    device.events.clear()
    session.decode([0], [1])
    assert device.events == ["copy_in", "run", f"copy_out {VOCAB * 4}", "synchronize"]


def test_a_piece_whose_logits_nobody_wants_fetches_none() -> None:
    session, device, _ = scripted()
    device.events.clear()
    session.prefill(0, [1] * 9)
    assert device.events == [
        *("copy_in", "run", "synchronize"),
        *("copy_in", "run", f"copy_out {VOCAB * 4}", "synchronize"),
    ]


def test_logits_of_several_slots_are_those_of_each() -> None:
    session, _, _ = scripted()
    session.prefill(1, [1, 2])
    rows = session.decode([2, 1, 0], [7, 8, 9])
    assert rows[:, :2].tolist() == [[7, 0], [8, 2], [9, 0]]


def test_a_context_smaller_than_the_buffer_s_is_kept() -> None:
    session, _, _ = scripted()
    session.prefill(0, [1] * (CAPACITY - 2))
    with pytest.raises(InputError, match=r"30 \+ 1 tokens do not fit a context of 30"):
        session.decode([0], [1])


def test_a_failed_pass_leaves_slots_as_they_were_and_the_session_goes_on() -> None:
    session, _, executor = scripted()
    session.prefill(0, [1, 2, 3])
    executor.fail = True
    with pytest.raises(BackendError, match="made to fail"):
        session.prefill(0, [4])
    with pytest.raises(BackendError, match="made to fail"):
        session.decode([0, 1], [4, 4])
    assert [session.length(slot) for slot in range(3)] == [3, 0, 0]
    executor.fail = False
    session.decode([0], [9])
    assert executor.read[-1]["write_indices"].tolist() == [3]


def test_closing_gives_everything_back_once() -> None:
    session, device, _ = scripted()
    # one block of keys and values, inputs, logits
    assert device.held == 3
    device.events.clear()
    session.close()
    session.close()
    assert device.held == 0
    assert device.events == ["close executor", *["free"] * 3, "close device"]
    with pytest.raises(BackendError, match="closed"):
        session.decode([0], [1])


def test_a_session_that_cannot_be_made_holds_nothing() -> None:
    # 4 KV buffers of 3 x 512 bytes; 5 inputs of 256 bytes at least; logits of 4 x 20 fp32 numbers
    whole = 4 * 3 * SLOT_BYTES + 5 * ALIGNMENT + 4 * VOCAB * 4
    for budget in range(0, whole, SLOT_BYTES):
        device = CountingDevice(budget=budget)
        executor = ScriptedExecutor(device)
        with pytest.raises(BudgetError):
            RtxSession(device, executor, shapes(), context_tokens=8)
        assert device.held == 0
        assert device.events[-1] == "close device"
        assert device.events.count("close executor") == 1
    device = CountingDevice(budget=whole)
    RtxSession(device, ScriptedExecutor(device), shapes(), context_tokens=8).close()


def test_a_cache_that_cannot_be_had_says_how_much_and_what_to_do() -> None:
    device = CountingDevice(budget=2000)
    with pytest.raises(BudgetError, match=r"KV cache of 3 x 32 tokens needs 6\.00 KiB") as caught:
        # 4 buffers x 3 slots x 512 bytes = 6 KiB
        RtxSession(device, ScriptedExecutor(device), shapes(), context_tokens=8)
    assert caught.value.hint is not None
    assert "--context" in caught.value.hint


# the twin: the same session, with real numbers


def ids(count: int, seed: int = 3) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, 384, count)]


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def checkpoint(request: pytest.FixtureRequest, make_tiny: MakePath) -> Path:
    return make_tiny(request.param)


@pytest.fixture
def twin(checkpoint: Path, export_standard: MakePath) -> Iterator[RtxSession]:
    session = open_twin(
        export_standard(checkpoint), context_tokens=64, num_slots=3, threads=1, chunk_tokens=16
    )
    yield session
    session.close()


# activations round at 2^-11 = 5e-4, some thirty times on the way: a percent of their spread
TOLERANCE = 2e-2


def test_logits_of_the_twin_are_those_of_transformers(
    twin: RtxSession, checkpoint: Path, hf_logits: Logits
) -> None:
    expected = hf_logits(checkpoint, ids(64))
    # pieces of 16, 16 and 5, the last one made 8 long; then steps to the very end of the buffer
    prompt = twin.prefill(1, ids(64)[:37], num_logits=37).copy()
    steps = [twin.decode([1], [token])[0].copy() for token in ids(64)[37:]]
    error = np.abs(np.concatenate([prompt, steps]) - expected).max()
    assert error <= TOLERANCE * expected.std()


def test_what_was_cut_off_or_padded_is_never_seen_again(
    twin: RtxSession, checkpoint: Path, hf_logits: Logits
) -> None:
    expected = hf_logits(checkpoint, ids(40))
    twin.prefill(0, [*ids(40)[:9], *ids(50, seed=4)])  # other tokens in rows 9 to 58
    twin.truncate(0, 9)
    twin.prefill(0, ids(40)[9:20])  # 11 tokens made 16 long
    rows = twin.prefill(0, ids(40)[20:], num_logits=20)
    assert np.abs(rows - expected[20:]).max() <= TOLERANCE * expected.std()


def test_slots_of_different_lengths_step_together(
    twin: RtxSession, checkpoint: Path, hf_logits: Logits
) -> None:
    prompts = [ids(5, seed=5), ids(19, seed=6), ids(1, seed=7)]
    for slot, prompt in enumerate(prompts):
        twin.prefill(slot, prompt)
    rows = twin.decode([2, 0, 1], [30, 10, 20])
    for row, slot, token in zip(rows, (2, 0, 1), (30, 10, 20), strict=True):
        expected = hf_logits(checkpoint, [*prompts[slot], token])
        assert np.abs(row - expected[-1]).max() <= TOLERANCE * expected.std()


class FailingExecutor(OrtExecutor):
    """Runs the graph, and fails after it has written."""

    fail = False

    def run(self, call: Call) -> None:
        super().run(call)
        if self.fail:
            raise BackendError("made to fail")


def test_a_pass_that_failed_after_writing_is_as_if_it_had_not_been(
    make_tiny: MakePath, export_standard: MakePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.backends.tensorrt_rtx.twin.OrtExecutor", FailingExecutor)
    graph = export_standard(make_tiny("qwen2"))
    session = open_twin(graph, context_tokens=64, num_slots=1, threads=1)
    session.prefill(0, ids(10))
    expected = session.decode([0], [7])[0].copy()
    session.truncate(0, 10)
    monkeypatch.setattr(FailingExecutor, "fail", True)
    with pytest.raises(BackendError, match="made to fail"):
        session.prefill(0, ids(20, seed=9))
    assert session.length(0) == 10
    monkeypatch.setattr(FailingExecutor, "fail", False)
    assert np.array_equal(session.decode([0], [7])[0], expected)
    session.close()


def test_the_twin_writes_its_cache_in_place(make_tiny: MakePath, export_standard: MakePath) -> None:
    session = open_twin(
        export_standard(make_tiny("qwen2")), context_tokens=64, num_slots=2, threads=1
    )
    call = session._call(1, 1, 4, 1)
    past = call.inputs["past.1.value"]
    assert not read(past).any()
    session.prefill(1, ids(4))
    found = read(past)
    assert found[0, :, :4].any(axis=-1).all()
    assert not found[0, :, 4:].any()
    session.close()


def test_the_context_of_a_twin_is_free_up_to_its_graph_s(
    make_tiny: MakePath, export_standard: MakePath
) -> None:
    graph = export_standard(make_tiny("qwen2"))
    for context_tokens in (1, 7, 64):
        session = open_twin(graph, context_tokens=context_tokens, num_slots=1, threads=1)
        session.prefill(0, ids(context_tokens))
        session.close()
    with pytest.raises(InputError, match="built for 64 tokens of context, asked for 65") as caught:
        open_twin(graph, context_tokens=65, num_slots=1, threads=1)
    assert caught.value.hint is not None


def test_a_twin_that_is_not_there_or_not_ours_says_so(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="missing"):
        open_twin(tmp_path, context_tokens=8, num_slots=1, threads=1)
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match="cannot load"):
        open_twin(tmp_path, context_tokens=8, num_slots=1, threads=1)


def test_a_twin_without_room_is_a_matter_of_budget(
    make_tiny: MakePath, export_standard: MakePath
) -> None:
    with pytest.raises(BudgetError, match=r"needs 512\.00 TiB|needs 524288\.00 GiB"):
        # 4 buffers x 2 heads x 64 tokens x 16 x 2 bytes = 16 KiB a slot, 2^35 slots: 2^49 bytes
        open_twin(
            export_standard(make_tiny("qwen2")), context_tokens=64, num_slots=1 << 35, threads=1
        )
