"""What the slash commands do. The table of them is `edgekit.chat.commands`."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.chat.attach import LIMIT_BYTES, read_attachment, split_paths, typed_part
from edgekit.chat.context_bar import describe_context
from edgekit.chat.contract import Think
from edgekit.chat.session_file import read_session, save_session
from edgekit.errors import InputError
from edgekit.units import format_bytes

if TYPE_CHECKING:
    from edgekit.chat.dialogue import Dialogue


def think(dialogue: Dialogue, mode: str) -> None:
    """`/think on` or `/think off`."""
    modes: dict[str, Think] = {"on": "on", "off": "off"}
    if mode not in modes:
        raise InputError(f"/think takes on or off: {mode!r}")
    dialogue.chat.set_think(modes[mode])
    dialogue.say(f"thinking is {mode}{_from_next(dialogue)}")


def budget(dialogue: Dialogue, value: str) -> None:
    """`/budget N`, `/budget off` or `/budget none`."""
    named = {"none": -1, "off": 0}
    if value not in named and not (value.isascii() and value.isdigit()):
        raise InputError(f"/budget takes a number of tokens, off or none: {value!r}")
    tokens = named[value] if value in named else int(value)
    dialogue.chat.set_budget(tokens)
    words = {-1: "thinking has no limit", 0: "there is no thinking"}
    text = words.get(tokens, f"thinking ends after {tokens} tokens")
    dialogue.say(text + _from_next(dialogue))


def _from_next(dialogue: Dialogue) -> str:
    return ", from the next answer on" if dialogue.answer is not None else ""


def answer(dialogue: Dialogue, _: str) -> None:
    """`/answer`: no more thinking."""
    if dialogue.answer is None or not dialogue.answer.is_thinking:
        raise InputError("nothing is being thought", hint="/answer ends the thinking of an answer")
    dialogue.answer.answer_now()
    dialogue.say("the thinking ends at the next token")


def system(dialogue: Dialogue, text: str) -> None:
    """`/system TEXT`, or nothing to remove it."""
    dialogue.chat.set_system(text or None)
    dialogue.say("the instructions are set" if text else "the instructions are removed")


def attach(dialogue: Dialogue, text: str) -> None:
    """`/attach FILE...`: they go with the next message."""
    if text == "off":
        dialogue.attached = []
    elif text:
        dialogue.attached = dialogue.attached + [read_attachment(p) for p in split_paths(text)]
    files = ", ".join(file.describe() for file in dialogue.attached)
    limit = f"a message takes {format_bytes(LIMIT_BYTES)} of text files"
    dialogue.say(f"goes with the next message: {files}" if files else f"no file; {limit}")


def tools(dialogue: Dialogue, text: str) -> None:
    """`/tools FILE`, `/tools off`, or nothing to list them."""
    if text == "off":
        dialogue.chat.set_tools(None)
    elif text:
        if dialogue.answer is not None:
            raise InputError("/tools FILE waits for the answer to end", hint="Ctrl-C stops it")
        dialogue.chat.set_tools(read_tools_file(_one_path(text)))
    rows = [f"{tool.name}: {tool.description}" for tool in dialogue.chat.tools]
    dialogue.say("\n".join(rows) or "no tools are declared")


def read_tools_file(name: str) -> list[object]:
    """A list of tools as JSON. Raises `InputError`; what a tool must be is for `Chat` to say."""
    try:
        data = json.loads(read_attachment(name).text)
    except (ValueError, RecursionError) as exc:
        raise InputError(f"not JSON: {name}: {exc}") from exc
    if not isinstance(data, list):
        raise InputError(f"not a list of tools: {name}", hint="as in OpenAI's `tools`")
    return data


def save(dialogue: Dialogue, text: str) -> None:
    """`/save FILE`, or nothing for the file of the last time."""
    named = Path(_one_path(text)) if text else dialogue.session_path
    path = named or Path(f"chat-{datetime.now():%Y%m%d-%H%M%S}.jsonl")
    if not dialogue.chat.messages:
        raise InputError("there is nothing to save yet")
    save_session(path, dialogue.chat.messages, dialogue.chat.system)
    dialogue.session_path = path
    dialogue.say(f"saved {_count(dialogue)} to {path}")


def load(dialogue: Dialogue, text: str) -> None:
    """`/load FILE`."""
    if not text:
        raise InputError("/load takes a file", hint="one that `/save` wrote")
    path = Path(_one_path(text))
    system, messages = read_session(path)
    dialogue.chat.load(messages)
    dialogue.chat.set_system(system)
    dialogue.forget_calls()
    dialogue.session_path, dialogue.last = path, None
    dialogue.say(f"loaded {_count(dialogue)} from {path}")


def _count(dialogue: Dialogue) -> str:
    count = len(dialogue.chat.messages)
    return f"{count} message{'s' * (count != 1)}"


def _one_path(text: str) -> str:
    """A path as it was typed: quotes are not part of it, blanks may be."""
    paths = split_paths(text)
    return paths[0] if len(paths) == 1 else text


def retry(dialogue: Dialogue, _: str) -> None:
    """`/retry`."""
    dialogue.forget_calls()
    dialogue.reply(dialogue.chat.retry, shown=_last_question(dialogue))


def edit(dialogue: Dialogue, text: str) -> None:
    """`/edit TEXT`, or nothing to change it in the input line."""
    question = _last_question(dialogue)
    if not question:
        raise InputError("there is no question to change yet")
    if text:
        dialogue.forget_calls()
        dialogue.ask(text, is_edit=True)
    else:
        dialogue.put_back(question, is_edit=True)


def _last_question(dialogue: Dialogue) -> str:
    asked = (m for m in reversed(dialogue.chat.messages) if m["role"] == "user")
    return typed_part(next((str(m["content"]) for m in asked), ""))


def context(dialogue: Dialogue, _: str) -> None:
    """`/context`."""
    dialogue.say(describe_context(dialogue.chat.context_use(), width=dialogue.width))


def stats(dialogue: Dialogue, _: str) -> None:
    """`/stats`."""
    dialogue.show_stats = not dialogue.show_stats
    dialogue.say(f"measures are {'shown' if dialogue.show_stats else 'hidden'}")
    if dialogue.show_stats and dialogue.last is not None:
        dialogue.say(dialogue.last.describe())


def thinking(dialogue: Dialogue, _: str) -> None:
    """`/thinking`: of this answer, or the last one that had any."""
    answer = dialogue.answer or dialogue.last
    said = (m.get("reasoning_content") for m in reversed(dialogue.chat.messages))
    text = (answer.thinking if answer else "") or next(filter(None, said), "")
    dialogue.say(text.strip() or "there was no thinking yet")


def reset(dialogue: Dialogue, _: str) -> None:
    """`/reset`."""
    dialogue.chat.reset()
    dialogue.forget_calls()
    dialogue.last, dialogue.attached = None, []
    dialogue.say("the conversation is forgotten")
