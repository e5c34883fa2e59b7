"""What one engine's model makes of a request: for `chat` and its one person, for `serve` and many.

Nothing here remembers anything: conversations, slots and queues belong to those who ask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from edgekit.models import find_convention
from edgekit.models.convention import Convention, Think
from edgekit.runtime.answer import Reading, closing_ids
from edgekit.runtime.budget import thinking_limit
from edgekit.runtime.chat_options import ChatOptions
from edgekit.runtime.load import LoadedEngine
from edgekit.runtime.prompt import Message, PromptFormat
from edgekit.runtime.sampling import Sampling
from edgekit.runtime.steer import Constraint
from edgekit.runtime.structure import Structure, StructureCompiler
from edgekit.runtime.tools import Tool
from edgekit.runtime.vocabulary import crossing_ids


class Asker:
    """The conventions of one engine's model. Safe to share between threads.

    `notify` gets a sentence where a convention had to be guessed.
    """

    def __init__(self, engine: LoadedEngine, *, notify: Callable[[str], None]) -> None:
        self.engine = engine
        self.convention = _find_convention(engine, notify)
        self.prompt_format = PromptFormat(engine.template, self.convention)
        self.structures = StructureCompiler(engine.tokenizer, vocab_size=engine.session.vocab_size)

    def sampling(self, mode: Think | None, options: ChatOptions) -> Sampling:
        """What the model's card recommends for a mode, with what the user set in its place."""
        recommended = self.engine.sampling
        if self.convention is not None and mode is not None:
            named: dict[str, Any] = dict(self.convention.sampling(mode))
            recommended = replace(recommended, **named)
        return options.sampling(recommended)

    def thinking_limit(
        self, budget: int, *, prompt_tokens: int, max_new_tokens: int | None
    ) -> int | None:
        """Tokens that thinking may take after such a prompt: see `budget.thinking_limit`.

        `None`: the model does not think.
        """
        if self.convention is None:
            return None
        room = self.engine.session.context_tokens - prompt_tokens
        return thinking_limit(
            budget,
            max_new_tokens=min(max_new_tokens or room, room),
            closing_tokens=len(closing_ids(self.engine.tokenizer, self.convention)),
        )

    def reading(
        self,
        *,
        mode: Think | None,
        limit: int | None,
        starts_inside: bool,
        starts_after: bool,
        stop: Sequence[str] = (),
        tools: Sequence[Tool] = (),
        messages: Sequence[Message] = (),
        structure: Structure | None = None,
    ) -> Reading:
        """How the answer to `messages` is read; `limit` is what `thinking_limit` gave.

        Raises `InputError` where the structure cannot be enforced.
        """
        crossing = None
        if structure is not None and self.convention is not None and mode == "on":
            crossing = crossing_ids(self.engine.tokenizer, self.convention.close_tag)
        return Reading(
            convention=self.convention,
            starts_inside=starts_inside,
            starts_after=starts_after,
            thinking_limit=limit,
            stop=stop,
            tools=tools,
            taken_ids=[call["id"] for m in messages for call in m.get("tool_calls") or ()],
            structure=None if structure is None else self._constraints_of(structure),
            crossing_ids=crossing,
        )

    def _constraints_of(self, structure: Structure) -> Callable[[int], Constraint]:
        compiled = self.structures.compiled(structure)

        def make(num_tokens: int) -> Constraint:
            constraint = compiled.constraint()
            constraint.end_within(num_tokens)
            return constraint

        return make


def _find_convention(engine: LoadedEngine, notify: Callable[[str], None]) -> Convention | None:
    name = engine.manifest.model
    found = find_convention(name, engine.template.source)
    if found is None:
        return None
    convention, source = found
    if source != "its own file":
        notify(
            f"note: edgekit has no file for {name}; judging by {source}, its thinking is "
            f"switched by {convention.summary}"
        )
    return convention
