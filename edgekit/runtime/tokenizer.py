"""Text to token ids and back, from the files a checkpoint brings along.

Chat text follows `transformers`: the template writes the BOS itself, so `encode_chat` adds no
special token; only plain text does (`add_special=True`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import tokenizers

from edgekit.errors import EngineError

_SPECIAL_NAMES = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
_END_OF_TURN = (
    "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|im_end|>", "<|end_of_text|>", "<|endoftext|>",
    "<end_of_turn>", "<|end_of_turn|>", "<|END_OF_TURN_TOKEN|>", "<|return|>",
)  # fmt: skip
"""Tokens that end an answer in every model that has them, listed as EOS by the model or not."""
_REBUILD = "build the engine again with `edgekit build`"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, `{}` where there is no such file. Raises `EngineError`."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise EngineError(f"unreadable file {path}: {exc}", hint=_REBUILD) from exc
    if not isinstance(data, dict):
        raise EngineError(f"not a JSON object: {path}", hint=_REBUILD)
    return data


class Tokenizer:
    """A fast tokenizer and the ids that matter to generation. Immutable; safe to share."""

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        eos_ids: Iterable[int] = (),
    ) -> None:
        inner.no_truncation()  # some checkpoints were saved while cutting at 512 tokens
        inner.no_padding()
        self._inner = inner
        self.special_tokens: Mapping[str, str] = MappingProxyType(dict(special_tokens or {}))
        """`bos_token`, `eos_token`, … as text: what chat templates refer to."""
        self.bos_id: int | None = self.id_of(self.special_tokens.get("bos_token"))
        self.stop_ids: frozenset[int] = frozenset(eos_ids) | self._known_stop_ids()
        """Ids that end an answer."""
        self.is_byte_level: bool = _is_byte_level(_decoder_of(inner))
        """Tokens are byte strings, so text can be assembled byte by byte."""
        added = inner.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        self.added_tokens: Mapping[int, str] = MappingProxyType(
            {i: token.content for i, token in added.items()}
        )
        """Texts that `encode` turns into one id wherever they stand, special ones and others."""

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read `tokenizer.json` and, where present, the configuration files beside it.

        Raises `EngineError` when `tokenizer.json` is missing or a file is damaged.
        """
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise EngineError(f"tokenizer file is missing: {path}", hint=_REBUILD)
        try:
            inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as exc:  # the library raises bare Exception for every damage
            raise EngineError(f"unreadable tokenizer {path}: {exc}", hint=_REBUILD) from exc
        special = {
            **_special_tokens(read_json(directory / "special_tokens_map.json")),
            **_special_tokens(read_json(directory / "tokenizer_config.json")),
        }
        return cls(inner, special_tokens=special, eos_ids=_eos_ids(directory))

    @property
    def vocab_size(self) -> int:
        """Tokens with a text; a session's V can be larger, because weights are padded."""
        return self._inner.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids of `text`; special tokens written in it become their ids.

        `add_special` adds what the model expects around plain text, usually a BOS.
        """
        if not text.isascii():  # lone surrogates, from broken JSON or shell input, have no bytes
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self._inner.encode(text, add_special_tokens=add_special).ids

    def encode_chat(self, rendered: str) -> list[int]:
        """Token ids of a rendered chat template, which has its BOS already."""
        return self.encode(rendered, add_special=False)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of `ids`. Incomplete characters become U+FFFD; ids without a text are dropped."""
        return self._inner.decode(list(ids), skip_special_tokens=skip_special)

    def is_special(self, token_id: int) -> bool:
        """Whether `decode` leaves this id out."""
        return token_id in self._special_ids

    def token_text(self, token_id: int) -> str | None:
        """A token as the vocabulary spells it; None for ids outside it."""
        return self._inner.id_to_token(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for. Only where `is_byte_level`."""
        token = self.token_text(token_id) or ""
        table = _byte_of_char()
        if all(char in table for char in token):
            return bytes(table[char] for char in token)
        return token.encode()  # an added token, stored as plain text

    def id_of(self, token: str | None) -> int | None:
        """The id of a token as the vocabulary spells it; None where there is none."""
        return None if token is None else self._inner.token_to_id(token)

    def _known_stop_ids(self) -> set[int]:
        names = (*_END_OF_TURN, self.special_tokens.get("eos_token"))
        return {i for i in map(self.id_of, names) if i is not None}


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name in _SPECIAL_NAMES:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    return found


def _eos_ids(directory: Path) -> list[int]:
    path = directory / "generation_config.json"
    value = read_json(path).get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) for i in ids):
        raise EngineError(f"eos_token_id in {path} is not a token id: {value!r}", hint=_REBUILD)
    return ids


def _decoder_of(inner: tokenizers.Tokenizer) -> dict[str, Any]:
    if inner.decoder is None:
        return {}
    state: dict[str, Any] = json.loads(inner.decoder.__getstate__())
    return state


def _is_byte_level(decoder: Mapping[str, Any]) -> bool:
    if decoder.get("type") == "Sequence":
        first, *rest = decoder.get("decoders") or [{}]
        return _is_byte_level(first) and all(d.get("type") == "Fuse" for d in rest)
    return decoder.get("type") == "ByteLevel"


@cache
def _byte_of_char() -> Mapping[str, int]:
    """The inverse of GPT-2's `bytes_to_unicode`: printable bytes keep their code point, the
    other 68 follow from U+0100 on (Radford et al. 2019, `encoder.py`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    table = {chr(b): b for b in printable}
    return table | {chr(0x100 + n): b for n, b in enumerate(others)}
