"""`edgekit chat`: talk to an engine, or ask it one thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.chat.plain import answer_once, read_prompt, talk, tell
from edgekit.engine import DEFAULT_STORE, find_engine
from edgekit.runtime.chat import Chat, ChatOptions
from edgekit.runtime.load import load_engine


@click.command("chat", epilog='Example: edgekit chat --prompt "Why is the sky blue?" --stats')
@click.argument("engine", required=False)
@click.option("--think", type=click.Choice(["on", "off"]), help="Let the model think first.")
@click.option("--system", metavar="TEXT", help="Instructions for the model.")
@click.option("--prompt", metavar="TEXT", help="Answer this and exit; piped text goes below it.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Default: the room left.")
@click.option("--temperature", type=float, help="0 always takes the likeliest token.")
@click.option("--top-p", type=float, help="Draw from the likeliest tokens with this sum.")
@click.option("--top-k", type=int, help="Draw from this many of the likeliest tokens.")
@click.option("--min-p", type=float, help="Least share of the likeliest token's probability.")
@click.option("--repetition-penalty", type=float, help="Above 1 makes repeating less likely.")
@click.option("--seed", type=int, help="The same seed gives the same answer.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer here; repeatable.")
@click.option("--context", "context_tokens", type=click.IntRange(min=2), help="Tokens of KV cache.")
@click.option("--threads", type=click.IntRange(min=1), help="Default: the backend's choice.")
@click.option("--stats", "show_stats", is_flag=True, help="Show measures after each answer.")
@click.option("--json", "as_json", is_flag=True, help="Print one answer and its measures as JSON.")
@click.option("--store", type=click.Path(path_type=Path), default=DEFAULT_STORE, show_default=True)
def command(
    engine: str | None,
    prompt: str | None,
    context_tokens: int | None,
    threads: int | None,
    show_stats: bool,
    as_json: bool,
    store: Path,
    **settings: Any,
) -> None:
    """Talk to an engine.

    ENGINE is a directory or a name in the store; the default is the newest engine there.
    """
    options = ChatOptions(**settings)
    text = read_prompt(prompt, is_required=as_json)
    directory = find_engine(store, engine)
    with load_engine(directory, context_tokens=context_tokens, threads=threads) as loaded:
        chat = Chat(loaded, options, notify=tell)
        if text is None:
            talk(chat, show_stats=show_stats)
        else:
            answer_once(chat, text, as_json=as_json, show_stats=show_stats)
