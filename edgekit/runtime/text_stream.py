"""Token ids to text while they come: nothing shown is ever taken back.

The pieces joined are exactly what `Tokenizer.decode` makes of all ids, up to the first stop
string. Held back are: bytes of an unfinished character, a run of byte-fallback tokens (which
`decode` turns into U+FFFD as a whole if one is wrong), and text that may become a stop string.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Sequence
from typing import Protocol

from edgekit.errors import InputError
from edgekit.runtime.tokenizer import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class _Detokenizer(Protocol):
    def push(self, token_id: int) -> str: ...

    def finish(self) -> str: ...


class StopStrings:
    """Text up to the first of some strings; nothing given is ever taken back."""

    def __init__(self, strings: Sequence[str] = ()) -> None:
        if "" in strings:
            raise InputError("a stop string must not be empty")
        self._strings = tuple(strings)
        self._held = ""
        self.stopped: str | None = None
        """The stop string that ended the text."""

    def push(self, text: str) -> str:
        """Take more text; returns what no stop string can claim any more.

        Of several stop strings the one that is complete first counts, the longest of those that
        end together; so the cut does not depend on how the text came in pieces.
        """
        if not text or self.stopped is not None:
            return ""
        text = self._held + text
        places = ((text.find(s), s) for s in self._strings)
        found = [(at + len(s), at, s) for at, s in places if at >= 0]
        if found:
            _, at, self.stopped = min(found)
            self._held = ""
            return text[:at]
        hold = self._possible_stop(text)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def finish(self) -> str:
        """The text still held back, when no more comes. Empty on the second call."""
        text, self._held = self._held, ""
        return text

    def _possible_stop(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = max(map(len, self._strings), default=1) - 1
        lengths = range(min(longest, len(text)), 0, -1)
        return next((n for n in lengths if any(s.startswith(text[-n:]) for s in self._strings)), 0)


class TextStream:
    """The text of one answer. Each token costs the same, however long the answer is.

    Special tokens have no text, but for those of `keep_ids`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        skip_special: bool = True,
        keep_ids: Collection[int] = (),
    ) -> None:
        make = _ByteDetokenizer if tokenizer.is_byte_level else _WindowDetokenizer
        self._detokenizer: _Detokenizer = make(tokenizer)
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._keep_ids = frozenset(keep_ids)
        self._stop = StopStrings(stop)

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text."""
        return self._stop.stopped

    def push(self, token_id: int) -> str:
        """Take the next token; returns the text that is certain now, often `""`."""
        if self.stopped is not None or self._is_skipped(token_id):
            return ""
        return self._stop.push(self._detokenizer.push(token_id))

    def finish(self) -> str:
        """The text still held back, when no more tokens come. Empty on the second call."""
        if self.stopped is not None:
            return ""
        text = self._stop.push(self._detokenizer.finish())
        return text + self._stop.finish()

    def _is_skipped(self, token_id: int) -> bool:
        is_special = self._skip_special and self._tokenizer.is_special(token_id)
        return is_special and token_id not in self._keep_ids


class _ByteDetokenizer:
    """For byte-level vocabularies: bytes through an incremental UTF-8 decoder.

    Python replaces an invalid sequence as the Unicode standard recommends (section 3.9,
    "maximal subparts"), and so does the tokenizer's own decoder.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._utf8.decode(self._token_bytes(token_id))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class _WindowDetokenizer:
    """For every other vocabulary: decode a short window, give what was added to it.

    The window begins at the piece before the last one given, so that a rule about the first
    token (SentencePiece drops its leading space) acts on text that was given already.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._num_given = 0

    def push(self, token_id: int) -> str:
        token = self._tokenizer.token_text(token_id)
        if token is None:
            return ""  # outside the vocabulary: `decode` drops it too
        self._window.append(token_id)
        if _BYTE_TOKEN.fullmatch(token):
            return ""
        return self._advance(is_final=False)

    def finish(self) -> str:
        return self._advance(is_final=True)

    def _advance(self, *, is_final: bool) -> str:
        given = self._decode(self._window[: self._num_given])
        text = self._decode(self._window)
        is_certain = text.startswith(given) and not text.endswith("\ufffd")
        if not is_final and (len(text) <= len(given) or not is_certain):
            return ""
        del self._window[: self._num_given]
        self._num_given = len(self._window)
        return text[len(given) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special=False)
