"""The promises of `backends.base`, kept by every backend and every way of opening an engine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.backends import Session, find_backend, list_backends
from edgekit.backends.base import BackendInfo, Wanted
from edgekit.backends.onnxruntime.providers import PROVIDERS, Provider
from edgekit.backends.onnxruntime.session import open_on
from edgekit.backends.tensorrt_rtx.twin import open_twin
from edgekit.errors import BackendError, EngineError, InputError, MissingBackendError
from edgekit.precision import PRECISIONS
from edgekit.progress import no_progress
from tests.providers import FP16_ON_CPU

NAMES = [info.name for info in list_backends()]
CONTEXT, SLOTS = 48, 4
WANTED = Wanted(precision="fp16", context_tokens=16, batch=1)
VOCAB = 384


@pytest.mark.parametrize("info", list_backends(), ids=lambda info: info.name)
def test_what_a_backend_can_do_is_known_without_its_packages(info: BackendInfo) -> None:
    assert info.summary
    assert info.precisions
    assert info.precisions <= set(PRECISIONS)
    assert info.requires
    assert info.consumes in get_args(get_type_hints(BackendInfo)["consumes"])


def test_names_are_unique() -> None:
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("info", list_backends(), ids=lambda info: info.name)
def test_a_missing_package_is_named_with_what_installs_it(
    info: BackendInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in info.requires:
        monkeypatch.setitem(sys.modules, package, None)  # how Python marks "not importable"
    with pytest.raises(MissingBackendError, match=info.requires[0]) as caught:
        find_backend(info.name)
    assert caught.value.hint


def test_an_unknown_backend_is_bad_input() -> None:
    with pytest.raises(InputError, match="unknown backend: teapot") as caught:
        find_backend("teapot")
    assert caught.value.hint is not None
    assert NAMES[0] in caught.value.hint


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """One way to open the tiny engine, and how closely its logits repeat."""

    name: str
    provider: Provider | None
    """`None`: as the backend chooses."""
    tolerance: float
    """In units of the standard deviation of the logits."""
    is_standard: bool = False
    """It takes the graph in standard operators."""

    def __call__(
        self, graph: Path, *, context_tokens: int = CONTEXT, num_slots: int = SLOTS
    ) -> Session:
        if self.is_standard:
            return open_twin(graph, context_tokens=context_tokens, num_slots=num_slots, threads=1)
        if self.provider is None:
            return find_backend(self.name).open(
                graph, context_tokens=context_tokens, num_slots=num_slots, threads=1
            )
        return open_on(
            self.provider, graph, context_tokens=context_tokens, num_slots=num_slots, threads=1
        )


def fp16_on_cpu(*, captures_decode: bool) -> Provider:
    return replace(FP16_ON_CPU, captures_decode=captures_decode)


# fp32: other shapes sum in another order, 2^-24 a step over a few hundred steps. fp16 activations
# round at 2^-11, after each of some thirty operators.
FP32, FP16 = 1e-5, 1e-2
OPENINGS = [
    pytest.param(Opening(name="onnxruntime", provider=None, tolerance=FP32), id="onnxruntime"),
    pytest.param(
        Opening(name="fp16", provider=fp16_on_cpu(captures_decode=False), tolerance=FP16),
        id="cuda's graph, on the CPU",
    ),
    # what a recorded step needs, without the recording: device buffers, a constant total length
    pytest.param(
        Opening(name="staged", provider=fp16_on_cpu(captures_decode=True), tolerance=FP16),
        id="cuda's graph and decode buffers, on the CPU",
    ),
    pytest.param(
        Opening(name="twin", provider=None, tolerance=FP16, is_standard=True),
        id="TensorRT-RTX's session, on the CPU",
    ),
    pytest.param(
        Opening(name="cuda", provider=PROVIDERS[0], tolerance=FP16),
        id="CUDA",
        marks=pytest.mark.gpu,
    ),
]


@pytest.fixture(scope="module", params=OPENINGS)
def opening(request: pytest.FixtureRequest) -> Opening:
    found: Opening = request.param
    return found


@pytest.fixture(scope="module")
def graph(make_tiny: Callable[..., Path], export_graph: Callable[..., Path]) -> Path:
    return export_graph(make_tiny("qwen2"), context_tokens=64)


@pytest.fixture(scope="module")
def source(
    opening: Opening,
    graph: Path,
    make_tiny: Callable[..., Path],
    export_standard: Callable[..., Path],
) -> Path:
    """What `opening` opens."""
    if opening.is_standard:
        return export_standard(make_tiny("qwen2"), context_tokens=64)
    return graph


@pytest.fixture(scope="module")
def shared(opening: Opening, source: Path) -> Iterator[Session]:
    session = opening(source)
    yield session
    session.close()


@pytest.fixture
def session(shared: Session) -> Session:
    """One session for all tests of a kind; each begins with empty slots."""
    for slot in range(SLOTS):
        shared.truncate(slot, 0)
    return shared


@pytest.fixture
def same(opening: Opening) -> Callable[[NDArray[np.float32], NDArray[np.float32]], bool]:
    def close(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
        assert a.shape == b.shape
        return bool(np.abs(a - b).max() <= opening.tolerance * b.std())

    return close


Same = Callable[[NDArray[np.float32], NDArray[np.float32]], bool]


def ids(count: int, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, VOCAB, count)]


def test_a_session_says_its_sizes(session: Session) -> None:
    assert (session.num_slots, session.context_tokens) == (SLOTS, CONTEXT)
    assert session.vocab_size == VOCAB
    assert [session.length(slot) for slot in range(SLOTS)] == [0] * SLOTS


@pytest.mark.parametrize("num_logits", [1, 3, 9])
def test_prefill_gives_the_rows_asked_for(session: Session, same: Same, num_logits: int) -> None:
    whole = session.prefill(0, ids(9), num_logits=9).copy()
    rows = session.prefill(1, ids(9), num_logits=num_logits)
    assert rows.shape == (num_logits, VOCAB)
    assert rows.dtype == np.float32
    assert same(rows, whole[-num_logits:])
    assert session.length(1) == 9


def test_prefill_in_pieces_is_prefill_at_once(session: Session, same: Same) -> None:
    whole = session.prefill(0, ids(20), num_logits=20).copy()
    # pieces of 7, 1 and 12: an empty slot, a single token, a slot that holds some
    parts = [
        session.prefill(1, piece, num_logits=len(piece)).copy()
        for piece in (ids(20)[:7], ids(20)[7:8], ids(20)[8:])
    ]
    assert same(np.concatenate(parts), whole)


def test_decode_is_prefill_of_one_token(session: Session, same: Same) -> None:
    whole = session.prefill(0, ids(12), num_logits=12).copy()
    session.prefill(1, ids(12)[:4])
    for position, token in enumerate(ids(12)[4:], start=4):
        row = session.decode([1], [token])
        assert row.shape == (1, VOCAB)
        assert same(row[0], whole[position])
        assert session.length(1) == position + 1


def test_a_slot_can_begin_with_decode(session: Session, same: Same) -> None:
    whole = session.prefill(0, ids(6), num_logits=6).copy()
    rows = [session.decode([2], [token])[0].copy() for token in ids(6)]
    assert same(np.stack(rows), whole)


def test_a_truncated_slot_continues_as_if_it_had_never_gone_on(
    session: Session, same: Same
) -> None:
    session.prefill(0, ids(16))
    session.truncate(0, 5)
    again = session.prefill(0, ids(6, seed=1), num_logits=6).copy()
    session.prefill(1, ids(16)[:5])
    fresh = session.prefill(1, ids(6, seed=1), num_logits=6)
    assert same(again, fresh)


def test_an_emptied_slot_is_as_new(session: Session, same: Same) -> None:
    session.prefill(0, ids(30))
    session.truncate(0, 0)
    again = session.prefill(0, ids(8, seed=2)).copy()
    assert same(again, session.prefill(1, ids(8, seed=2)))


@pytest.mark.parametrize("length", [-1, 4])
def test_a_slot_cannot_be_truncated_to_what_it_does_not_hold(session: Session, length: int) -> None:
    session.prefill(0, ids(3))
    with pytest.raises(ValueError, match="holds 3 tokens"):
        session.truncate(0, length)
    assert session.length(0) == 3


@pytest.mark.parametrize(
    "slots",
    [[0, 1], [1, 0], [0, 1, 2, 3], [0, 2], [3, 0], [2, 0, 3], [3, 1, 2], [1, 3]],
    ids=str,
)
def test_decode_over_several_slots_is_decode_of_each(
    session: Session, same: Same, slots: list[int]
) -> None:
    alone = []
    for slot in slots:
        session.prefill(slot, ids(3 + 2 * slot, seed=slot))
        alone.append(session.decode([slot], [10 + slot])[0].copy())
        session.truncate(slot, 3 + 2 * slot)
    together = session.decode(slots, [10 + slot for slot in slots])
    assert together.shape == (len(slots), VOCAB)
    assert same(together, np.stack(alone))
    assert [session.length(slot) for slot in slots] == [4 + 2 * slot for slot in slots]


def test_slots_do_not_see_each_other(session: Session, same: Same) -> None:
    first = session.prefill(0, ids(10)).copy()
    session.prefill(1, ids(CONTEXT, seed=5))
    session.truncate(0, 9)
    assert same(session.prefill(0, ids(10)[9:]), first)


def test_a_slot_between_others_that_step_keeps_what_it_holds(session: Session, same: Same) -> None:
    session.prefill(1, ids(10)[:9])
    for slot in (0, 2):
        session.prefill(slot, ids(4))
    for token in ids(5):
        session.decode([0, 2], [token, token])
    last = session.prefill(1, ids(10)[9:]).copy()
    assert same(last, session.prefill(3, ids(10)))


def test_any_order_of_calls_gives_what_a_fresh_slot_gives(session: Session, same: Same) -> None:
    rng = np.random.default_rng(7)
    held: list[list[int]] = [[] for _ in range(3)]
    for _ in range(40):
        slot = int(rng.integers(3))
        kind = rng.choice(["prefill", "decode", "truncate"])
        new = ids(int(rng.integers(1, 6)) if kind == "prefill" else 1, int(rng.integers(1_000_000)))
        if kind == "truncate" or len(held[slot]) + len(new) > CONTEXT:
            length = int(rng.integers(len(held[slot]) + 1))
            session.truncate(slot, length)
            del held[slot][length:]
            continue
        held[slot] += new
        if kind == "prefill":
            row = session.prefill(slot, new)[-1].copy()
        else:
            row = session.decode([slot], new)[0].copy()
        session.truncate(3, 0)  # the last slot is the fresh one
        assert same(row, session.prefill(3, held[slot])[-1])
    assert [session.length(slot) for slot in range(3)] == [len(tokens) for tokens in held]


def test_a_slot_takes_its_whole_context(session: Session, same: Same) -> None:
    whole = session.prefill(0, ids(CONTEXT)).copy()
    session.prefill(1, ids(CONTEXT)[:-1])
    assert same(session.decode([1], ids(CONTEXT)[-1:]), whole)
    assert session.length(0) == session.length(1) == CONTEXT


def test_one_token_too_many_leaves_the_slot_as_it_was(session: Session, same: Same) -> None:
    session.prefill(0, ids(CONTEXT - 2))
    expected = session.prefill(0, [5]).copy()
    session.truncate(0, CONTEXT - 2)
    with pytest.raises(InputError, match=r"46 \+ 3 tokens do not fit a context of 48"):
        session.prefill(0, [1, 2, 3])
    assert session.length(0) == CONTEXT - 2
    assert same(session.prefill(0, [5]), expected)


def test_decode_into_a_full_slot_changes_no_slot(session: Session) -> None:
    session.prefill(0, ids(4))
    session.prefill(1, ids(CONTEXT))
    with pytest.raises(InputError, match="do not fit"):
        session.decode([0, 1], [1, 1])
    assert (session.length(0), session.length(1)) == (4, CONTEXT)


@pytest.mark.parametrize("bad", [-1, VOCAB, 2**31])
def test_an_id_outside_the_vocabulary_leaves_the_slot_as_it_was(session: Session, bad: int) -> None:
    session.prefill(0, ids(3))
    with pytest.raises(InputError, match=rf"within 0\.\.{VOCAB - 1}"):
        session.prefill(0, [1, bad])
    with pytest.raises(InputError, match="within"):
        session.decode([0], [bad])
    assert session.length(0) == 3


@pytest.mark.parametrize(
    ("slots", "tokens"),
    [([], []), ([0, 0], [1, 1]), ([0], [1, 2]), ([-1], [1]), ([SLOTS], [1])],
)
def test_decode_wants_one_token_for_each_of_distinct_slots(
    session: Session, slots: list[int], tokens: list[int]
) -> None:
    with pytest.raises(ValueError, match="slot"):
        session.decode(slots, tokens)


@pytest.mark.parametrize("num_logits", [-1, 4])
def test_prefill_cannot_give_rows_that_it_does_not_compute(
    session: Session, num_logits: int
) -> None:
    with pytest.raises(ValueError, match="rows of logits from 3 tokens"):
        session.prefill(0, ids(3), num_logits=num_logits)


@pytest.mark.parametrize("count", [1, 2, 20])
def test_tokens_whose_logits_nobody_wants_are_held_all_the_same(
    session: Session, count: int
) -> None:
    """One alone, too, which otherwise is a step."""
    tokens = ids(count + 1)
    expected = session.prefill(1, tokens).copy()
    assert session.prefill(0, tokens[:count], num_logits=0).shape == (0, VOCAB)
    assert session.length(0) == count
    np.testing.assert_allclose(session.decode([0], tokens[count:]), expected, atol=1e-2)


def test_prefill_of_nothing_is_a_mistake(session: Session) -> None:
    with pytest.raises(ValueError, match="from 0 tokens"):
        session.prefill(0, [])


def test_a_closed_session_says_so(opening: Opening, source: Path) -> None:
    session = opening(source, num_slots=1)
    session.prefill(0, ids(3))
    session.close()
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session.prefill(0, ids(3))
    with pytest.raises(BackendError, match="closed"):
        session.decode([0], [1])


def test_a_context_beyond_the_engine_s_is_refused(opening: Opening, source: Path) -> None:
    opening(source, context_tokens=64, num_slots=1).close()
    with pytest.raises(InputError, match="built for 64 tokens of context, asked for 65"):
        opening(source, context_tokens=65)


def test_a_cache_that_cannot_be_had_is_a_matter_of_budget(
    make_tiny: Callable[..., Path], export_graph: Callable[..., Path]
) -> None:
    from edgekit.errors import BudgetError

    graph = export_graph(make_tiny("qwen2"), context_tokens=64)
    backend = find_backend("onnxruntime")
    with pytest.raises(BudgetError, match=r"the KV cache of 64 tokens needs 1048576\.00 GiB"):
        # keys and values of 2 layers: 4 buffers of 2 heads x 64 tokens x 16 x 4 bytes = 8 KiB a
        # slot; a buffer of 2^35 slots is 2^48 bytes, more than a process can address
        backend.open(graph, context_tokens=64, num_slots=1 << 35)


@pytest.mark.parametrize("name", NAMES)
def test_compile_moves_the_source_and_says_what_ran_it(
    name: str, make_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    from edgekit.checkpoint import read_checkpoint
    from edgekit.export import export_decoder
    from edgekit.profile import Storage

    try:
        backend = find_backend(name)
    except MissingBackendError as exc:
        pytest.skip(str(exc))
    if backend.info.consumes != "decoder-graph":
        pytest.skip(f"consumes a {backend.info.consumes}")
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    export_decoder(read_checkpoint(make_tiny()), Storage(linear_bits=32), source, context_tokens=16)
    steps: list[tuple[str, int, int]] = []
    device = backend.compile(source, out, WANTED, report=lambda *step: steps.append(step))
    assert device["runtime"].endswith(backend.version())
    assert steps[-1] == ("compile", 1, 1)
    session = backend.open(out, context_tokens=16, num_slots=1)
    assert session.prefill(0, [1, 2]).shape == (1, VOCAB)
    session.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_engine_fails_in_our_words(name: str, graph: Path, tmp_path: Path) -> None:
    try:
        backend = find_backend(name)
    except MissingBackendError as exc:
        pytest.skip(str(exc))
    for file in graph.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises((BackendError, EngineError)):
        backend.open(tmp_path, context_tokens=16, num_slots=1)


def test_the_version_is_that_of_the_installed_package() -> None:
    assert find_backend("onnxruntime").version() == metadata.version("onnxruntime")


def test_a_graph_that_does_not_run_fails_to_compile(
    make_tiny: Callable[..., Path], export_graph: Callable[..., Path], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(BackendError, match="cannot load"):
        find_backend("onnxruntime").compile(source, tmp_path / "out", WANTED, report=no_progress)
