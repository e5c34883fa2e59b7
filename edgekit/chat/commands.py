"""The slash commands: one table for the screen, the plain dialogue, `/help` and completion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING

from edgekit.chat import actions
from edgekit.errors import InputError

if TYPE_CHECKING:
    from edgekit.chat.dialogue import Dialogue


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One row of the table."""

    name: str
    argument: str = ""
    """As `/help` shows it."""
    help: str
    run: Callable[[Dialogue, str], None]
    choices: tuple[str, ...] = ()
    """What may be completed after it."""
    takes_path: bool = False
    waits: bool = False
    """Only between two answers."""

    @property
    def usage(self) -> str:
        """`/save [FILE]`."""
        return f"{self.name} {self.argument}".rstrip()


def run_command(dialogue: Dialogue, line: str) -> None:
    """Run a line that begins with a slash. Raises `InputError` when it is no command, or wrong."""
    words = line.strip().split(None, 1)
    name, rest = words[0], words[1].strip() if len(words) > 1 else ""
    command = COMMANDS.get(name)
    if command is None:
        raise _unknown(name)
    if command.waits and dialogue.answer is not None:
        raise InputError(f"{name} waits for the answer to end", hint="Ctrl-C stops it")
    if rest and not command.argument:
        raise InputError(f"{name} takes nothing after it: {rest}")
    command.run(dialogue, rest)


def help_text() -> str:
    """The table for people."""
    width = max(len(command.usage) for command in COMMANDS.values()) + 2
    rows = [f"{command.usage:{width}}{command.help}" for command in COMMANDS.values()]
    return "\n".join([*rows, *_HELP_END])


def _help(dialogue: Dialogue) -> None:
    dialogue.say("\n".join(filter(None, [help_text(), dialogue.keys])))


_HELP_END = (
    "@FILE in a message sends the text file with it. Ctrl-C stops an answer.",
    "To send text that begins with /, put a space before it.",
)


def _unknown(name: str) -> InputError:
    if "/" in name[1:]:
        hint = f"to send that file, write @{name}; to send the words, put a space before them"
    elif close := get_close_matches(name, COMMANDS, n=1, cutoff=0.7):
        hint = f"did you mean `{close[0]}`?"
    else:
        hint = "`/help` lists the commands"
    return InputError(f"unknown command: {name}", hint=hint)


_ROWS = (
    Command(name="/think", argument="on|off", help="switch thinking", run=actions.think,
            choices=("on", "off")),
    Command(name="/budget", argument="N|off|none", run=actions.budget,
            help="end thinking after N tokens", choices=("none", "off", "512", "2048", "8192")),
    Command(name="/answer", help="end the thinking now, and answer", run=actions.answer),
    Command(name="/thinking", help="show the last thinking", run=actions.thinking),
    Command(name="/system", argument="[TEXT]", run=actions.system, waits=True,
            help="set the instructions; without TEXT, remove them"),
    Command(name="/attach", argument="[FILE...|off]", help="send text files with the next message",
            run=actions.attach, takes_path=True),
    Command(name="/tools", argument="[FILE|off]", run=actions.tools, takes_path=True,
            help="declare tools from a JSON file; without FILE, list them"),
    Command(name="/retry", help="answer the last question again", run=actions.retry, waits=True),
    Command(name="/edit", argument="[TEXT]", help="replace the last question", run=actions.edit,
            waits=True),
    Command(name="/save", argument="[FILE]", run=actions.save,
            help="write the conversation as JSON lines", takes_path=True, waits=True),
    Command(name="/load", argument="FILE", help="go on with a saved conversation", run=actions.load,
            takes_path=True, waits=True),
    Command(name="/reset", help="forget the conversation", run=actions.reset, waits=True),
    Command(name="/context", help="show what fills the context", run=actions.context, waits=True),
    Command(name="/stats", help="show measures after each answer, or stop showing them",
            run=actions.stats),
    Command(name="/help", help="show this", run=lambda dialogue, _: _help(dialogue)),
    Command(name="/exit", help="leave (also Ctrl-D)", run=lambda dialogue, _: dialogue.leave()),
)  # fmt: skip

COMMANDS: Mapping[str, Command] = MappingProxyType({row.name: row for row in _ROWS})
