"""A decoder on ONNX Runtime: I/O binding, preallocated KV slots, logits of the wanted positions.

The KV cache of every layer is one buffer `[slots, Hkv, S, D]`, bound as input and as output at
once, so that GroupQueryAttention writes in place. A call on neighbouring slots binds a view of
that buffer: a prefill is a batch of one, a decode takes each run of neighbouring slots in one
pass. Bindings are kept per (first slot, count), and a repeated decode rebinds nothing: it writes
new numbers into the buffers that are bound already.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekit.backends.onnxruntime.binding import Buffers, GraphIO, Runner
from edgekit.backends.onnxruntime.providers import Provider, choose_provider
from edgekit.errors import BackendError, EngineError, InputError

if TYPE_CHECKING:
    from edgekit.backends.base import Logits

PREFILL_CHUNK_TOKENS = 256
"""Longer prompts go through in pieces: bounds the memory of activations, and attention, which
computes whole rectangles, wastes less above the diagonal (512 tokens: 3 % faster than at once)."""
_ATTENTION_VARIABLE = "ORT_GQA_DISABLE_FLASH_ATTENTION"
_PLAIN_ATTENTION_TOKENS = 8192
"""Up to this context attention keeps its scores whole: on a CPU that was 0 to 8 % faster in
prefill than ONNX Runtime's blockwise kernel, and costs chunk x context x heads floats."""


def open_session(
    engine: Path,
    *,
    context_tokens: int,
    num_slots: int,
    threads: int | None,
    provider: str | None = None,
) -> OrtSession:
    """Load an engine's graph. Raises `BackendError`, `EngineError`, `MissingBackendError`."""
    row = choose_provider(engine, provider)
    return open_on(row, engine, context_tokens=context_tokens, num_slots=num_slots, threads=threads)


def open_on(
    row: Provider, engine: Path, *, context_tokens: int, num_slots: int, threads: int | None
) -> OrtSession:
    """Load the graph that `row` names on the provider that it names, and on no other."""
    is_plain = row.device == "cpu" and context_tokens <= _PLAIN_ATTENTION_TOKENS
    with _attention(is_plain=is_plain):
        session = _load(engine / row.graph, row, threads)
    return OrtSession(session, row, context_tokens=context_tokens, num_slots=num_slots)


@contextmanager
def _attention(*, is_plain: bool) -> Iterator[None]:
    """Choose ONNX Runtime's attention kernel while a session is made, which reads a variable.

    Whoever has set the variable keeps the last word; it is not left behind.
    """
    if not is_plain or _ATTENTION_VARIABLE in os.environ:
        yield
        return
    os.environ[_ATTENTION_VARIABLE] = "1"
    try:
        yield
    finally:
        del os.environ[_ATTENTION_VARIABLE]


def _load(path: Path, row: Provider, threads: int | None) -> Any:
    import onnxruntime as ort

    if not path.is_file():
        raise EngineError(f"engine file is missing: {path}", hint="build it again")
    options = ort.SessionOptions()
    # 0 = one thread per physical core
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(path, options, providers=[(row.name, dict(row.options))])
    except Exception as exc:  # the border: whatever ONNX Runtime raises is a failure to load
        first_line = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise BackendError(f"ONNX Runtime cannot load {path}: {first_line}") from exc
    if row.name not in session.get_providers():
        # it says so in a log line and goes on with the CPU
        raise BackendError(
            f"ONNX Runtime has {row.name} but cannot start it",
            hint="CUDA or cuDNN is missing: `pip install onnxruntime-gpu[cuda,cudnn]`",
        )
    return session


class OrtSession:
    """`backends.base.Session` over one ONNX Runtime session."""

    def __init__(self, session: Any, row: Provider, *, context_tokens: int, num_slots: int) -> None:
        self.provider = row.name
        self.context_tokens = context_tokens
        self.num_slots = num_slots
        self._io = GraphIO.of(session)
        if context_tokens > self._io.max_context_tokens:
            raise InputError(
                f"this engine was built for {self._io.max_context_tokens} tokens of context, "
                f"asked for {context_tokens}",
                hint="build it again with a larger `--context`",
            )
        self.vocab_size = self._io.vocab_size
        buffers = Buffers(self._io, row, num_slots=num_slots, context_tokens=context_tokens)
        self._lengths = [0] * num_slots
        self._runner: Runner | None = Runner(session, self._io, row, buffers)

    def length(self, slot: int) -> int:
        """Tokens that `slot` holds."""
        return self._lengths[slot]

    def truncate(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens. Raises `ValueError` beyond what is held."""
        if not 0 <= length <= self._lengths[slot]:
            raise ValueError(f"slot {slot} holds {self._lengths[slot]} tokens, not {length}")
        self._lengths[slot] = length

    def prefill(self, slot: int, token_ids: Sequence[int], *, num_logits: int = 1) -> Logits:
        """Append tokens to `slot`; logits `[num_logits, V]` of the last ones."""
        if not 1 <= num_logits <= len(token_ids):
            raise ValueError(f"{num_logits} rows of logits from {len(token_ids)} tokens")
        ids = self._checked(slot, token_ids)
        start = self._lengths[slot]
        parts = []
        for first in range(0, len(ids), PREFILL_CHUNK_TOKENS):
            chunk = ids[first : first + PREFILL_CHUNK_TOKENS]
            wanted = max(0, first + len(chunk) - max(first, len(ids) - num_logits))
            logits = self._run(slot, 1, chunk[None, :], [start + first], wanted)
            if wanted:
                # a later chunk reuses the buffer
                parts.append(logits[0] if len(ids) <= PREFILL_CHUNK_TOKENS else logits[0].copy())
        self._lengths[slot] = start + len(ids)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> Logits:
        """One token for each slot; logits `[len(slots), V]`."""
        if len(slots) != len(token_ids) or len(set(slots)) != len(slots) or not slots:
            raise ValueError("decode needs one token for each of some distinct slots")
        ids = [self._checked(s, [t])[0] for s, t in zip(slots, token_ids, strict=True)]
        if len(slots) == 1:
            out = self._run(slots[0], 1, np.array([ids]), [self._lengths[slots[0]]], 1)[:, 0]
        else:
            out = np.empty((len(slots), self.vocab_size), np.float32)
            order = sorted(range(len(slots)), key=lambda i: slots[i])
            for run in _neighbours([slots[i] for i in order]):
                where = [i for i in order if slots[i] in run]
                tokens = np.array([[ids[i]] for i in where], np.int64)
                before = [self._lengths[s] for s in run]
                out[where] = self._run(run.start, len(run), tokens, before, 1)[:, 0]
        for s in slots:
            self._lengths[s] += 1
        return out

    def close(self) -> None:
        """Free sessions and buffers. Safe to call twice."""
        self._runner = None

    def _run(
        self, slot: int, count: int, ids: NDArray[np.int64], before: list[int], wanted: int
    ) -> Logits:
        if self._runner is None:
            raise BackendError("the session is closed")
        return self._runner.run(slot, count, ids, before, wanted)

    def _checked(self, slot: int, token_ids: Sequence[int]) -> NDArray[np.int64]:
        if not 0 <= slot < self.num_slots:
            raise ValueError(f"no slot {slot}: there are {self.num_slots}")
        ids = np.asarray(token_ids, np.int64)
        room = self.context_tokens - self._lengths[slot]
        if len(ids) > room:
            raise InputError(
                f"{self._lengths[slot]} + {len(ids)} tokens do not fit a context of "
                f"{self.context_tokens}",
                hint="shorten the prompt, or open the engine with a larger `--context`",
            )
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise InputError(f"token ids must be within 0..{self.vocab_size - 1}")
        return ids


def _neighbours(slots: Sequence[int]) -> list[range]:
    """Runs of consecutive numbers in a sorted sequence: [0, 1, 3] -> [0..1], [3]."""
    runs: list[range] = []
    for slot in slots:
        if runs and runs[-1].stop == slot:
            runs[-1] = range(runs[-1].start, slot + 1)
        else:
            runs.append(range(slot, slot + 1))
    return runs
