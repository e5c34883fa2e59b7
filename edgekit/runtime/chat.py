"""A conversation with a loaded engine, without a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from edgekit.errors import InputError
from edgekit.models.convention import Convention, Think
from edgekit.runtime.answer import Answer, Reading
from edgekit.runtime.asking import Asker
from edgekit.runtime.budget import NO_CAP, check_budget
from edgekit.runtime.chat_options import ChatOptions
from edgekit.runtime.conversation import ContextUse, Conversation, Prompt
from edgekit.runtime.drafters import make_lookup
from edgekit.runtime.generate import Generation
from edgekit.runtime.load import LoadedEngine
from edgekit.runtime.prompt import Message
from edgekit.runtime.sampling import Sampler
from edgekit.runtime.slot import Slot
from edgekit.runtime.steer import Drafter
from edgekit.runtime.streamed import StreamedGeneration
from edgekit.runtime.token_source import TokenSource
from edgekit.runtime.tools import Tool, read_tools

_CHUNK_TOKENS = 512
"""Prefill in pieces, so that Ctrl-C need not wait for a long prompt."""


class Chat:
    """Asks the engine and remembers what was said. `notify` gets sentences for the user."""

    def __init__(
        self,
        engine: LoadedEngine,
        options: ChatOptions,
        *,
        notify: Callable[[str], None],
        drafter: Drafter | None = None,
    ) -> None:
        if engine.stream is not None and (drafter or options.structure):
            raise InputError(
                "this engine's backend shows no logits, which drafts and structures need",
                hint="leave them out, or build the engine for another `--backend`",
            )
        self._engine = engine
        self._options = options
        self._notify = notify
        self._drafter = drafter
        self._asker = Asker(engine, notify=notify)
        self._convention = self._asker.convention
        self._slot = Slot(engine.session)
        self._sampler = self._sampler_of(None)
        self._before: list[Message] = []
        """What was said before the answer that is being made."""
        self._conversation = Conversation(self._asker.prompt_format, engine.tokenizer)
        self._cap = NO_CAP
        if options.structure is not None:
            self._asker.structures.constraint(options.structure)  # so that a bad one is known now
        self._begin()

    def _begin(self) -> None:
        """The mode and the instructions that the user set, or that the model has by default."""
        convention, options = self._convention, self._options
        text, mode = options.system, options.think
        if convention is not None:
            mode = mode or convention.mode_in(text or "") or convention.default
            text = convention.without_toggle(text or "")
        self._conversation.system = text or None
        if mode is not None:
            self.set_think(mode)
        if options.budget is not None:
            self.set_budget(options.budget)

    @property
    def engine_name(self) -> str:
        """The directory of the engine."""
        return str(self._engine.directory)

    @property
    def model_name(self) -> str:
        """The model's name."""
        return self._engine.manifest.model

    @property
    def messages(self) -> list[Message]:
        """What was said, oldest first, in OpenAI's format; not to be changed."""
        return self._conversation.messages

    @property
    def system(self) -> str | None:
        """The user's instructions."""
        return self._conversation.system

    @property
    def think(self) -> Think | None:
        """The mode; None when the model has no switch."""
        return self._conversation.think

    @property
    def budget(self) -> int:
        """Tokens of thinking for each answer: -1 no cap, 0 none."""
        return self._cap if self.think == "on" else 0

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The declared tools."""
        return self._conversation.tools

    def set_system(self, text: str | None) -> None:
        """Change the instructions before the next answer; None for none.

        The model's own words for thinking or not, found in them, switch it and are taken out.
        """
        mode = self._convention.mode_in(text) if self._convention and text else None
        if self._convention is not None and text and mode is not None:
            self.set_think(mode)
            text = self._convention.without_toggle(text)
        self._conversation.system = text or None

    def set_tools(self, data: Any) -> None:
        """Declare tools, in OpenAI's format, in place of those before; None for none."""
        self._conversation.tools = () if data is None else read_tools(data)

    def set_think(self, mode: Think) -> None:
        """Switch thinking, with the sampling that the model's card names for it.

        What the user set stays. Raises `InputError` when the model has no such switch.
        """
        self._require_convention("its answers come without thinking: leave out `--think`")
        self._conversation.think = mode
        self._sampler = self._sampler_of(mode)
        if mode == "on" and self._sampler.sampling.temperature == 0:
            self._notify("note: thinking at temperature 0 tends to repeat itself without end")

    def set_budget(self, budget: int) -> None:
        """Cap the thinking of each answer, in tokens; 0 switches it off, -1 takes the cap away.

        Raises `InputError` on a bad value, and when the model does not think.
        """
        self._require_convention("leave out `--think-budget`")
        if check_budget(budget) == 0:
            self.set_think("off")
            return
        self._cap = budget
        if self.think == "off":
            self.set_think("on")

    def reset(self) -> None:
        """Forget the conversation."""
        self._conversation.messages.clear()

    def load(self, messages: Sequence[Message]) -> None:
        """Go on with another conversation, in OpenAI's format, without a system message."""
        self._conversation.messages[:] = messages

    def context_use(self) -> ContextUse:
        """What fills the context. Raises `InputError` where the chat template refuses."""
        return self._conversation.use(
            context_tokens=self._slot.context_tokens, reserve_tokens=self._reserve_tokens
        )

    def ask(self, text: str) -> Answer:
        """Add a message and prepare its answer, which is made while it is iterated.

        Hand the answer to `keep` afterwards, whether or not it was completed. Raises
        `InputError`, and then nothing was added.
        """
        return self._answer([*self.messages, {"role": "user", "content": text}])

    def retry(self) -> Answer:
        """Answer the last question again. Raises `InputError` when there is none."""
        last = self._last_question()
        return self._answer(self.messages[: last + 1])

    def edit(self, text: str) -> Answer:
        """Ask something else in place of the last question. Raises `InputError`."""
        last = self._last_question()
        return self._answer([*self.messages[:last], {"role": "user", "content": text}])

    def give_results(self, results: Sequence[tuple[str, str]]) -> Answer:
        """Go on with what the tools returned: the id of every open call, and its result's text.

        Raises `InputError` when an id is unknown or missing.
        """
        calls = self.messages[-1].get("tool_calls", []) if self.messages else []
        names = {call["id"]: call["function"]["name"] for call in calls}
        given = [call_id for call_id, _ in results]
        if not names or sorted(given) != sorted(names):
            raise InputError(
                f"the open tool calls are {sorted(names)}, results were given for {given}",
                hint="give one result for each open call, or ask something else",
            )
        new = [
            {"role": "tool", "tool_call_id": call_id, "name": names[call_id], "content": text}
            for call_id, text in results
        ]
        return self._answer([*self.messages, *new])

    def keep(self, answer: Answer) -> None:
        """Remember an answer; its thinking is kept, but never sent to the model again.

        When Ctrl-C came before the first word, all is as it was before the question, or before
        the answer that was to be another one.
        """
        answer.finish()  # what an interrupt left half read
        if not answer.text and not answer.tool_calls and answer.generation.finish_reason is None:
            self._conversation.messages[:] = self._before
            return
        message: Message = {"role": "assistant", "content": answer.text}
        if thought := answer.thinking.strip():
            message["reasoning_content"] = thought
        if answer.tool_calls:
            message["tool_calls"] = [call.to_dict() for call in answer.tool_calls]
        self.messages.append(message)

    def _answer(self, messages: list[Message]) -> Answer:
        before = list(self.messages)
        self._conversation.messages[:] = messages
        try:
            answer = self._begin_answer()
        except BaseException:
            self._conversation.messages[:] = before
            raise
        self._before = before
        return answer

    def _begin_answer(self) -> Answer:
        """Prepare the answer to the messages that there are."""
        prompt, mode, limit = self._prompt()
        if prompt.num_dropped:
            self._notify(
                f"note: the context of {self._slot.context_tokens} tokens is full, "
                f"forgot the oldest {prompt.num_dropped} messages"
            )
        sampler = self._sampler if mode == self.think else self._sampler_of(mode)
        generation: TokenSource
        if self._engine.stream is not None:
            generation = StreamedGeneration(
                self._engine.stream,
                prompt.token_ids,
                sampling=sampler.sampling,
                max_new_tokens=self._options.max_new_tokens,
                stop_ids=self._engine.tokenizer.stop_ids,
            )
        else:
            generation = Generation(
                self._slot,
                prompt.token_ids,
                sampler=sampler,
                max_new_tokens=self._options.max_new_tokens,
                stop_ids=self._engine.tokenizer.stop_ids,
                chunk_tokens=_CHUNK_TOKENS,
                drafter=self._make_drafter(),
            )
        return Answer(generation, self._engine.tokenizer, self._reading(prompt, mode, limit))

    def _sampler_of(self, mode: Think | None) -> Sampler:
        return Sampler(self._asker.sampling(mode, self._options))

    def _prompt(self) -> tuple[Prompt, Think | None, int | None]:
        """The prompt, the mode it asks for, and the tokens that thinking may take."""
        prompt = self._prompt_for(self.think)
        if self._convention is None or self.think != "on":
            return prompt, self.think, 0 if self._convention else None
        limit = self._asker.thinking_limit(
            self._cap,
            prompt_tokens=len(prompt.token_ids),
            max_new_tokens=self._options.max_new_tokens,
        )
        if limit == 0:
            self._notify("note: too few new tokens are left to think and answer: not thinking")
            off = self._prompt_for("off")
            return replace(off, num_dropped=off.num_dropped + prompt.num_dropped), "off", 0
        return prompt, "on", limit

    def _prompt_for(self, mode: Think | None) -> Prompt:
        return self._conversation.prompt(
            context_tokens=self._slot.context_tokens,
            reserve_tokens=self._reserve_tokens,
            think=mode,
            must_think=self._options.structure is not None,
        )

    def _reading(self, prompt: Prompt, mode: Think | None, limit: int | None) -> Reading:
        return self._asker.reading(
            mode=mode,
            limit=limit,
            starts_inside=prompt.starts_inside,
            starts_after=prompt.starts_after,
            stop=self._options.stop,
            tools=self.tools,
            messages=self.messages,
            structure=self._options.structure,
        )

    def _make_drafter(self) -> Drafter | None:
        if self._drafter is not None:
            return self._drafter
        return make_lookup(self._engine) if self._options.lookup else None

    def _require_convention(self, hint: str) -> Convention:
        if self._convention is None:
            raise InputError(f"this model has no switch for thinking: {self.model_name}", hint=hint)
        return self._convention

    @property
    def _reserve_tokens(self) -> int:
        """Room that an answer gets, if need be in place of the oldest messages."""
        context_tokens = self._slot.context_tokens
        return min(self._options.max_new_tokens or context_tokens // 4, context_tokens // 2)

    def _last_question(self) -> int:
        places = [i for i, m in enumerate(self.messages) if m["role"] == "user"]
        if not places:
            raise InputError("there is no question yet", hint="type one")
        return places[-1]
