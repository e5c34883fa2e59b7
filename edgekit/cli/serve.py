"""`edgekit serve`: OpenAI's and Anthropic's interfaces over an engine."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import click

from edgekit.cli import options as shared
from edgekit.engine import DEFAULT_STORE, find_engine, open_manifest
from edgekit.errors import MissingBackendError
from edgekit.runtime.asking import Asker
from edgekit.runtime.load import load_engine

KEY_VARIABLE = "EDGEKIT_API_KEY"
_NEEDED = ("starlette", "uvicorn", "pydantic", "prometheus_client")
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("serve", epilog="Example: edgekit serve --slots 4 --port 8000")
@click.argument("engine", required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True,
    help="0 takes a free one.",
)  # fmt: skip
@click.option(
    "--api-key", "given_keys", multiple=True, metavar="KEY",
    help=f"Who knows it may ask; repeatable. Others see it in `ps`: better a file, "
    f"or {KEY_VARIABLE}.",
)  # fmt: skip
@click.option("--api-key-file", "key_files", type=_FILE, multiple=True, help="A key on each line.")
@click.option("--no-auth", "allow_open", is_flag=True, help="Beyond this machine without a key.")
@click.option(
    "--cors", "origins", multiple=True, metavar="ORIGIN",
    help="Pages that may ask, as in https://robot.example; repeatable. Default: none.",
)  # fmt: skip
@click.option("--page/--no-page", "has_page", default=True, help="A chat for people at `/`.")
@click.option(
    "--slots", type=click.IntRange(1, 64),
    help="Answers in work at once. Default: what the engine was built for.",
)  # fmt: skip
@click.option("--context", "context_tokens", type=click.IntRange(min=2), help="Tokens of a slot.")
@click.option("--threads", type=click.IntRange(min=1), help="Default: the backend's choice.")
@click.option(
    "--queue", "queue_limit", type=click.IntRange(0), default=64, show_default=True,
    help="Answers that may wait; more are refused with 429.",
)  # fmt: skip
@click.option(
    "--deadline", "deadline_s", type=click.FloatRange(min=0.1), default=600.0, show_default=True,
    help="Seconds that one answer may take, waiting included.",
)  # fmt: skip
@click.option(
    "--drain", "drain_s", type=click.FloatRange(min=0), default=30.0, show_default=True,
    help="Seconds that answers in work get after SIGTERM.",
)  # fmt: skip
@click.option(
    "--max-body", "max_body_bytes", type=click.IntRange(min=1024), default=4 * 2**20,
    show_default=True, help="Bytes of one request.",
)  # fmt: skip
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    help="Of one answer, at most, whatever its request says.",
)
@click.option("--json", "as_json", is_flag=True, help="Say where it listens as JSON on stdout.")
@click.option("--store", type=click.Path(path_type=Path), default=DEFAULT_STORE, show_default=True)
@shared.trtllm
def command(
    engine: str | None,
    given_keys: tuple[str, ...],
    key_files: tuple[Path, ...],
    slots: int | None,
    context_tokens: int | None,
    threads: int | None,
    as_json: bool,
    store: Path,
    **limits: Any,
) -> None:
    """Serve an engine over HTTP, to OpenAI's and Anthropic's clients.

    ENGINE is a directory or a name in the store; the default is the newest engine there. Many
    requests are answered at once, each in a KV slot; what a slot holds is not computed again.
    Ctrl-C and SIGTERM finish what is in work.
    """
    _require_packages()
    from edgekit.serve.server import listen, serve
    from edgekit.serve.settings import Settings, read_keys

    if KEY_VARIABLE in os.environ:
        given_keys = (*given_keys, os.environ[KEY_VARIABLE])
    settings = Settings(keys=read_keys(key_files, given_keys), **limits)
    directory = find_engine(store, engine)
    num_slots = slots or open_manifest(directory).plan["batch"]
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    with ExitStack() as opened:
        sock = opened.enter_context(listen(settings.host, settings.port))
        loaded = opened.enter_context(
            load_engine(
                directory, context_tokens=context_tokens, threads=threads, num_slots=num_slots
            )
        )
        asker = Asker(loaded, notify=_say)
        host, port = sock.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

        def on_ready() -> None:
            said = {"url": url, "model": loaded.manifest.model, "slots": num_slots,
                    "context_tokens": loaded.session.context_tokens}  # fmt: skip
            if as_json:
                click.echo(json.dumps(said))
            _say(
                f"{said['model']} at {url}/v1, {num_slots} slots of {said['context_tokens']} tokens"
                f"{f'; a chat at {url}/' if settings.has_page else ''}; Ctrl-C ends it"
            )

        serve(asker, settings, sock, on_ready=on_ready)
        _say("ended: nothing is in work any more")


def _say(text: str) -> None:
    """To people, if they can be reached: a log on a full disk is no reason to answer nobody."""
    with suppress(OSError):
        click.echo(text, err=True)


def _require_packages() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingBackendError(
            f"serving needs {', '.join(missing)}", hint="pip install 'edgekit[serve]'"
        )
