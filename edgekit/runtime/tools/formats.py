"""How a model is told of tools, where its own chat template does not take `tools`.

A format is a row of `TOOL_FORMATS`. The tags and the JSON are those that the models were trained
on; the sentences around them are ours. `lower_messages` spells past calls and their results the
same way, so that any chat template with system, user and assistant renders them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from edgekit.errors import InputError
from edgekit.runtime.tools.spec import Tool

_SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapping:
    """Items as text: `begin`, the items with `between` between them, `end`."""

    begin: str = ""
    between: str = "\n"
    end: str = ""

    def __call__(self, items: Sequence[str]) -> str:
        return self.begin + self.between.join(items) + self.end


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """How one line of models spells tools, calls and results."""

    name: str
    tools: Wrapping
    calls: Wrapping
    results: Wrapping
    is_bare: bool
    """A tool is told as `{"name": …}`, not in OpenAI's `{"type": "function", "function": …}`."""
    indent: int | None = None
    """Of a tool's JSON; None: on one line."""
    arguments_key: str = "arguments"
    before_calls: str | None = ""
    """What stands between the text of a turn and its calls; None: the text is left out, for calls
    are only recognized at the start."""
    result_role: str = "user"
    joins_results: bool = True
    """Results of one turn are one message; otherwise each is its own."""
    quotes_results: bool = False
    """A result that is not JSON is written as a JSON string."""

    def system_text(self, tools: Sequence[Tool]) -> str:
        """What belongs into the system turn, after the user's own system text; "" for no tools."""
        if not tools:
            return ""
        shapes = [tool.to_dict() for tool in tools]
        told = [shape["function"] if self.is_bare else shape for shape in shapes]
        return self.tools([json.dumps(x, ensure_ascii=False, indent=self.indent) for x in told])

    def call_text(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """The model's own spelling of calls in OpenAI's shape. Raises `InputError`."""
        return self.calls([self._call(call, f"tool_calls[{i}]") for i, call in enumerate(calls)])

    def result_messages(self, results: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
        """The messages for results that follow each other: OpenAI's messages of role `tool`."""
        texts = [self._result(_message_text(result, "the result")) for result in results]
        groups = [texts] if self.joins_results else [[text] for text in texts]
        return [
            {"role": self.result_role, "content": self.results(group)} for group in groups if group
        ]

    def _call(self, call: Mapping[str, Any], place: str) -> str:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InputError(f"`{place}` has no function with a name: {_shown(call)}")
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError) as exc:
                raise InputError(f"`{place}.function.arguments` is not JSON: {exc}") from exc
        if not isinstance(arguments, Mapping):
            where = f"{place}.function.arguments"
            raise InputError(f"`{where}` must be a JSON object: {_shown(arguments)}")
        spelled = {"name": function["name"], self.arguments_key: arguments}
        return json.dumps(spelled, ensure_ascii=False)

    def _result(self, text: str) -> str:
        if not self.quotes_results:
            return text
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return json.dumps(text, ensure_ascii=False)
        return text


_HERMES_INTRO = """# Tools

You can call the functions below. Their signatures stand in <tools></tools>, one JSON object a line:
<tools>
"""
_HERMES_RULE = """
</tools>

To call a function, write a JSON object with its name and its arguments in <tool_call></tool_call>:
<tool_call>
{"name": <name of the function>, "arguments": <object with the arguments>}
</tool_call>
Write one such block for each call."""

_LLAMA_INTRO = """You can call the functions below. To call one, answer with nothing but JSON:
{"name": name of the function, "parameters": object with the names and values of its arguments}
Write values, never variables. If no function is needed, answer in words.

"""

_ROWS = (
    ToolFormat(
        name="nemotron",  # Llama Nemotron Nano
        tools=Wrapping(begin="<AVAILABLE_TOOLS>[", between=", ", end="]</AVAILABLE_TOOLS>"),
        calls=Wrapping(begin="<TOOLCALL>[", between=", ", end="]</TOOLCALL>"),
        results=Wrapping(begin="<TOOL_RESPONSE>[", between=", ", end="]</TOOL_RESPONSE>"),
        is_bare=True,
        quotes_results=True,
    ),
    ToolFormat(
        name="hermes",  # Hermes, Qwen 2.5 and 3
        tools=Wrapping(begin=_HERMES_INTRO, end=_HERMES_RULE),
        calls=Wrapping(
            begin="<tool_call>\n", between="\n</tool_call>\n<tool_call>\n", end="\n</tool_call>"
        ),
        results=Wrapping(
            begin="<tool_response>\n",
            between="\n</tool_response>\n<tool_response>\n",
            end="\n</tool_response>",
        ),
        is_bare=False,
        before_calls="\n",
    ),
    ToolFormat(
        name="llama3_json",  # Llama 3.1 and later, custom functions
        tools=Wrapping(begin=_LLAMA_INTRO, between="\n\n"),
        calls=Wrapping(between="; "),
        results=Wrapping(),
        is_bare=False,
        indent=4,
        arguments_key="parameters",
        before_calls=None,
        result_role="ipython",
        joins_results=False,
    ),
)
TOOL_FORMATS: Mapping[str, ToolFormat] = MappingProxyType({row.name: row for row in _ROWS})


def lower_messages(
    messages: Sequence[Mapping[str, Any]], tool_format: ToolFormat
) -> list[dict[str, Any]]:
    """OpenAI's messages with `tool_calls` and role `tool` as messages of plain text.

    Other messages stay as they are. Results that follow each other go together. Raises
    `InputError` with the place of what is wrong.
    """
    lowered: list[dict[str, Any]] = []
    results: list[Mapping[str, Any]] = []
    for number, message in enumerate(messages):
        if message.get("role") == "tool":
            _message_text(message, f"messages[{number}]")
            results.append(message)
            continue
        lowered += tool_format.result_messages(results)
        results = []
        if calls := message.get("tool_calls"):
            content = _with_calls(message, calls, tool_format, f"messages[{number}]")
            lowered.append({"role": message["role"], "content": content})
        else:
            plain = {key: value for key, value in message.items() if key != "tool_calls"}
            lowered.append(plain)
    return lowered + tool_format.result_messages(results)


def _with_calls(message: Mapping[str, Any], calls: Any, tool_format: ToolFormat, place: str) -> str:
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise InputError(f"`{place}.tool_calls` must be a list: {_shown(calls)}")
    try:
        spelled = tool_format.call_text(calls)
    except InputError as exc:
        raise InputError(str(exc).replace("`", f"`{place}.", 1)) from exc
    text = _message_text(message, place)
    if not text or tool_format.before_calls is None:
        return spelled
    return text + tool_format.before_calls + spelled


def _message_text(message: Mapping[str, Any], place: str) -> str:
    """The content of a message: a text, a list of text parts, or nothing."""
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part["text"] for part in content if isinstance(part, dict) and "text" in part]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "".join(texts)
    raise InputError(f"`{place}.content` must be text: {_shown(content)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
