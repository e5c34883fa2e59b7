"""A conversation with a loaded engine, without a terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from edgekit.errors import InputError
from edgekit.models import Convention, find_convention
from edgekit.runtime.answer import Answer
from edgekit.runtime.conversation import Conversation
from edgekit.runtime.generate import Generation
from edgekit.runtime.load import LoadedEngine
from edgekit.runtime.sampling import Sampler, Sampling
from edgekit.runtime.slot import Slot

Think = Literal["on", "off"]

_CHUNK_TOKENS = 512
"""Prefill in pieces, so that Ctrl-C need not wait for a long prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """What the user set; None leaves it to the engine. Raises `InputError` on a bad value."""

    think: Think | None = None
    system: str | None = None
    stop: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    """None: the room left in the context."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        self.sampling(Sampling())  # so that a bad value is known before an engine is loaded
        if "" in self.stop:
            raise InputError("a stop string must not be empty")

    def sampling(self, recommended: Sampling) -> Sampling:
        """The recommended sampling with what the user set in its place."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
        given: dict[str, Any] = {n: getattr(self, n) for n in names if getattr(self, n) is not None}
        return replace(recommended, **given)


class Chat:
    """Asks the engine and remembers what was said. `notify` gets sentences for the user."""

    def __init__(
        self, engine: LoadedEngine, options: ChatOptions, *, notify: Callable[[str], None]
    ) -> None:
        self._engine = engine
        self._options = options
        self._notify = notify
        self._convention = find_convention(engine.manifest.model)
        self._slot = Slot(engine.session)
        self._sampler = Sampler(options.sampling(engine.sampling))
        self._conversation = Conversation(engine.template, engine.tokenizer, system=options.system)
        self._system = options.system
        self._think: Think | None = None
        if options.think is not None:
            self.set_think(options.think)
        elif self._convention is not None:
            self.set_think("on")  # what such a model does when it is not told, but surely

    @property
    def engine_name(self) -> str:
        """The directory of the engine."""
        return str(self._engine.directory)

    @property
    def messages(self) -> list[dict[str, str]]:
        """What was said, oldest first; not to be changed."""
        return self._conversation.messages

    def set_system(self, text: str | None) -> None:
        """Change the instructions before the next answer; None for none."""
        self._system = text
        self._update_system()

    def set_think(self, mode: Think) -> None:
        """Switch thinking, with the sampling that the model's card names for it.

        What the user set stays. Raises `InputError` when the model has no such switch.
        """
        convention = self._convention
        if convention is None:
            raise InputError(
                f"this model has no switch for thinking: {self._engine.manifest.model}",
                hint="leave out `--think`",
            )
        self._think = mode
        self._update_system()
        named: dict[str, Any] = dict(
            convention.sampling_on if mode == "on" else convention.sampling_off
        )
        self._sampler = Sampler(self._options.sampling(replace(self._engine.sampling, **named)))
        if mode == "on" and self._sampler.sampling.temperature == 0:
            self._notify("note: thinking at temperature 0 tends to repeat itself without end")

    def reset(self) -> None:
        """Forget the conversation."""
        self._conversation.clear()

    def ask(self, text: str) -> Answer:
        """Add a message and prepare its answer, which is made while it is iterated.

        Hand the answer to `keep` afterwards, whether or not it was completed. Raises
        `InputError`, and then nothing was added.
        """
        context_tokens = self._slot.context_tokens
        limit = self._options.max_new_tokens
        self._conversation.add("user", text)
        try:
            prompt = self._conversation.prompt(
                context_tokens=context_tokens,
                reserve_tokens=min(limit or context_tokens // 4, context_tokens // 2),
            )
        except InputError:
            self._conversation.undo()
            raise
        if prompt.num_dropped:
            self._notify(
                f"note: the context of {context_tokens} tokens is full, "
                f"forgot the oldest {prompt.num_dropped} messages"
            )
        generation = Generation(
            self._slot,
            prompt.token_ids,
            sampler=self._sampler,
            max_new_tokens=limit,
            stop_ids=self._engine.tokenizer.stop_ids,
            chunk_tokens=_CHUNK_TOKENS,
        )
        return Answer(generation, self._engine.tokenizer, stop=self._options.stop)

    def keep(self, answer: Answer) -> None:
        """Remember what was said of an answer, without the thinking before it.

        A question that got not a word before Ctrl-C is forgotten.
        """
        said = _without_thinking(answer.text, self._convention)
        if said or answer.generation.finish_reason is not None:
            self._conversation.add("assistant", said)
        else:
            self._conversation.undo()

    def _update_system(self) -> None:
        toggle = None
        if self._convention is not None and self._think is not None:
            toggle = self._convention.system_text(self._think)
        parts = [part for part in (toggle, self._system) if part]
        self._conversation.system = "\n\n".join(parts) if parts else None


def _without_thinking(text: str, convention: Convention | None) -> str:
    """What comes after the thinking; nothing when the thinking has not ended."""
    if convention is None:
        return text
    _, tag, after = text.rpartition(convention.close_tag)
    if tag:
        return after.lstrip()
    return "" if after.lstrip().startswith(convention.open_tag) else text
