"""A decoder on ONNX Runtime: I/O binding, preallocated KV slots, logits of the wanted positions.

The KV cache of every layer is one buffer `[slots, Hkv, S, D]`, bound as input and as output at
once, so that GroupQueryAttention writes in place. A call on neighbouring slots binds a view of
that buffer: a prefill is a batch of one, a decode takes each run of neighbouring slots in one
pass. Bindings are kept per (first slot, count), and a repeated decode rebinds nothing: it writes
new numbers into the buffers that are bound already.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekit.backends.onnxruntime.binding import Buffers, GraphIO, Runner
from edgekit.backends.onnxruntime.pages import HugePages, Region, large_regions
from edgekit.backends.onnxruntime.providers import Provider, choose_provider
from edgekit.backends.slots import SlotSession
from edgekit.device import count_cores, is_confined
from edgekit.errors import BackendError, EngineError, InputError

if TYPE_CHECKING:
    from edgekit.backends.base import Logits

PREFILL_CHUNK_TOKENS = 256
"""Longer prompts go through in pieces, which bounds the memory of activations."""
_MIN_PROMPT_TOKENS = 16
"""Fewer tokens go through the graph that gives logits, with those whose logits are wanted."""
_SHARED = {"session.force_spinning_stop": "1"}
"""For several slots, so for a server: threads wait actively within a pass and not after it, when a
core is needed to choose tokens and to send them. A single conversation would be 4 % slower. For
prompts, too: the threads of another graph come next."""


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
    """Load the graph that `row` names on the provider that it names, and on no other.

    With several slots none for prompts: see `Profile.storage_for`.
    """
    settings = _SHARED if num_slots > 1 else None
    held = large_regions()
    session = load_graph(engine / row.graph, row, threads, settings)
    weights = large_regions()  # not those for prompts, which many tokens share
    prompts = None
    if num_slots == 1 and row.prompt_graph and (engine / row.prompt_graph).is_file():
        prompts = load_graph(engine / row.prompt_graph, row, threads, _SHARED)
    opened = OrtSession(
        session, row, context_tokens=context_tokens, num_slots=num_slots, prompts=prompts
    )
    if row.device == "cpu":
        opened.use_huge_pages(set(weights) - set(held))
    return opened


def load_graph(
    path: Path, row: Provider, threads: int | None, settings: Mapping[str, str] | None = None
) -> Any:
    """An `onnxruntime.InferenceSession` on the provider `row` and no other.

    `threads` `None`: one per physical core that this process may use; `settings` are entries of its
    configuration. Raises `BackendError`, `EngineError`.
    """
    import onnxruntime as ort

    if not path.is_file():
        raise EngineError(f"engine file is missing: {path}", hint="build it again")
    options = ort.SessionOptions()
    # 0 = one thread on each physical core of the machine, also on those that taskset keeps this
    # process from, and more than a container's quota has time for: not where there is such a limit
    options.intra_op_num_threads = threads or (count_cores() if is_confined() else 0)
    options.log_severity_level = 3
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
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


class OrtSession(SlotSession):
    """`SlotSession` over one ONNX Runtime session, or two: `prompts` fills the cache faster, but
    gives no logits."""

    def __init__(
        self,
        session: Any,
        row: Provider,
        *,
        context_tokens: int,
        num_slots: int,
        prompts: Any = None,
    ) -> None:
        io = GraphIO.of(session)
        if context_tokens > io.max_context_tokens:
            raise InputError(
                f"this engine was built for {io.max_context_tokens} tokens of context, "
                f"asked for {context_tokens}",
                hint="build it again with a larger `--context`",
            )
        buffers = Buffers(io, row, num_slots=num_slots, context_tokens=context_tokens)
        super().__init__(
            context_tokens=context_tokens,
            num_slots=num_slots,
            vocab_size=io.vocab_size,
            chunk_tokens=PREFILL_CHUNK_TOKENS,
        )
        self.provider = row.name
        self._runner: Runner | None = Runner(session, io, row, buffers)
        self._prompts = None if prompts is None else Runner(prompts, io, row, buffers)
        self.fills_apart = prompts is not None
        self._pages: HugePages | None = None

    def use_huge_pages(self, weights: Collection[Region]) -> None:
        """Have what was loaded lie in huge pages, the first half second's worth at once."""
        self._pages = HugePages(weights)
        self._pages.wait()

    def close(self) -> None:
        """Free sessions and buffers. Safe to call twice."""
        if self._pages is not None:
            self._pages.stop()
        self._runner = self._prompts = None

    def _run(
        self, slot: int, count: int, ids: NDArray[np.int64], before: list[int], wanted: int
    ) -> Logits:
        if self._runner is None:
            raise BackendError("the session is closed")
        silent = ids.shape[1] - wanted
        if self._prompts is not None and count == 1 and silent >= _MIN_PROMPT_TOKENS:
            rows = self._prompts.run(slot, 1, ids[:, :silent], before, 0)
            if wanted == 0:
                return rows
            ids, before = ids[:, silent:], [before[0] + silent]
        return self._runner.run(slot, count, ids, before, wanted)
