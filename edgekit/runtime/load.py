"""Open an engine directory for use: its session, tokenizer, chat template and sampling."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from edgekit.backends import find_backend
from edgekit.backends.base import ChoosesGpu, Session, StreamingSession, Streams
from edgekit.device import read_device
from edgekit.engine import Manifest, naming_rebuild, open_manifest
from edgekit.errors import EngineError, InputError
from edgekit.runtime.room import require_room_to_load
from edgekit.runtime.sampling import Sampling
from edgekit.runtime.streamed import NoLogits
from edgekit.runtime.template import ChatTemplate
from edgekit.runtime.tokenizer import Tokenizer, read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedEngine:
    """An engine ready to answer; a context manager that frees its memory."""

    directory: Path
    manifest: Manifest
    session: Session
    """Of a backend that streams: one that has no logits to give."""
    tokenizer: Tokenizer
    template: ChatTemplate
    sampling: Sampling
    """What the checkpoint recommends; greedy where it says nothing."""
    stream: StreamingSession | None = None
    """Of a backend that samples by itself."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()


def load_engine(
    directory: Path,
    *,
    context_tokens: int | None = None,
    threads: int | None = None,
    num_slots: int = 1,
    is_endless: bool = False,
) -> LoadedEngine:
    """Verify the engine's files, read its texts, then load its weights, which takes longest.

    `context_tokens` may be smaller than what the engine was built for, which is the default. With
    `is_endless` no token ends the answers of a backend that samples by itself: for measuring.
    Raises `InputError`, `BudgetError`, `EngineError`, `StaleEngineError`, `BackendError`.
    """
    manifest = open_manifest(directory)
    if context_tokens is not None and context_tokens > manifest.context_tokens:
        raise InputError(
            f"the engine was built for a context of {manifest.context_tokens} tokens, "
            f"asked for {context_tokens}",
            hint="build it again with a larger `--context`",
        )
    context_tokens = context_tokens or manifest.context_tokens
    backend = find_backend(manifest.backend["name"])
    device = read_device()
    if isinstance(backend, ChoosesGpu):
        device = device.with_gpu(backend.gpu_uuid(directory / "backend"))
    require_room_to_load(manifest, device, context_tokens=context_tokens, num_slots=num_slots)
    texts = directory / "tokenizer"
    tokenizer = Tokenizer.load(texts)
    template = ChatTemplate.load(texts, special_tokens=tokenizer.special_tokens)
    sampling = _recommended_sampling(texts / "generation_config.json")
    stream: StreamingSession | None = None
    session: Session
    with naming_rebuild(manifest):
        if isinstance(backend, Streams):
            stream = backend.open_stream(
                directory / "backend",
                context_tokens=context_tokens,
                num_slots=num_slots,
                stop_ids=() if is_endless else tokenizer.stop_ids,
            )
            session = NoLogits(stream, num_slots=num_slots, vocab_size=tokenizer.vocab_size)
        else:
            session = backend.open(
                directory / "backend",
                context_tokens=context_tokens,
                num_slots=num_slots,
                threads=threads,
            )
    return LoadedEngine(
        directory=directory,
        manifest=manifest,
        session=session,
        tokenizer=tokenizer,
        template=template,
        sampling=sampling,
        stream=stream,
    )


def _recommended_sampling(path: Path) -> Sampling:
    try:
        return Sampling.from_generation_config(read_json(path))
    except InputError as exc:
        raise EngineError(f"bad value in {path}: {exc}") from exc
