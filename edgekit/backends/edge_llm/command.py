"""The command lines of Edge-LLM: every size written out, nothing left to defaults.

Its own defaults are of no use: 32 tokens of input, 96 of cache and one conversation on the command
line (`experimental/builder/cli.py` of 0.11.0), other ones in Python.
"""

from __future__ import annotations

from dataclasses import dataclass

TOKENS_PER_PAGE = 128
"""Of its KV cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The three sizes that an engine is built with."""

    max_input_tokens: int
    """Of one prompt."""
    kv_capacity_tokens: int
    """Of one conversation, prompt and answer."""
    batch: int
    """Conversations at once."""

    def __post_init__(self) -> None:
        sizes = (self.max_input_tokens, self.kv_capacity_tokens, self.batch)
        if min(sizes) < 1 or self.max_input_tokens > self.kv_capacity_tokens:
            raise ValueError(f"sizes of no engine: {self}")
