"""The messages of one chat, and forgetting the oldest ones when the context is full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.errors import InputError
from edgekit.models.convention import Think
from edgekit.runtime.prompt import Message, PromptFormat
from edgekit.runtime.tokenizer import Tokenizer
from edgekit.runtime.tools import Tool


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What to send for the next answer."""

    token_ids: list[int]
    num_dropped: int
    """Messages that were forgotten to make room, for the user to know."""
    starts_inside: bool
    """The prompt ends within a thinking block."""
    starts_after: bool
    """The prompt ends with a thinking block that is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextUse:
    """What fills the context, in tokens."""

    total_tokens: int
    parts: list[tuple[str, int]]
    """`system` (toggle included), `tools`, `conversation`: what the next prompt would hold."""
    reserve_tokens: int
    """Of the free ones, kept for the next answer: the oldest messages go before these do."""

    @property
    def free_tokens(self) -> int:
        """Room for the next question and its answer; negative: the oldest must be forgotten."""
        return self.total_tokens - sum(tokens for _, tokens in self.parts)


class Conversation:
    """Instructions, tools and the messages so far, the last one by the user or a tool when an
    answer is due."""

    def __init__(self, prompt_format: PromptFormat, tokenizer: Tokenizer) -> None:
        self.system: str | None = None
        """The user's own instructions, which are never forgotten."""
        self.think: Think | None = None
        self.tools: tuple[Tool, ...] = ()
        self.messages: list[Message] = []
        """In OpenAI's format, oldest first, without a system message."""
        self._format = prompt_format
        self._tokenizer = tokenizer

    def add(self, role: str, content: str) -> None:
        """Append a message."""
        self.messages.append({"role": role, "content": content})

    def prompt(
        self,
        *,
        context_tokens: int,
        reserve_tokens: int,
        think: Think | None,
        must_think: bool = False,
    ) -> Prompt:
        """Token ids of the conversation with room for an answer of `reserve_tokens`.

        Where that does not fit, the oldest exchanges (a user message and what follows up to the
        next one) are forgotten for good, but never the last user message; if that one fits
        alone with less room than the reserve, it is sent so. Raises `InputError` when even that
        does not fit, and then nothing is forgotten.
        """
        starts = [i for i, m in enumerate(self.messages) if m["role"] == "user" and i > 0]
        for first in (0, *starts):
            text = self._format.render(
                self.messages[first:],
                system=self.system,
                think=think,
                tools=self.tools,
                must_think=must_think,
            )
            token_ids = self._tokenizer.encode_chat(text.text)
            if len(token_ids) + reserve_tokens <= context_tokens:
                break
        if len(token_ids) >= context_tokens:
            raise InputError(
                f"the last message needs {len(token_ids)} tokens with the system text, "
                f"the context holds {context_tokens} with at least one for the answer",
                hint="shorten it, or build the engine with a larger `--context`",
            )
        del self.messages[:first]
        return Prompt(
            token_ids=token_ids,
            num_dropped=first,
            starts_inside=text.starts_inside,
            starts_after=text.starts_after,
        )

    def use(self, *, context_tokens: int, reserve_tokens: int) -> ContextUse:
        """What the next prompt would hold. Raises `InputError` where the template refuses."""
        nothing = [{"role": "user", "content": ""}]
        with_system = self._count(nothing, self.system, ())
        with_tools = self._count(nothing, self.system, self.tools)
        whole = self._count(self.messages or nothing, self.system, self.tools)
        return ContextUse(
            total_tokens=context_tokens,
            parts=[
                ("system", with_system),
                ("tools", with_tools - with_system),
                ("conversation", whole - with_tools),
            ],
            reserve_tokens=reserve_tokens,
        )

    def _count(self, messages: Sequence[Message], system: str | None, tools: Sequence[Tool]) -> int:
        text = self._format.render(messages, system=system, think=self.think, tools=tools)
        return len(self._tokenizer.encode_chat(text.text))
