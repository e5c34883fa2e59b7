"""`StreamingSession` over a worker: ids become the text that Edge-LLM takes, tokens come as ids.

Its bindings (0.11.0) take messages, no token ids: what the caller has rendered and tokenized is
sent as text, without a template around it, and tokenized again by Edge-LLM. The text is the same,
and so are the tokens of a fresh prompt. Where an answer goes on, its text may be cut otherwise than
the model cut it; where it ended within a character, that character is lost, which is logged. That
Edge-LLM cuts as the engine's `tokenizer.json` does is checked by the number of tokens it counts.

Speculative decoding is off, and so is its cache of prompts: each request computes its prompt.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from edgekit.backends.edge_llm.environment import child_environment, cleared
from edgekit.backends.edge_llm.identity import read_identity, require_same
from edgekit.backends.edge_llm.layout import CHECKPOINT_DIRECTORY, ENGINE_DIRECTORY, EngineLayout
from edgekit.backends.edge_llm.process import WORKER_PATH, Worker
from edgekit.backends.edge_llm.runtime import Runtime
from edgekit.backends.worker_request import Limits
from edgekit.device import Device, read_device, run_tool
from edgekit.errors import BackendError, EngineError, InputError
from edgekit.progress import Progress, no_progress

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from edgekit.backends.base import Logits, TopScores

TOP_TOKENS = 50
"""Log-probabilities of one position that Edge-LLM tells at most (`kMaxLogprobsK`)."""
_LOST = "\ufffd"
_LOG = logging.getLogger(__name__)


class Text(NamedTuple):
    """A prompt as Edge-LLM is given it."""

    text: str
    num_tokens: int
    """That the engine's tokenizer makes of it."""
    is_same: bool
    """They are the ids that it was made from."""


class EdgeLlmSession:
    """A `StreamingSession`. Streams may run in several threads at once. Owns the worker."""

    takes_text: Literal[True] = True
    """See `base.TakesText`."""

    def __init__(
        self,
        worker: Worker,
        tokenizer: Tokenizer,
        *,
        context_tokens: int,
        max_input_tokens: int,
        vocab_size: int,
        stop_ids: Collection[int] = (),
        banned_ids: Collection[int] = (),
    ) -> None:
        """`worker` is loaded. `stop_ids` end every answer, `banned_ids` are in none."""
        self._worker = worker
        self._tokenizer = tokenizer
        self._context_tokens = context_tokens
        self._max_input_tokens = max_input_tokens
        self._vocab_size = vocab_size
        self._stop_ids = sorted(stop_ids)
        self._banned_ids = sorted(banned_ids)
        self._said: set[str] = set()
        """Warnings are given once."""

    @property
    def worker(self) -> Worker:
        """Knows versions."""
        return self._worker

    @property
    def context_tokens(self) -> int:
        """Tokens that a prompt and its answer can have together."""
        return self._context_tokens

    def stream(
        self, token_ids: Sequence[int], *, sampling: Mapping[str, Any], max_new_tokens: int
    ) -> Generator[int]:
        """See `StreamingSession.stream`. The input is checked here, before the first `next`."""
        prompt = self._checked(token_ids, max_new_tokens)
        if _LOST in prompt.text and not prompt.is_same:
            self._warn("a prompt ended within a character, which Edge-LLM's text input has lost")
        return self._stream(prompt, dict(sampling), max_new_tokens)

    def _stream(self, prompt: Text, sampling: dict[str, Any], limit: int) -> Generator[int]:
        request = self._worker.ask(
            "generate",
            text=prompt.text,
            sampling=sampling,
            max_new_tokens=int(limit),
            stop_token_ids=self._stop_ids,
            banned_ids=self._banned_ids,
            top=0,
        )
        try:
            for message in request:
                if message["type"] == "tokens":
                    yield from message["token_ids"]
                    continue
                if (reason := message.get("reason")) not in ("stop", "length"):
                    raise BackendError(f"Edge-LLM ended the answer early: {reason}")
                self._compare(prompt, message["prompt_tokens"])
        finally:
            request.cancel()

    def top_scores(self, token_ids: Sequence[int], *, first: int = 0) -> TopScores:
        """See `TopScoring.top_scores`: each row is a request of one token."""
        import numpy as np

        rows = len(token_ids) - first
        if not 0 <= first < len(token_ids) < self._context_tokens:
            raise InputError(
                f"cannot score {len(token_ids)} tokens from position {first} in a context of "
                f"{self._context_tokens}"
            )
        ids = np.full((rows, TOP_TOKENS), -1, np.int64)
        log_probs = np.full((rows, TOP_TOKENS), -np.inf, np.float32)
        for row in range(rows):
            prompt = self._checked(token_ids[: first + 1 + row], 1)
            if not prompt.is_same:
                continue
            for place, (token_id, value) in enumerate(self._top(prompt)[:TOP_TOKENS]):
                ids[row, place], log_probs[row, place] = token_id, value
        return ids, log_probs

    def _top(self, prompt: Text) -> list[tuple[int, float]]:
        """The likeliest tokens after a prompt and their log-probabilities; none where the answer
        ends at once, for what ends it is not given."""
        request = self._worker.ask(
            "generate",
            text=prompt.text,
            sampling={},
            max_new_tokens=1,
            stop_token_ids=[],
            banned_ids=[],
            top=TOP_TOKENS,
        )
        try:
            *before, last = request
        finally:
            request.cancel()
        self._require_counted(prompt, last["prompt_tokens"])
        told = [step for message in before for step in message["top"]]
        if not told and last["reason"] != "stop":
            raise InputError("Edge-LLM gives no log-probabilities")
        return [(int(token_id), float(value)) for step in told[:1] for token_id, value in step]

    def scores(self, token_ids: Sequence[int], *, first: int = 0) -> Logits:
        """Raises `InputError`: of the whole vocabulary it tells none. See `top_scores`."""
        raise InputError(
            f"Edge-LLM tells the log-probabilities of {TOP_TOKENS} tokens at most, not of all"
        )

    def close(self) -> None:
        """End the worker. Safe to call twice."""
        self._worker.close()

    def __del__(self) -> None:
        with suppress(Exception):
            self._worker.close()

    def _checked(self, token_ids: Sequence[int], max_new_tokens: int) -> Text:
        ids = [int(token_id) for token_id in token_ids]
        if not ids:
            raise InputError("the prompt has no tokens", hint="write something to answer")
        if wrong := [i for i in ids if not 0 <= i < self._vocab_size]:
            raise InputError(f"token {wrong[0]} is outside the vocabulary of {self._vocab_size}")
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be at least 1: {max_new_tokens}")
        prompt = self._text_of(ids)
        if prompt.num_tokens > self._max_input_tokens:
            raise InputError(
                f"the prompt has {prompt.num_tokens} tokens, the engine takes "
                f"{self._max_input_tokens}",
                hint="shorten the prompt, or build the engine with a larger `--context`",
            )
        if prompt.num_tokens + max_new_tokens > self._context_tokens:
            raise InputError(
                f"the prompt has {prompt.num_tokens} tokens and the answer {max_new_tokens}, the "
                f"context holds {self._context_tokens}",
                hint="shorten the prompt, or build the engine with a larger `--context`",
            )
        return prompt

    def _text_of(self, ids: list[int]) -> Text:
        text = self._tokenizer.decode(ids, skip_special_tokens=False)
        again = self._tokenizer.encode(text, add_special_tokens=False).ids
        return Text(text, len(again), again == ids)

    def _compare(self, prompt: Text, counted: int) -> None:
        if counted != prompt.num_tokens:
            self._warn(
                f"Edge-LLM reads {counted} tokens where the tokenizer has {prompt.num_tokens}: "
                "its own tokenizer differs, and answers may be worse"
            )

    def _require_counted(self, prompt: Text, counted: int) -> None:
        if counted != prompt.num_tokens:
            raise BackendError(
                f"Edge-LLM reads {counted} tokens where the tokenizer has {prompt.num_tokens}, so "
                "it answers another prompt (NVIDIA/TensorRT-Edge-LLM#164)",
                hint="please report the model; its tokenizer is one that Edge-LLM reads wrong",
            )

    def _warn(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            _LOG.warning("%s", text)


def open_session(
    runtime: Runtime,
    engine: Path,
    *,
    context_tokens: int,
    num_slots: int,
    stop_ids: Collection[int] = (),
    to_score: bool = False,
    device: Device | None = None,
    environment: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    report: Progress = no_progress,
) -> EdgeLlmSession:
    """Start a worker and load `engine` into it, for `num_slots` conversations at once.

    Without `stop_ids` no token ends an answer, unless it is `to_score`: then the engine's own does.
    Raises `StaleEngineError` for one built elsewhere, `EngineError`, `BudgetError`,
    `MissingBackendError`, `BackendError`.
    """
    layout = EngineLayout.read(engine)
    device = device or read_device(run=run_tool)
    require_same(layout.identity, read_identity(runtime, device), engine, device)
    files = engine / ENGINE_DIRECTORY
    tokenizer = _read_tokenizer(files)
    banned = () if stop_ids or to_score else end_ids(files)
    command = (*runtime.python, str(WORKER_PATH))
    environment = environment or os.environ
    told = child_environment(environment, is_own=runtime.is_own)
    hidden = tuple(cleared(environment, is_own=runtime.is_own))
    worker = Worker(command, environment=told, hidden=hidden, limits=limits)
    try:
        worker.load(
            {
                "engine": str(files.absolute()),
                "checkpoint": str((engine / CHECKPOINT_DIRECTORY).absolute())
                if layout.has_checkpoint
                else "",
                "max_batch_size": min(num_slots, layout.batch),
            },
            report=report,
        )
    except BaseException:
        worker.close()
        raise
    return EdgeLlmSession(
        worker,
        tokenizer,
        context_tokens=min(context_tokens, layout.kv_capacity_tokens),
        max_input_tokens=layout.max_input_tokens,
        vocab_size=layout.vocab_size,
        stop_ids=stop_ids,
        banned_ids=banned,
    )


def end_ids(directory: Path) -> list[int]:
    """The tokens that end an answer for Edge-LLM: what its files name as such."""
    found: set[Any] = set()
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        with suppress(OSError, ValueError):
            data = json.loads((directory / name).read_text(encoding="utf-8"))
            said = data.get("eos_token_id")
            found |= set(said if isinstance(said, list) else [said])
            token = data.get("eos_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                found.add(_read_tokenizer(directory).token_to_id(token))
    return sorted(i for i in found if type(i) is int)


def _read_tokenizer(directory: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"
    try:
        read = Tokenizer.from_file(str(path))
    except Exception as exc:  # its own errors are plain `Exception`s
        raise EngineError(
            f"unreadable {path}: {exc}", hint="build it again with `edgekit build`"
        ) from exc
    read.no_truncation()
    read.no_padding()
    return read
