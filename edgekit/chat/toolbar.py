"""The line at the bottom: model, thinking, context and speed, as much of it as fits."""

from __future__ import annotations

from rich.cells import cell_len

from edgekit.chat.clean import clean_line
from edgekit.chat.context_bar import small_bar
from edgekit.chat.contract import Answer, Chat
from edgekit.errors import InputError

_BETWEEN = " · "


class Toolbar:
    """Counting the context takes tokenizing: done by `update`, between two answers."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._used_tokens = 0
        self._total_tokens = 0
        self._speed = ""

    def update(self) -> None:
        """Look at the conversation again."""
        try:
            use = self._chat.context_use()
        except InputError:  # a conversation that the chat template refuses has no size
            return
        self._used_tokens = sum(tokens for _, tokens in use.parts)
        self._total_tokens = use.total_tokens

    def text(self, answer: Answer | None, width: int) -> str:
        """At most `width` cells; what stands last is left out first."""
        used = self._used_tokens
        if answer is not None:
            made = answer.generation
            used = max(used, made.prompt_tokens + len(made.new_ids))
            if (speed := made.decode_tokens_per_s) is not None:
                self._speed = f"decode {speed:.1f} tokens/s"
        bar = small_bar(used, self._total_tokens)
        parts = [
            clean_line(self._chat.model_name),
            f"{bar} {used:,}/{self._total_tokens:,}",
            self._thinking(),
            self._speed,
        ]
        text = ""
        for part in filter(None, parts):
            longer = f"{text}{_BETWEEN}{part}" if text else part
            if cell_len(longer) <= width:
                text = longer
        return text

    def _thinking(self) -> str:
        if self._chat.think is None:
            return ""
        budget = self._chat.budget
        is_limited = self._chat.think == "on" and budget >= 0
        return f"thinking {self._chat.think}" + (f", up to {budget:,}" if is_limited else "")
