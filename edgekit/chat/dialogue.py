"""What a line that was typed does, the same on the screen and without one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from edgekit.chat.attach import Attachment, attach, mentioned, read_attachment
from edgekit.chat.clean import clean_text
from edgekit.chat.commands import run_command
from edgekit.chat.contract import Answer, Chat
from edgekit.errors import InputError
from edgekit.runtime.piece import ToolCall

_NO_RESULT = "the user gave no result"


class Dialogue(ABC):
    """A chat and what was set for it; `say`, `show`, `put_back` and `leave` are the front end."""

    width = 80
    """Columns to write in."""
    keys = ""
    """What `/help` says of keys."""

    def __init__(self, chat: Chat, *, show_stats: bool) -> None:
        self.chat = chat
        self.show_stats = show_stats
        self.answer: Answer | None = None
        """The one that is being made."""
        self.last: Answer | None = None
        """The one before."""
        self.attached: list[Attachment] = []
        """Files that go with the next message."""
        self.session_path: Path | None = None
        """Where the conversation was saved or loaded last."""
        self.calls: list[ToolCall] = []
        """Tool calls that wait for their results; the first one is asked for."""
        self._results: list[tuple[str, str]] = []

    @abstractmethod
    def say(self, text: str) -> None:
        """Words for the user, one line or many."""

    @abstractmethod
    def show(self, answer: Answer) -> None:
        """Make the answer while it is shown; keep it, then call `ended`."""

    @abstractmethod
    def put_back(self, text: str, *, is_edit: bool = False) -> None:
        """Put a message in the input line; `is_edit`: to replace the last question."""

    @abstractmethod
    def leave(self) -> None:
        """End the dialogue."""

    @abstractmethod
    def echo(self, text: str) -> None:
        """Show what the user said, where the terminal has not done so."""

    def reply(self, make: Callable[[], Answer], *, shown: str = "") -> None:
        """Begin an answer, after `shown` in the user's name. What `make` raises is raised."""
        answer = make()
        if shown:
            self.echo(shown)
        self.answer = answer
        self.show(answer)

    def take(self, line: str) -> None:
        """A line that was typed: a command, the result of a tool call, or a message."""
        line = clean_text(line)
        if line.startswith("/"):
            run_command(self, line)
        elif self.calls:
            self._take_result(line.strip())
        elif line.strip():
            self.ask(line.strip())

    def ask(self, text: str, *, is_edit: bool = False) -> None:
        """Send a message with the files it names and those attached before."""
        files = [*self.attached, *mentioned(text)]
        message = attach(text, list({file.name: file for file in files}.values()))
        make = self.chat.edit if is_edit else self.chat.ask
        shown = "\n".join([text, *(f"+ {file.describe()}" for file in files)])
        self.reply(lambda: make(message), shown=shown)
        self.attached = []

    def ended(self, answer: Answer) -> None:
        """After an answer was kept: measures, and what its tool calls need."""
        self.answer, self.last = None, answer
        if self.show_stats:
            self.say(answer.describe())
        self.calls, self._results = list(answer.tool_calls), []
        if self.calls:
            self._say_call()

    def drop_calls(self) -> None:
        """Leave the calls without results, in a way that the conversation can go on."""
        if not self.calls:
            return
        results = [*self._results, *((call.id, _NO_RESULT) for call in self.calls)]
        self.chat.load(
            [
                *self.chat.messages,
                *({"role": "tool", "tool_call_id": i, "content": text} for i, text in results),
            ]
        )
        self.calls, self._results = [], []

    def forget_calls(self) -> None:
        """The conversation that they were in is gone."""
        self.calls, self._results = [], []

    def _take_result(self, line: str) -> None:
        call = self.calls[0]
        is_file = line.startswith("@") and "\n" not in line
        text = read_attachment(line[1:].strip("\"'")).text if is_file else line
        self._results.append((call.id, text or call.problem or ""))
        del self.calls[0]
        if self.calls:
            self.echo(line)
            self._say_call()
            return
        results, self._results = self._results, []
        try:
            self.reply(lambda: self.chat.give_results(results), shown=line)
        except InputError:
            self.calls, self._results = [call], results[:-1]
            raise

    def _say_call(self) -> None:
        call = self.calls[0]
        empty = "nothing" if not call.problem else "what is wrong with its arguments"
        self.say(f"result of {call.name}? type it, or @FILE; Enter alone says {empty}")
