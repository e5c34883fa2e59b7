from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from edgekit.engine import Manifest
from edgekit.errors import InputError
from edgekit.runtime.load import LoadedEngine
from edgekit.runtime.sampling import Sampling
from edgekit.runtime.template import ChatTemplate
from edgekit.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edgekit.backends.base import Logits

_TEXT = (
    "the quick brown fox jumps over the lazy dog and says hello to the world. "
    "Déjà vu: 你好世界, привет мир, 👩‍👩‍👧 🙂 naïve café. "
)


class HashSession:
    """A session whose logits are a digest of every token in the slot.

    One wrong token in the bookkeeping of a KV cache changes all that follows.
    """

    def __init__(self, *, context_tokens: int, num_slots: int, vocab_size: int) -> None:
        self.context_tokens = context_tokens
        self.num_slots = num_slots
        self.vocab_size = vocab_size
        self.held: list[list[int]] = [[] for _ in range(num_slots)]
        self.calls: list[tuple[str, int]] = []
        """`("prefill" or "decode", number of tokens)`, in order."""
        self.fail_at: int | None = None
        """Raise KeyboardInterrupt instead of making this call (counted from 0)."""
        self.is_closed = False

    def length(self, slot: int) -> int:
        return len(self.held[slot])

    def prefill(self, slot: int, token_ids: Sequence[int], *, num_logits: int = 1) -> Logits:
        assert 1 <= num_logits <= len(token_ids)
        self._check("prefill", slot, token_ids)
        rows = []
        for token_id in token_ids:
            self.held[slot].append(token_id)
            rows.append(self._logits(slot))
        return np.stack(rows[-num_logits:])

    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> Logits:
        assert len(set(slots)) == len(slots) == len(token_ids)
        self._check("decode", slots[0], token_ids[:1])
        for slot, token_id in zip(slots, token_ids, strict=True):
            self.held[slot].append(token_id)
        return np.stack([self._logits(slot) for slot in slots])

    def truncate(self, slot: int, length: int) -> None:
        assert 0 <= length <= self.length(slot)
        del self.held[slot][length:]

    def close(self) -> None:
        self.is_closed = True

    def _check(self, kind: str, slot: int, token_ids: Sequence[int]) -> None:
        if self.fail_at == len(self.calls):
            self.fail_at = None
            raise KeyboardInterrupt
        if self.length(slot) + len(token_ids) > self.context_tokens:
            raise InputError("the slot is full")
        if not all(0 <= i < self.vocab_size for i in token_ids):
            raise InputError("an id outside the vocabulary")
        self.calls.append((kind, len(token_ids)))

    def _logits(self, slot: int) -> Logits:
        digest = hashlib.blake2b(np.array(self.held[slot], dtype=np.int64).tobytes()).digest()
        seed = int.from_bytes(digest[:8], "little")
        return np.random.default_rng(seed).standard_normal(self.vocab_size, dtype=np.float32)


@pytest.fixture
def make_session() -> Callable[..., HashSession]:
    def make(*, context_tokens: int = 64, num_slots: int = 1, vocab_size: int = 50) -> HashSession:
        return HashSession(
            context_tokens=context_tokens, num_slots=num_slots, vocab_size=vocab_size
        )

    return make


def _byte_level() -> tokenizers.Tokenizer:
    """A small vocabulary of the kind of Llama 3, Qwen and SmolLM, with BOS and end of turn."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([_TEXT] * 4, trainer)
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return inner


def _byte_fallback() -> tokenizers.Tokenizer:
    """A small vocabulary of the kind of Llama 2 and Gemma: pieces, and a token for every byte."""
    specials = ["<unk>", "<s>", "</s>"]
    pieces = ["▁", "▁▁", "▁hello", "hello", "▁world", "wor", "ld", "▁,", "!", "é", "你", "a", "b"]
    names = [*specials, *(f"<0x{b:02X}>" for b in range(256)), *pieces]
    inner = tokenizers.Tokenizer(
        models.BPE(vocab={n: i for i, n in enumerate(names)}, merges=[], byte_fallback=True)
    )
    inner.add_special_tokens(specials)
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return inner


@pytest.fixture(scope="session")
def byte_level() -> tokenizers.Tokenizer:
    return _byte_level()


@pytest.fixture(scope="session")
def byte_tokenizer(byte_level: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer(byte_level, special_tokens={"bos_token": "<s>", "eos_token": "<|im_end|>"})


@pytest.fixture(scope="session")
def fallback_tokenizer() -> Tokenizer:
    return Tokenizer(_byte_fallback(), special_tokens={"bos_token": "<s>", "eos_token": "</s>"})


@pytest.fixture(scope="session", params=["byte level", "byte fallback", "metaspace", "word piece"])
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "byte level":
        return Tokenizer(_byte_level())
    inner = _byte_fallback()
    if request.param == "metaspace":
        inner.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
        )
    if request.param == "word piece":
        inner.decoder = decoders.WordPiece(prefix="wor", cleanup=True)
    return Tokenizer(inner)


class ScriptedSession(HashSession):
    """A session that says given ids, one after the other, whatever it is asked."""

    def __init__(self, script: Sequence[int], *, context_tokens: int, vocab_size: int) -> None:
        super().__init__(context_tokens=context_tokens, num_slots=1, vocab_size=vocab_size)
        self._script = list(script)

    def prefill(self, slot: int, token_ids: Sequence[int], *, num_logits: int = 1) -> Logits:
        return self._say(super().prefill(slot, token_ids, num_logits=num_logits))

    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> Logits:
        return self._say(super().decode(slots, token_ids))

    def _say(self, logits: Logits) -> Logits:
        logits[-1, self._script.pop(0)] = 1e6
        return logits


CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def make_engine(byte_tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., LoadedEngine]:
    """An engine that says given texts; an interrupted one is marked by `fail_at`."""

    def make(
        *says: str, model: str = "tiny", context_tokens: int = 600, fail_at: int | None = None
    ) -> LoadedEngine:
        script: list[int] = []
        for text in says:
            script += [*byte_tokenizer.encode(text, add_special=False), 2]
        session = ScriptedSession(
            script, context_tokens=context_tokens, vocab_size=byte_tokenizer.vocab_size
        )
        session.fail_at = fail_at
        manifest = Manifest(
            model=model,
            checkpoint_sha256="",
            precision="fp16",
            kv_precision="fp16",
            profile="cpu",
            backend={"name": "onnxruntime", "version": "0"},
            context_tokens=context_tokens,
            batch=1,
            plan={
                "weights_bytes": 1,
                "workspace_bytes": 1,
                "runtime_bytes": 1,
                "kv_cache_bytes": 1,
                "context_tokens": context_tokens,
                "batch": 1,
            },
            device={},
            build_key="",
        )
        return LoadedEngine(
            directory=tmp_path / "tiny-engine",
            manifest=manifest,
            session=session,
            tokenizer=byte_tokenizer,
            template=ChatTemplate(CHAT_TEMPLATE),
            sampling=Sampling(),
        )

    return make
