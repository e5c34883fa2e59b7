"""Blocks of an answer as output items of OpenAI's Responses interface, and their events."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from edgekit.runtime.tokenizer import Tokenizer
from edgekit.serve.blocks import Block, Change
from edgekit.serve.logprobs import logprobs_of

_PREFIXES = {"thinking": "rs", "text": "msg", "call": "fc"}
Event = tuple[str, dict[str, Any]]


class Items:
    """Items of one answer. `as_summary`: what was thought comes as a summary, which is all of it.

    `with_digest`: a reasoning item has an `encrypted_content`, which clients without a stored
    response send back. Past thinking is never read again, so a digest is enough.
    """

    def __init__(
        self, token: str, tokenizer: Tokenizer, *, as_summary: bool, with_digest: bool
    ) -> None:
        self._token = token
        self._tokenizer = tokenizer
        self._as_summary = as_summary
        self._with_digest = with_digest

    def item(self, block: Block, status: str) -> dict[str, Any]:
        """An item with what it holds so far."""
        head = {"id": self._id(block), "status": status}
        if block.kind == "call":
            assert block.call is not None
            return {
                **head,
                "type": "function_call",
                "call_id": block.call.id,
                "name": block.call.name,
                "arguments": block.text,
            }
        parts = [self._part(block)] if block.text else []
        if block.kind == "text":
            return {**head, "type": "message", "role": "assistant", "content": parts}
        digest = hashlib.sha256(block.text.encode(errors="replace")).hexdigest()
        return {
            **head,
            "type": "reasoning",
            "summary": parts if self._as_summary else [],
            "content": None if self._as_summary else parts,
            "encrypted_content": digest if self._with_digest and block.text else None,
        }

    def events(self, change: Change, *, status: str) -> Iterator[Event]:
        """The events of a change; `status` is that of the item if this is its end."""
        block = change.block
        extra: dict[str, Any] = {}
        if block.kind == "text":
            steps = block.steps if change.what == "end" else change.steps
            extra = {"logprobs": logprobs_of(self._tokenizer, steps)}
        if change.what == "begin":
            item = self.item(block, "in_progress")
            yield "response.output_item.added", {"output_index": block.index, "item": item}
            yield from self._part_events(block, "added")
        elif change.what == "more":
            kind, place = self._text_event(block)
            yield f"{kind}.delta", {**place, "delta": change.text, **extra}
        else:
            kind, place = self._text_event(block)
            name = "arguments" if block.kind == "call" else "text"
            yield f"{kind}.done", {**place, name: block.text, **extra}
            yield from self._part_events(block, "done")
            item = self.item(block, status)
            yield "response.output_item.done", {"output_index": block.index, "item": item}

    def _part_events(self, block: Block, what: str) -> Iterator[Event]:
        if block.kind == "call":
            return
        _, place = self._text_event(block)
        is_summary = block.kind == "thinking" and self._as_summary
        name = "reasoning_summary_part" if is_summary else "content_part"
        yield f"response.{name}.{what}", {**place, "part": self._part(block)}

    def _text_event(self, block: Block) -> Event:
        """The name of the events of a block's text, and where it is."""
        place: dict[str, Any] = {"item_id": self._id(block), "output_index": block.index}
        if block.kind == "call":
            named = {"name": block.call.name} if block.call is not None else {}
            return "response.function_call_arguments", {**place, **named}
        if block.kind == "text":
            return "response.output_text", {**place, "content_index": 0}
        if self._as_summary:
            return "response.reasoning_summary_text", {**place, "summary_index": 0}
        return "response.reasoning_text", {**place, "content_index": 0}

    def _part(self, block: Block) -> dict[str, Any]:
        if block.kind == "text":
            logprobs = logprobs_of(self._tokenizer, block.steps)
            return {
                "type": "output_text",
                "text": block.text,
                "annotations": [],
                "logprobs": logprobs,
            }
        kind = "summary_text" if self._as_summary else "reasoning_text"
        return {"type": kind, "text": block.text}

    def _id(self, block: Block) -> str:
        return f"{_PREFIXES[block.kind]}_{self._token}{block.index}"
