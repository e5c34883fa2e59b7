"""A conversation on disk: JSON lines in OpenAI's message format, the system message first.

Strict both ways, for what is read goes to the model: one message a line, known keys only, each
tool result after the call that it belongs to.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgekit.errors import InputError, storage_errors

_KEYS = {
    "system": {"role", "content"},
    "user": {"role", "content"},
    "assistant": {"role", "content", "reasoning_content", "tool_calls"},
    "tool": {"role", "content", "tool_call_id", "name"},
}


def save_session(path: Path, messages: Sequence[dict[str, Any]], system: str | None) -> None:
    """Write the conversation beside `path` and rename: it is there as a whole or not at all.

    Raises `InputError` for a message of another kind, and where `path` holds anything but a
    conversation; `StorageError` when the disk is full.
    """
    path = path.expanduser().resolve()
    head = [] if system is None else [{"role": "system", "content": system}]
    lines = [*head, *messages]
    _check_all(list(enumerate(lines, 1)), "the conversation")
    if path.exists():
        _require_session(path)
    if not path.parent.is_dir():
        raise InputError(f"no such directory: {path.parent}")
    data = "".join(_line(message) for message in lines).encode()
    with storage_errors(path):
        _replace(path, data)


def read_session(path: Path) -> tuple[str | None, list[dict[str, Any]]]:
    """System text and messages of a file; raises `InputError` that names the line."""
    path = path.expanduser()
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InputError(f"not a conversation, for it is not UTF-8 text: {path}") from exc
    except OSError as exc:
        raise InputError(f"cannot read {path}: {exc.strerror}") from exc
    # not splitlines(): JSON may hold U+2028 and the like inside a string
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"not a conversation, for it is empty: {path}")
    numbered = [(n, _parse(line, f"{path}, line {n}")) for n, line in lines]
    _check_all(numbered, str(path))
    messages = [message for _, message in numbered]
    if messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return None, messages


def _require_session(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"not a file: {path}")
    try:
        if path.stat().st_size:
            read_session(path)
    except InputError as exc:
        raise InputError(
            f"this file holds something other than a conversation: {path}",
            hint="choose another name, or remove it first",
        ) from exc


def _line(message: dict[str, Any]) -> str:
    text = json.dumps(message, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell and UTF-8 cannot
        text = json.dumps(message)
    return text + "\n"


def _replace(path: Path, data: bytes) -> None:
    """Private to the user, unless the file was not."""
    number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(number, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        if path.exists():
            Path(name).chmod(path.stat().st_mode & 0o777)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        message = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{where}: not JSON: {exc}") from exc
    if not isinstance(message, dict):
        raise InputError(f"{where}: a message must be an object: {line[:40]}")
    return message


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check_all(numbered: Sequence[tuple[int, dict[str, Any]]], source: str) -> None:
    known_ids: set[str] = set()
    for at, (number, message) in enumerate(numbered):
        if problem := _problem(message, known_ids, is_first=at == 0):
            raise InputError(f"{source}, line {number}: {problem}")
        known_ids |= {call["id"] for call in message.get("tool_calls") or ()}


def _problem(message: dict[str, Any], known_ids: set[str], *, is_first: bool) -> str | None:
    role = message.get("role")
    if not isinstance(role, str) or role not in _KEYS:
        return f"the role must be one of {', '.join(_KEYS)}: {role!r}"
    if unknown := sorted(set(message) - _KEYS[role]):
        return f"unknown key in a message of the {role}: {', '.join(unknown)}"
    if role == "system" and not is_first:
        return "only the first message may be the system's"
    calls = message.get("tool_calls")
    content = message.get("content")
    if not isinstance(content, str) and not (content is None and calls):
        return f"the content must be text: {content!r:.40}"
    if not isinstance(message.get("reasoning_content"), str | None):
        return "the reasoning_content must be text"
    if not isinstance(message.get("name"), str | None):
        return "the name must be text"
    if role == "tool" and message.get("tool_call_id") not in known_ids:
        return f"no call before it has this tool_call_id: {message.get('tool_call_id')!r}"
    return None if calls is None else _calls_problem(calls)


def _calls_problem(calls: Any) -> str | None:
    if not isinstance(calls, list):
        return "tool_calls must be a list"
    for call in calls:
        if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
            return "a tool call must be an object with an object `function`"
        function = call["function"]
        if not isinstance(call.get("id"), str) or not isinstance(function.get("name"), str):
            return "a tool call needs an id and a function name"
        if not _is_object(function.get("arguments")):
            return f"the arguments of {function['name']} are not a JSON object"
    return None


def _is_object(arguments: Any) -> bool:
    """OpenAI writes the arguments as JSON in a string, chat templates want the object."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return False
    return isinstance(arguments, dict)
