"""The text of an answer while it is made: a `Generation` seen through a `TextStream`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from edgekit.runtime.generate import Generation
from edgekit.runtime.text_stream import TextStream
from edgekit.runtime.tokenizer import Tokenizer


class Answer:
    """Iterate it once for the text in pieces; `text` and `generation` hold what came so far."""

    def __init__(
        self, generation: Generation, tokenizer: Tokenizer, *, stop: Sequence[str] = ()
    ) -> None:
        self.generation = generation
        self.text = ""
        """Everything given so far; complete when the iteration ended, also by Ctrl-C."""
        self._stream = TextStream(tokenizer, stop)

    def __iter__(self) -> Iterator[str]:
        for step in self.generation:
            yield from self._given(self._stream.push(step.token_id))
            if self._stream.stopped is not None:
                self.generation.finish("stop")
                return
        yield from self._given(self._stream.finish())
        if self._stream.stopped is not None:
            self.generation.finish("stop")

    def _given(self, text: str) -> Iterator[str]:
        if text:
            self.text += text
            yield text

    def to_dict(self) -> dict[str, Any]:
        """The answer and its measures as JSON types; a measure that needs more tokens is null."""
        made = self.generation
        return {
            "prompt_tokens": made.prompt_tokens,
            "cached_tokens": made.cached_tokens,
            "new_tokens": len(made.new_ids),
            "finish_reason": made.finish_reason,
            "text": self.text,
            "ttft_ms": made.ttft_ms,
            "prefill_tokens_per_s": made.prefill_tokens_per_s,
            "decode_tokens_per_s": made.decode_tokens_per_s,
        }

    def describe(self) -> str:
        """One line of the same measures for people."""
        made = self.generation
        parts = [f"{made.prompt_tokens} prompt tokens ({made.cached_tokens} cached)"]
        parts.append(f"{len(made.new_ids)} new tokens")
        if made.ttft_ms is not None:
            parts.append(f"TTFT {made.ttft_ms:.0f} ms")
        if made.prefill_tokens_per_s is not None:
            parts.append(f"prefill {made.prefill_tokens_per_s:.1f} tokens/s")
        if made.decode_tokens_per_s is not None:
            parts.append(f"decode {made.decode_tokens_per_s:.1f} tokens/s")
        return ", ".join(parts)
