"""The messages of one chat, and forgetting the oldest ones when the context is full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgekit.errors import InputError
from edgekit.runtime.template import ChatTemplate
from edgekit.runtime.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What to send for the next answer."""

    token_ids: list[int]
    num_dropped: int
    """Messages that were forgotten to make room, for the user to know."""


class Conversation:
    """A system text and the messages after it, the last one by the user when an answer is due."""

    def __init__(
        self, template: ChatTemplate, tokenizer: Tokenizer, *, system: str | None = None
    ) -> None:
        self.system = system
        """Text of the system message, which is never forgotten; None for no such message."""
        self.messages: list[dict[str, str]] = []
        """`role` and `content`, oldest first, without the system message."""
        self._template = template
        self._tokenizer = tokenizer

    def add(self, role: str, content: str) -> None:
        """Append a message."""
        self.messages.append({"role": role, "content": content})

    def undo(self) -> None:
        """Take back the last message, when it could not be answered."""
        self.messages.pop()

    def clear(self) -> None:
        """Forget every message but the system's."""
        self.messages.clear()

    def prompt(self, *, context_tokens: int, reserve_tokens: int, **variables: Any) -> Prompt:
        """Token ids of the conversation with room for an answer of `reserve_tokens`.

        Where that does not fit, the oldest exchanges (a user message and what follows up to the
        next one) are forgotten for good, but never the last user message; if that one fits
        alone with less room than the reserve, it is sent so. `variables` go to the template.
        Raises `InputError` when even that does not fit, and then nothing is forgotten.
        """
        starts = [i for i, m in enumerate(self.messages) if m["role"] == "user" and i > 0]
        for first in (0, *starts):
            token_ids = self._encode(first, variables)
            if len(token_ids) + reserve_tokens <= context_tokens:
                break
        if len(token_ids) >= context_tokens:
            raise InputError(
                f"the last message needs {len(token_ids)} tokens with the system text, "
                f"the context holds {context_tokens} with at least one for the answer",
                hint="shorten it, or build the engine with a larger `--context`",
            )
        del self.messages[:first]
        return Prompt(token_ids=token_ids, num_dropped=first)

    def _encode(self, first: int, variables: dict[str, Any]) -> list[int]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        text = self._template.render([*system, *self.messages[first:]], **variables)
        return self._tokenizer.encode_chat(text)
