"""How things of an answer are called, on the screen and without one."""

from __future__ import annotations

import json

from edgekit.chat.clean import clean_line
from edgekit.runtime.piece import ToolCall


def describe_call(call: ToolCall) -> str:
    """`get_weather({"city": "Paris"})`, on one line."""
    return clean_line(f"{call.name}({json.dumps(call.arguments, ensure_ascii=False)})")
