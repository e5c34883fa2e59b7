"""`edgekit chat`: talk to an engine, or ask it one thing."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from edgekit.chat.actions import read_tools_file
from edgekit.chat.notices import Notices
from edgekit.chat.plain import (
    answer_in_events,
    answer_once,
    read_prompt,
    talk,
    wants_screen,
)
from edgekit.chat.session_file import read_session
from edgekit.cli import options as shared
from edgekit.engine import DEFAULT_STORE, find_engine
from edgekit.models.convention import Think
from edgekit.runtime.chat import Chat
from edgekit.runtime.chat_options import ChatOptions
from edgekit.runtime.drafters import load_draft_model
from edgekit.runtime.load import load_engine
from edgekit.runtime.structure import read_structure

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("chat", epilog='Example: edgekit chat --prompt "Why is the sky blue?" --stats')
@click.argument("engine", required=False)
@click.option("--think", type=click.Choice(["on", "off"]), help="Let the model think first.")
@click.option(
    "--think-budget", "budget", type=int, metavar="N",
    help="Tokens of thinking before it is led to answer; 0 none, -1 no cap.",
)  # fmt: skip
@click.option("--system", metavar="TEXT", help="Instructions for the model.")
@click.option("--prompt", metavar="TEXT", help="Answer this and exit; piped text goes below it.")
@click.option("--load", "session", type=_FILE, help="Go on with a conversation that was saved.")
@click.option("--tools", "tools_file", type=_FILE, help="Tools to call, OpenAI's format as JSON.")
@click.option("--schema", metavar="FILE|JSON", help="Answers are JSON of this schema.")
@click.option("--regex", metavar="REGEX", help="Answers match this whole.")
@click.option("--grammar", metavar="FILE", help="Answers follow this grammar, Lark or GBNF.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Default: the room left.")
@click.option("--temperature", type=float, help="0 always takes the likeliest token.")
@click.option("--top-p", type=float, help="Draw from the likeliest tokens with this sum.")
@click.option("--top-k", type=int, help="Draw from this many of the likeliest tokens.")
@click.option("--min-p", type=float, help="Least share of the likeliest token's probability.")
@click.option("--repetition-penalty", type=float, help="Above 1 makes repeating less likely.")
@click.option("--seed", type=int, help="The same seed gives the same answer.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer here; repeatable.")
@click.option(
    "--lookup/--no-lookup", default=True, show_default=True,
    help="Guess tokens from the text so far and check several at once.",
)  # fmt: skip
@click.option("--draft", metavar="ENGINE", help="Guess tokens with this smaller engine instead.")
@click.option("--context", "context_tokens", type=click.IntRange(min=2), help="Tokens of KV cache.")
@click.option("--threads", type=click.IntRange(min=1), help="Default: the backend's choice.")
@click.option("--stats", "show_stats", is_flag=True, help="Show measures after each answer.")
@click.option("--plain", "is_plain", is_flag=True, help="No screen: one line after the other.")
@click.option("--json", "as_json", is_flag=True, help="Print one answer and its measures as JSON.")
@click.option("--json-events", "as_events", is_flag=True, help="The same as it comes, JSON lines.")
@click.option("--store", type=click.Path(path_type=Path), default=DEFAULT_STORE, show_default=True)
@shared.trtllm
def command(
    engine: str | None,
    prompt: str | None,
    session: Path | None,
    tools_file: Path | None,
    draft: str | None,
    context_tokens: int | None,
    threads: int | None,
    show_stats: bool,
    is_plain: bool,
    as_json: bool,
    as_events: bool,
    store: Path,
    **settings: Any,
) -> None:
    """Talk to an engine.

    ENGINE is a directory or a name in the store; the default is the newest engine there. On a
    terminal this is a screen with an input line (/help lists its commands), in a pipe plain text:
    answers on stdout, thinking and notes on stderr.
    """
    structure = {name: settings.pop(name) for name in ("schema", "regex", "grammar")}
    options = ChatOptions(**settings, structure=read_structure(**structure))
    saved = None if session is None else read_session(session)
    tools = None if tools_file is None else read_tools_file(str(tools_file))
    text = read_prompt(prompt, is_required=as_json or as_events)
    directory = find_engine(store, engine)
    with ExitStack() as opened:
        loaded = opened.enter_context(
            load_engine(directory, context_tokens=context_tokens, threads=threads)
        )
        drafter = None
        if draft is not None:
            smaller, drafter = load_draft_model(find_engine(store, draft), loaded, threads=threads)
            opened.enter_context(smaller)
        notices = Notices()
        chat = Chat(loaded, options, notify=notices, drafter=drafter)
        chat.set_tools(tools)
        if saved is not None:
            _go_on(chat, *saved, think=options.think)
        if text is None:
            _converse(chat, notices, show_stats=show_stats, is_plain=is_plain)
        elif as_events:
            answer_in_events(chat, text, show_stats=show_stats)
        else:
            answer_once(chat, text, as_json=as_json, show_stats=show_stats)


def _go_on(
    chat: Chat, system: str | None, messages: list[dict[str, Any]], *, think: Think | None
) -> None:
    """Take up a saved conversation; what was given now comes before what was saved."""
    chat.load(messages)
    if chat.system is None:
        chat.set_system(system)
    if think is not None:
        chat.set_think(think)


def _converse(chat: Chat, notices: Notices, *, show_stats: bool, is_plain: bool) -> None:
    if not wants_screen(is_plain=is_plain):
        talk(chat, show_stats=show_stats)
        return
    from edgekit.chat.screen import run_screen

    run_screen(chat, show_stats=show_stats, notices=notices)
