"""What the terminal asks of a conversation. `edgekit.runtime.chat` is the one that answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

from edgekit.runtime.piece import Piece, ToolCall

Think = Literal["on", "off"]


class Tool(Protocol):
    """A function that the model may ask for."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...


class ContextUse(Protocol):
    """What fills the context, in tokens."""

    @property
    def total_tokens(self) -> int:
        """What the context holds."""
        ...

    @property
    def parts(self) -> Sequence[tuple[str, int]]:
        """Name and tokens of what is in it, in order."""
        ...

    @property
    def reserve_tokens(self) -> int:
        """Of the free ones: kept for the next answer."""
        ...


class Made(Protocol):
    """Measures of an answer, also while it is made; see `edgekit.runtime.generate`."""

    @property
    def new_ids(self) -> Sequence[int]: ...

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def decode_tokens_per_s(self) -> float | None: ...


class Answer(Protocol):
    """One answer while it is made. Iterated once, by one thread."""

    @property
    def thinking(self) -> str: ...

    @property
    def text(self) -> str: ...

    @property
    def tool_calls(self) -> Sequence[ToolCall]: ...

    @property
    def is_thinking(self) -> bool: ...

    @property
    def thinking_tokens(self) -> int: ...

    @property
    def generation(self) -> Made: ...

    def __iter__(self) -> Iterator[Piece]: ...

    def answer_now(self) -> None:
        """Stop thinking at the next token. From any thread."""
        ...

    def stop(self) -> None:
        """End after the next token, without a finish reason. From any thread."""
        ...

    def to_dict(self) -> dict[str, Any]: ...

    def describe(self) -> str: ...


class Chat(Protocol):
    """A conversation. One owner at a time; every answer is handed to `keep` before the next."""

    @property
    def engine_name(self) -> str: ...

    @property
    def model_name(self) -> str: ...

    @property
    def think(self) -> Think | None:
        """None: the model has no switch."""
        ...

    @property
    def budget(self) -> int:
        """Thinking tokens: -1 no cap, 0 none."""
        ...

    @property
    def system(self) -> str | None: ...

    @property
    def tools(self) -> Sequence[Tool]: ...

    @property
    def messages(self) -> list[dict[str, Any]]:
        """OpenAI's format, oldest first, without the system message."""
        ...

    def ask(self, text: str) -> Answer: ...

    def retry(self) -> Answer: ...

    def edit(self, text: str) -> Answer: ...

    def give_results(self, results: Sequence[tuple[str, str]]) -> Answer: ...

    def keep(self, answer: Any) -> None: ...

    def set_think(self, mode: Think) -> None: ...

    def set_budget(self, tokens: int) -> None: ...

    def set_system(self, text: str | None) -> None: ...

    def set_tools(self, data: list[Any] | None) -> None: ...

    def reset(self) -> None: ...

    def load(self, messages: list[dict[str, Any]]) -> None: ...

    def context_use(self) -> ContextUse: ...
