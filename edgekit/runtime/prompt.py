"""From a conversation to the text that the model sees: toggle, instructions, tools, past thinking.

The chat template of the checkpoint writes the text. What this module decides is what goes in:

- the toggle of the model's convention, always, in the system message or as a variable;
- the user's own system text where the model card wants it: below the toggle, or before the first
  question;
- tools through the template where it takes them, else in the model's own words for them;
- past answers without their thinking;
- for an answer without thinking, a beginning that leaves no room for a block; for one that must
  think, the opening tag.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from edgekit.models.convention import Convention, Think
from edgekit.runtime.split import Splitter
from edgekit.runtime.template import REASONING_NAMES, ChatTemplate
from edgekit.runtime.tools import TOOL_FORMATS, Tool, lower_messages

Message = dict[str, Any]
"""`role`, `content` and whatever else OpenAI's message format has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptText:
    """A rendered conversation."""

    text: str
    starts_inside: bool = False
    """The text ends within a thinking block: the model goes on thinking."""
    starts_after: bool = False
    """The text ends with a thinking block that is over: the model answers."""


class PromptFormat:
    """How one model is asked. Immutable; safe to share."""

    def __init__(self, template: ChatTemplate, convention: Convention | None) -> None:
        self.convention = convention
        self._template = template

    def render(
        self,
        messages: Sequence[Message],
        *,
        system: str | None = None,
        think: Think | None = None,
        tools: Sequence[Tool] = (),
        must_think: bool = False,
    ) -> PromptText:
        """The prompt for the next answer to `messages`, which hold no system message.

        `think` None stands for the convention's own default. `must_think` opens the block itself,
        where the model would be free not to. Raises `InputError` where the template refuses.
        """
        convention = self.convention
        mode = think or (convention.default if convention else None)
        variables: dict[str, Any] = {}
        shown = [self._without_thinking(message) for message in messages]
        heads = []
        if convention is not None and mode is not None:
            if toggle := convention.toggle_text(mode):
                heads.append(toggle)
            if convention.toggle == "variable":
                variables[convention.variable] = mode == "on"
        if self._template.takes_tools:
            shown = [_with_plain_arguments(message) for message in shown]
            if tools:
                variables["tools"] = [tool.to_dict() for tool in tools]
        else:
            form = TOOL_FORMATS[convention.tool_format if convention else "hermes"]
            # calls of the past too, when their tools are gone
            shown = lower_messages(shown, form)
            if tools:
                heads.append(form.system_text(tools))
        if system and convention is not None and convention.instructions == "user":
            shown = _before_first_question(shown, system)
        elif system:
            # instructions come between the toggle and the tools
            heads.insert(1 if convention and mode and convention.toggle_text(mode) else 0, system)
        if heads:
            shown = [{"role": "system", "content": "\n\n".join(heads)}, *shown]
        text = self._template.render(shown, **variables)
        return self._begun(text, mode, must_think=must_think)

    def _begun(self, text: str, mode: Think | None, *, must_think: bool) -> PromptText:
        """The prompt with the beginning of the answer that its mode asks for."""
        convention = self.convention
        if convention is None or mode is None:
            return PromptText(text=text)
        is_open = text.rstrip().endswith(convention.open_tag)
        if mode == "on":
            if must_think and not is_open:
                text, is_open = f"{text}{convention.open_tag}\n", True
            return PromptText(text=text, starts_inside=is_open)
        if is_open:  # the template has opened the block already
            text = text.rstrip().removesuffix(convention.open_tag)
        if not text.rstrip().endswith(convention.close_tag):
            text += convention.off_prefill
        return PromptText(text=text, starts_after=True)

    def _without_thinking(self, message: Message) -> Message:
        if message["role"] != "assistant":
            return message
        kept = {key: value for key, value in message.items() if key not in REASONING_NAMES}
        if self.convention is not None and "content" in kept:
            kept["content"] = _map_text(kept["content"], self._answer_alone)
        return kept

    def _answer_alone(self, text: str) -> str:
        """What a message says after its thinking; of a block that is never closed, nothing."""
        assert self.convention is not None
        if text.lstrip().startswith(self.convention.open_tag):
            splitter = Splitter(self.convention.open_tag, self.convention.close_tag)
            splitter.push(text)
            splitter.finish()
            return splitter.answer
        _, tag, answer = text.rpartition(self.convention.close_tag)
        return answer.lstrip() if tag else text


def split_system(
    messages: Sequence[Message], convention: Convention | None
) -> tuple[str | None, Think | None, list[Message]]:
    """The system text, the mode that it asks for in the model's own words, and the messages after.

    Several system messages at the start are joined; one later stays where it is.
    """
    count = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    text = "\n\n".join(_text_of(m.get("content")) for m in messages[:count])
    mode = convention.mode_in(text) if convention else None
    if convention is not None and mode is not None:
        text = convention.without_toggle(text)
    return text or None, mode, list(messages[count:])


def _before_first_question(messages: Sequence[Message], system: str) -> list[Message]:
    """The instructions as the beginning of the first message by the user."""
    out: list[Message] = []
    for message in messages:
        if system and message["role"] == "user":
            message, system = _prefixed(message, system), ""
        out.append(message)
    return out


def _prefixed(message: Mapping[str, Any], text: str) -> Message:
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": [{"type": "text", "text": f"{text}\n\n"}, *content]}
    return {**message, "content": f"{text}\n\n{content or ''}"}


def _map_text(content: Any, change: Callable[[str], str]) -> Any:
    """Content with its text changed, be it one text or a list of parts."""
    if isinstance(content, str):
        return change(content)
    if not isinstance(content, list):
        return content
    return [
        {**part, "text": change(part["text"])}
        if isinstance(part, dict) and isinstance(part.get("text"), str)
        else part
        for part in content
    ]


def _text_of(content: Any) -> str:
    parts = content if isinstance(content, list) else [{"text": content}]
    return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))


def _with_plain_arguments(message: Message) -> Message:
    """Past calls with arguments as JSON values: templates write them as JSON themselves."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [_with_plain(call) for call in calls]}


def _with_plain(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    if isinstance(function["arguments"], str):
        with suppress(ValueError):
            function["arguments"] = json.loads(function["arguments"])
    return {**call, "function": function}
