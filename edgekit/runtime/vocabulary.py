"""The bytes of every token, and text to ids without control tokens: what steering works on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import EngineError
from edgekit.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SENTINEL = "\n"


class Vocabulary:
    """What each of V ids adds to a text. Immutable; building it takes about a second per 250,000.

    V is the width of the logits; ids of the tokenizer beyond it are left out.
    Raises `EngineError` where the tokens are no pieces of text.
    """

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int) -> None:
        texts = token_texts(tokenizer, vocab_size=vocab_size)
        self.control_ids = frozenset(i for i, text in enumerate(texts) if not text)
        """Ids that are never text: special tokens, tags like `<think>`, padding of the logits."""
        self.texts: list[bytes] = texts
        """`[V]`, empty for control ids."""
        if len(self.control_ids) == vocab_size:
            raise EngineError("the tokenizer's tokens cannot be told as pieces of text")
        self._tokenizer = tokenizer
        self._id_of: dict[bytes, int] = {}
        for token_id, text in enumerate(texts):
            self._id_of.setdefault(text, token_id)
        self._longest = max(map(len, texts))
        # where such a text is cut after its first character, `encode` finds no token in it
        controls = sorted({text for _, text in _controls(tokenizer)}, key=len, reverse=True)
        self._cut = re.compile("|".join(f"(?<={re.escape(c[0])})(?={re.escape(c[1:])})"
                                        for c in controls if len(c) > 1) or "(?!)")  # fmt: skip

    def encode(self, text: bytes) -> list[int]:
        """Ids whose texts joined are `text`, as the model would write it where that is possible."""
        decoded = text.decode("utf-8", "replace")
        ids: list[int] = []
        for part in self._cut.split(decoded):
            ids += self._encode(part.encode())
        return ids if self.join(ids) == text else self._greedy(text)

    def join(self, ids: Sequence[int]) -> bytes:
        """The text of `ids`."""
        return b"".join([self.texts[i] for i in ids])

    def token_id(self, text: bytes) -> int | None:
        """The id that is exactly this text."""
        return self._id_of.get(text)

    def _encode(self, text: bytes) -> list[int]:
        ids = self._known(self._tokenizer.encode(text.decode(), add_special=False))
        if self.join(ids) == text:
            return ids
        # SentencePiece puts a space before a text: have one there that can be taken away again
        head = self._tokenizer.encode(_SENTINEL, add_special=False)
        ids = self._tokenizer.encode(_SENTINEL + text.decode(), add_special=False)
        tail = self._known(ids[len(head) :])
        return tail if ids[: len(head)] == head and self.join(tail) == text else self._greedy(text)

    def _known(self, ids: list[int]) -> list[int]:
        return [i for i in ids if i < len(self.texts)]

    def _greedy(self, text: bytes) -> list[int]:
        """The longest token at every place; bytes that no token has are left out."""
        ids: list[int] = []
        place = 0
        while place < len(text):
            sizes = range(min(self._longest, len(text) - place), 0, -1)
            found = (self._id_of.get(text[place : place + size]) for size in sizes)
            token_id = next((i for i in found if i is not None), None)
            place += 1 if token_id is None else len(self.texts[token_id])
            ids += [] if token_id is None else [token_id]
        return ids


def token_texts(tokenizer: Tokenizer, *, vocab_size: int) -> list[bytes]:
    """`[V]` what each id adds in the middle of a text; empty for control tokens and unknown ids."""
    controls = {i for i, _ in _controls(tokenizer)} | tokenizer.stop_ids
    num_known = min(vocab_size, _num_ids(tokenizer))
    known = [i for i in range(num_known) if i not in controls and tokenizer.token_text(i)]
    texts = [b""] * vocab_size
    before = tokenizer.encode("a", add_special=False)[-1:]
    start = tokenizer.decode(before)
    for token_id in known:
        token = tokenizer.token_text(token_id) or ""
        if token_id in tokenizer.added_tokens:
            texts[token_id] = token.encode()
        elif tokenizer.is_byte_level:
            texts[token_id] = tokenizer.token_bytes(token_id)
        elif match := _BYTE_TOKEN.fullmatch(token):
            texts[token_id] = bytes([int(match[1], 16)])
        else:
            # every decoder has rules of its own, so ask it what comes behind another token
            text = tokenizer.decode([*before, token_id], skip_special=False)
            if text.startswith(start) and "\ufffd" not in text:
                texts[token_id] = text[len(start) :].encode()
    return texts


def crossing_ids(tokenizer: Tokenizer, close_tag: str) -> NDArray[np.int64]:
    """Ids of tokens that can end `close_tag` and have more than white space after it.

    Such a token begins with any end of the tag, or has the whole tag anywhere: `>{` for
    `</think>`. While they are masked, what follows the tag begins with a token of its own. The
    first kind matters only where the tag is half written, the second kind everywhere.
    """
    tag = close_tag.encode()
    ends = [tag[start:] for start in range(len(tag))]
    texts = token_texts(tokenizer, vocab_size=_num_ids(tokenizer))

    def crosses(text: bytes) -> bool:
        rests = [text[len(end) :] for end in ends if text.startswith(end)]
        _, _, after = text.partition(tag)
        return bool(after.strip()) or any(rest.strip() for rest in rests)

    return np.array([i for i, text in enumerate(texts) if crosses(text)], dtype=np.int64)


def _num_ids(tokenizer: Tokenizer) -> int:
    """One more than the largest id; more than the tokens where some ids have none."""
    return max([tokenizer.vocab_size - 1, *tokenizer.added_tokens]) + 1


def _controls(tokenizer: Tokenizer) -> list[tuple[int, str]]:
    """Added tokens that are no text: special ones and tags. Runs of spaces, for one, are text."""
    return [
        (i, text)
        for i, text in tokenizer.added_tokens.items()
        if tokenizer.is_special(i) or (text.startswith("<") and text.endswith(">"))
    ]
