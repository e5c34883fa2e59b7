"""The `edgekit` command. Parses, calls the library, prints; decides nothing."""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from typing import Any

import click

from edgekit import interrupts
from edgekit.errors import EdgekitError

_COMMANDS = {
    "build": "plan, quantize, compile and verify in one go",
    "plan": "say what fits, before any work",
    "chat": "talk to an engine",
    "serve": "answer OpenAI's and Anthropic's clients over HTTP",
    "bench": "measure prefill and decode",
    "quantize": "write a checkpoint with fewer bits",
    "compile": "turn a quantized checkpoint into an engine",
    "verify": "check an engine's files and its answers",
    "pack": "write an engine or a stage to one file",
    "unpack": "check such a file and put it in its place",
    "engines": "list, show and remove engines",
    "profiles": "list and show target devices",
    "doctor": "say what this machine is and what is missing",
}
_INTERRUPTED = 130


class _LazyGroup(click.Group):
    """Loads `edgekit.cli.<command>` only when that command runs."""

    is_process = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"{__name__}.{name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as exc:
            from difflib import get_close_matches

            if close := get_close_matches(args[0], _COMMANDS, n=1):
                text = f"{exc.message} Did you mean `{close[0]}`?"
                raise click.UsageError(text, exc.ctx) from exc
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def __call__(self, *args: Any, **options: Any) -> Any:
        """What the console script calls: this process is the command and ends with it."""
        self.is_process = True
        return super().__call__(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EdgekitError as exc:
            click.echo(f"error: {exc}", err=True)
            if exc.hint:
                click.echo(f"\nhint: {exc.hint}", err=True)
            ctx.exit(exc.exit_code)
        except (KeyboardInterrupt, click.Abort):
            if self.is_process:
                interrupts.stop_listening()  # a second press does not change how it ends
            click.echo("\ninterrupted", err=True)
            ctx.exit(_INTERRUPTED)


@click.group(
    cls=_LazyGroup,
    epilog="Example: edgekit build --model ./SmolLM2-135M-Instruct && edgekit chat",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="edgekit")
@click.option("-v", "--verbose", is_flag=True, help="Say more on stderr.")
@click.option(
    "--driven",
    "is_driven",
    is_flag=True,
    hidden=True,
    help="For `--on` of another machine: progress as JSON on stderr; stop when stdin ends.",
)
def main(verbose: bool, is_driven: bool) -> None:
    """Quantize an LLM, compile an engine for one device, prove it and run it there."""
    if is_driven:
        interrupts.follow_stdin()
    if verbose:
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
