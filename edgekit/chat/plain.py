"""The terminal side of `chat`: answers go to stdout, every other word to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from edgekit.errors import EdgekitError, InputError
from edgekit.runtime.chat import Chat, Think

_HELP = """\
/reset           forget the conversation
/stats           show measures after each answer, or stop showing them
/system TEXT     set the instructions; without TEXT, remove them
/think on|off    switch thinking
/help            show this
/exit            leave (also Ctrl-D)
Ctrl-C stops an answer. To send text that begins with /, put a space before it."""


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


def answer_once(chat: Chat, text: str, *, as_json: bool, show_stats: bool) -> None:
    """Answer one question on stdout, as it comes or as one JSON object at the end."""
    answer = chat.ask(text)
    with closed_pipe_ends_quietly():
        for piece in answer:
            if not as_json:
                _write(piece)
        if as_json:
            data = {"engine": chat.engine_name, **answer.to_dict()}
            _write(json.dumps(data, ensure_ascii=False) + "\n")
        elif not answer.text.endswith("\n"):
            _write("\n")
    if show_stats:
        tell(answer.describe())


def talk(chat: Chat, *, show_stats: bool, read_line: Callable[[], str] | None = None) -> None:
    """Read a line, answer it, again, until Ctrl-D, `/exit` or Ctrl-C twice."""
    with suppress(ImportError):
        import readline  # noqa: F401  # gives `input` editing and history where it exists

    tell("/help lists the commands, Ctrl-D leaves")
    dialogue = _Dialogue(chat, show_stats=show_stats)
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
                tell("\nCtrl-C again leaves")
                continue
            was_interrupted = False
            dialogue.take(line)


class _Dialogue:
    """What a line typed at the prompt does."""

    def __init__(self, chat: Chat, *, show_stats: bool) -> None:
        self.is_over = False
        self._chat = chat
        self._show_stats = show_stats
        self._commands: dict[str, Callable[[str], None]] = {
            "/reset": self._reset,
            "/stats": self._stats,
            "/system": self._system,
            "/think": self._think,
            "/help": lambda _: tell(_HELP),
            "/exit": self._exit,
        }

    def take(self, line: str) -> None:
        try:
            if line.startswith("/"):
                self._run(line)
            elif line.strip():
                self._answer(line.strip())
        except InputError as exc:
            _tell_error(exc)

    def _answer(self, text: str) -> None:
        answer = self._chat.ask(text)
        try:
            for piece in answer:
                _write(piece)
        except KeyboardInterrupt:
            tell("\nstopped")
        finally:
            self._chat.keep(answer)
        _write("\n")
        if self._show_stats:
            tell(answer.describe())

    def _run(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        command = self._commands.get(name.strip())
        if command is None:
            raise InputError(f"unknown command: {name.strip()}", hint=_HELP)
        command(rest.strip())

    def _reset(self, _: str) -> None:
        self._chat.reset()
        tell("the conversation is forgotten")

    def _stats(self, _: str) -> None:
        self._show_stats = not self._show_stats
        tell(f"measures are {'shown' if self._show_stats else 'hidden'}")

    def _system(self, text: str) -> None:
        self._chat.set_system(text or None)
        tell("the instructions are set" if text else "the instructions are removed")

    def _think(self, mode: str) -> None:
        modes: dict[str, Think] = {"on": "on", "off": "off"}
        if mode not in modes:
            raise InputError(f"/think takes on or off: {mode!r}")
        self._chat.set_think(modes[mode])
        tell(f"thinking is {mode}")

    def _exit(self, _: str) -> None:
        self.is_over = True


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _read_line() -> str:
    if sys.stdout.isatty():
        return input("> ")
    sys.stderr.write("> ")  # stdout is a file: it gets the answers alone
    sys.stderr.flush()
    return input()


def _tell_error(error: EdgekitError) -> None:
    tell(f"error: {error}")
    if error.hint:
        tell(f"\nhint: {error.hint}")
