"""`StreamingSession` over a worker: checks before sending, tokens as they come."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from edgekit.backends.environment import FOREIGN
from edgekit.backends.tensorrt_llm.process import Worker
from edgekit.backends.worker_request import Limits
from edgekit.errors import BackendError, BudgetError, InputError
from edgekit.progress import Progress, no_progress

if TYPE_CHECKING:
    from edgekit.backends.base import Logits

_BLOCK_TOKENS = 128
"""The KV cache is cut into blocks, of this size at most: less than one is not missing memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What a worker loads, and how: the fields of the protocol's `load`."""

    model: str
    """The directory as the worker sees it: another path in a container."""
    backend: Literal["tensorrt", "pytorch"]
    """An engine (up to 1.2), or a checkpoint for the PyTorch backend."""
    context_tokens: int
    kv_tokens: int
    """Of all requests together, from the plan."""
    max_batch_size: int
    max_num_tokens: int
    """Tokens of one pass."""
    chunked_prefill: bool
    """Prompts longer than `max_num_tokens`; an engine needs paged context FMHA for it."""
    kv_dtype: Literal["auto", "fp8"] = "auto"
    """Of the cache, for the PyTorch backend; an engine has its own."""
    gather_logits: bool = False
    """For `TrtLlmSession.scores`."""
    speculation: Mapping[str, Any] | None = None
    """`kind` "ngram" (PyTorch alone), and the fields of TensorRT-LLM's `NGramDecodingConfig`."""


class TrtLlmSession:
    """A `StreamingSession`. Streams may run in several threads at once. Owns the worker."""

    def __init__(
        self,
        worker: Worker,
        *,
        context_tokens: int,
        vocab_size: int,
        stop_ids: Collection[int] = (),
        scratch: Path | None = None,
        drafts: bool = False,
    ) -> None:
        """`worker` is loaded, and `drafts` by itself or not. `stop_ids` end every answer. `scratch`
        is a directory that the worker can write, in its container, too."""
        self._worker = worker
        self._context_tokens = context_tokens
        self._vocab_size = vocab_size
        self._stop_ids = sorted(stop_ids)
        self._scratch = scratch
        self._drafts = drafts

    @classmethod
    def open(
        cls,
        command: Sequence[str],
        options: LoadOptions,
        *,
        vocab_size: int,
        stop_ids: Collection[int] = (),
        environment: Mapping[str, str] | None = None,
        hidden: Collection[str] = FOREIGN,
        stop_words: Sequence[str] = (),
        limits: Limits | None = None,
        scratch: Path | None = None,
        report: Progress = no_progress,
    ) -> Self:
        """Start a worker (see `WorkerProcess`) and load into it.

        Raises `BudgetError`, also where TensorRT-LLM made a smaller KV cache than the plan's and
        went on; `StaleEngineError`, `MissingBackendError`, `InputError`, `BackendError`.
        """
        worker = Worker(
            command, environment=environment, hidden=hidden, stop_words=stop_words, limits=limits
        )
        try:
            worker.load(asdict(options), report=report)
            pool = worker.pool_tokens
            if pool is not None and pool + _BLOCK_TOKENS <= options.kv_tokens:
                raise BudgetError(
                    f"the KV cache holds {pool} tokens instead of {options.kv_tokens}: "
                    "the GPU has not enough memory",
                    hint="close other programs that use the GPU, or build the engine again with a "
                    "smaller `--context`",
                )
        except BaseException:
            worker.close()
            raise
        context = options.context_tokens
        return cls(
            worker,
            context_tokens=context,
            vocab_size=vocab_size,
            stop_ids=stop_ids,
            scratch=scratch,
            drafts=options.speculation is not None,
        )

    @property
    def worker(self) -> Worker:
        """Knows versions and device."""
        return self._worker

    @property
    def context_tokens(self) -> int:
        """Tokens that a prompt and its answer can have together."""
        return self._context_tokens

    def stream(
        self, token_ids: Sequence[int], *, sampling: Mapping[str, Any], max_new_tokens: int
    ) -> Generator[int]:
        """See `StreamingSession.stream`. The input is checked here, before the first `next`."""
        prompt = self._checked(token_ids)
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be at least 1: {max_new_tokens}")
        if len(prompt) + max_new_tokens > self._context_tokens:
            raise InputError(
                f"the prompt has {len(prompt)} tokens and the answer {max_new_tokens}, the "
                f"context holds {self._context_tokens}",
                hint="shorten the prompt, or build the engine with a larger `--context`",
            )
        if self._drafts and sampling.get("repetition_penalty", 1.0) != 1.0:
            raise InputError(
                "an engine that drafts by itself takes no repetition penalty: that TensorRT-LLM "
                "checks drafts with it is not known",
                hint="leave the penalty out, or build the engine again with `--speculation none`",
            )
        return self._stream(prompt, dict(sampling), int(max_new_tokens))

    def _stream(self, prompt: list[int], sampling: dict[str, Any], limit: int) -> Generator[int]:
        request = self._worker.ask(
            "generate",
            token_ids=prompt,
            sampling=sampling,
            max_new_tokens=limit,
            stop_token_ids=self._stop_ids,
        )
        try:
            for message in request:
                if message["type"] == "tokens":
                    yield from message["token_ids"]
                elif (reason := message.get("reason")) not in ("stop", "length"):
                    raise BackendError(f"TensorRT-LLM ended the answer early: {reason}")
        finally:
            request.cancel()

    def scores(self, token_ids: Sequence[int], *, first: int = 0) -> Logits:
        """Log-probabilities `[T - first, V]`: row i is of the token after position `first + i`.

        Loaded with `gather_logits`. Raises `InputError`, `BudgetError`, `BackendError`.
        """
        prompt = self._checked(token_ids)
        if not 0 <= first < len(prompt) < self._context_tokens:
            raise InputError(
                f"cannot score {len(prompt)} tokens from position {first} in a context of "
                f"{self._context_tokens}"
            )
        with tempfile.TemporaryDirectory(dir=self._scratch, prefix="scores-") as scratch:
            path = Path(scratch) / "scores.f32"
            request = self._worker.ask("score", token_ids=prompt, first=first, path=str(path))
            try:
                *_, last = request
            finally:
                request.cancel()
            rows, width = last["shape"]
            values = np.fromfile(path, dtype="<f4")
            if rows != len(prompt) - first or len(values) != rows * width:
                raise BackendError(f"the worker wrote {len(values)} scores, not {rows} x {width}")
        return values.astype(np.float32, copy=False).reshape(rows, width)

    def close(self) -> None:
        """End the worker. Safe to call twice."""
        self._worker.close()

    def __del__(self) -> None:
        with suppress(Exception):
            self._worker.close()

    def _checked(self, token_ids: Sequence[int]) -> list[int]:
        ids = [int(token_id) for token_id in token_ids]
        if not ids:
            raise InputError("the prompt has no tokens", hint="write something to answer")
        if wrong := [i for i in ids if not 0 <= i < self._vocab_size]:
            raise InputError(f"token {wrong[0]} is outside the vocabulary of {self._vocab_size}")
        return ids
