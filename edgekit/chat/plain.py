"""Chat without a screen: answers and tool calls go to stdout, every other word to stderr.

For one question, and for a dialogue where the terminal can do no more, or shall not.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from edgekit.chat.clean import clean_text
from edgekit.chat.contract import Answer, Chat
from edgekit.chat.dialogue import Dialogue
from edgekit.chat.wording import describe_call
from edgekit.errors import EdgekitError, InputError
from edgekit.runtime.piece import Piece


def tell(text: str) -> None:
    """One line to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextmanager
def closed_pipe_ends_quietly() -> Iterator[None]:
    """End the body without an error when the reader of stdout has gone, as `| head` does."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # the interpreter flushes stdout once more at exit: let that go nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def read_prompt(prompt: str | None, *, is_required: bool) -> str | None:
    """The one question to answer: `prompt`, with what is piped in below it; None for a dialogue.

    Raises `InputError` when there must be one and there is none.
    """
    if sys.stdin.isatty():
        if prompt is None and is_required:
            raise InputError("`--json` needs a prompt", hint="add `--prompt TEXT`, or pipe it in")
        return prompt
    try:
        piped = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InputError(f"stdin is not UTF-8 text: {exc}") from exc
    parts = [part for part in (prompt, piped.rstrip("\n")) if part and part.strip()]
    if not parts:
        raise InputError("there is no prompt: stdin is empty", hint="add `--prompt TEXT`")
    return "\n\n".join(parts)


def wants_screen(*, is_plain: bool) -> bool:
    """Whether a dialogue can have the screen of `edgekit.chat.screen`."""
    is_dumb = os.environ.get("TERM", "dumb") in ("", "dumb", "unknown")
    return not (is_plain or is_dumb) and sys.stdin.isatty() and sys.stdout.isatty()


def answer_once(chat: Chat, text: str, *, as_json: bool, show_stats: bool) -> None:
    """Answer one question on stdout, as it comes or as one JSON object at the end."""
    answer = chat.ask(text)
    with closed_pipe_ends_quietly():
        printer = _Printer()
        for piece in answer:
            if not as_json:
                printer.take(piece)
        if as_json:
            data = {"engine": chat.engine_name, **answer.to_dict()}
            _write(sys.stdout, json.dumps(data, ensure_ascii=False) + "\n")
        else:
            printer.finish()
    if show_stats:
        tell(answer.describe())


def answer_in_events(chat: Chat, text: str, *, show_stats: bool) -> None:
    """Answer one question as JSON lines on stdout, each as soon as it is known.

    `{"type": "thinking" | "answer", "text"}` a piece of text; `{"type": "retype"}` the answer's
    text so far was thinking; `{"type": "tool_call", "id", "name", "arguments", "problem"}`; and at
    the end, also after Ctrl-C, `{"type": "done", …}` with all that `--json` gives.
    """
    answer = chat.ask(text)
    with closed_pipe_ends_quietly():
        try:
            for piece in answer:
                if event := _event(piece):
                    _write_event(event)
        finally:
            if not isinstance(sys.exception(), BrokenPipeError):
                data = {"type": "done", "engine": chat.engine_name, **answer.to_dict()}
                _write_event(data)
    if show_stats:
        tell(answer.describe())


def talk(chat: Chat, *, show_stats: bool, read_line: Callable[[], str] | None = None) -> None:
    """Read a line, answer it, again, until Ctrl-D, `/exit` or Ctrl-C twice."""
    with suppress(ImportError):
        import readline  # noqa: F401  # gives `input` editing and history where it exists

    tell("/help lists the commands, Ctrl-D leaves")
    dialogue = _PlainDialogue(chat, show_stats=show_stats)
    with closed_pipe_ends_quietly():
        was_interrupted = False
        while not dialogue.is_over:
            try:
                line = (read_line or _read_line)()
            except EOFError:
                tell("")
                return
            except KeyboardInterrupt:
                if was_interrupted:
                    tell("")
                    return
                was_interrupted = True
                dialogue.drop_calls()
                tell("\nCtrl-C again leaves")
                continue
            was_interrupted = False
            try:
                dialogue.take(line)
            except InputError as exc:
                tell_error(exc)


def tell_error(error: EdgekitError) -> None:
    """An error and what to do about it, to stderr."""
    tell(f"error: {error}")
    if error.hint:
        tell(f"\nhint: {error.hint}")


class _PlainDialogue(Dialogue):
    """One line after the other; nothing can be typed while an answer is made."""

    def __init__(self, chat: Chat, *, show_stats: bool) -> None:
        super().__init__(chat, show_stats=show_stats)
        self.is_over = False
        self.width = shutil.get_terminal_size().columns

    def say(self, text: str) -> None:
        tell(text)

    def echo(self, text: str) -> None:
        for line in text.split("\n"):
            if line.startswith("+ "):  # the files that go with it
                tell(line)

    def show(self, answer: Answer) -> None:
        printer = _Printer()
        try:
            for piece in answer:
                printer.take(piece)
        except KeyboardInterrupt:
            printer.end_thinking()
            tell("\nstopped")
        finally:
            self.answer = None
            self.chat.keep(answer)
        printer.finish()
        self.ended(answer)

    def put_back(self, text: str, *, is_edit: bool = False) -> None:
        raise InputError("/edit takes the new text here", hint="/edit TEXT")

    def leave(self) -> None:
        self.is_over = True


class _Printer:
    """Pieces to stdout and stderr. What goes to a terminal cannot steer it."""

    def __init__(self) -> None:
        self._is_thinking = False
        self._is_line_open = True

    def take(self, piece: Piece) -> None:
        if piece.kind == "thinking":
            is_terminal = sys.stderr.isatty()
            _write(sys.stderr, f"\x1b[2m{clean_text(piece.text)}\x1b[0m" * is_terminal
                   or piece.text)  # fmt: skip
            self._is_thinking = True
            return
        self.end_thinking()
        if piece.kind == "answer":
            _write(sys.stdout, clean_text(piece.text) if sys.stdout.isatty() else piece.text)
            self._is_line_open = not piece.text.endswith("\n")
        elif piece.kind == "retype":
            tell("\nnote: what stands above was thinking")
        elif piece.call is not None:
            _write(sys.stdout, describe_call(piece.call) + "\n")
            self._is_line_open = False

    def end_thinking(self) -> None:
        """A line of its own for what comes after."""
        if self._is_thinking:
            tell("\n")
        self._is_thinking = False

    def finish(self) -> None:
        """The newline that ends an answer, if it has none."""
        self.end_thinking()
        if self._is_line_open:
            _write(sys.stdout, "\n")


def _event(piece: Piece) -> dict[str, Any] | None:
    if piece.kind in ("thinking", "answer"):
        return {"type": piece.kind, "text": piece.text}
    if piece.call is not None:
        call = piece.call
        return {
            "type": "tool_call", "id": call.id, "name": call.name, "arguments": call.arguments,
            "problem": call.problem,
        }  # fmt: skip
    return {"type": "retype"} if piece.kind == "retype" else None


def _write_event(event: dict[str, Any]) -> None:
    _write(sys.stdout, json.dumps(event, ensure_ascii=False) + "\n")


def _write(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()


def _read_line() -> str:
    if sys.stdout.isatty():
        return input("> ")
    sys.stderr.write("> ")  # stdout is a file: it gets the answers alone
    sys.stderr.flush()
    return input()
