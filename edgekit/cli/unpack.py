"""`edgekit unpack`: what `edgekit pack` wrote, checked and put in its place."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from edgekit.cli import options
from edgekit.cli.progress import ProgressLine
from edgekit.cli.show import describe_engine
from edgekit.errors import storage_errors
from edgekit.pack import Unpacked, unpack


@click.command(
    "unpack",
    epilog="Example: edgekit unpack engine.tar.zst --store ~/engines · "
    "ssh desk edgekit pack int4_awq -o - | edgekit unpack -",
)
@click.argument(
    "file", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True)
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Unpack there. Default: its place in the store.",
)
@click.option("--force", is_flag=True, help="Replace another engine that lies there.")
@options.store
@options.as_json
def command(file: Path, out: Path | None, force: bool, store: Path, as_json: bool) -> None:
    """Check FILE byte by byte and put the engine or stage in its place; `-` is stdin.

    Nothing is left of a file that is cut off, damaged or not of `edgekit pack`: exit code 5. FILE
    itself is only read.
    """
    with ProgressLine() as progress:
        if file == Path("-"):
            stdin = options.binary_stream("stdin")
            done = unpack(stdin, "stdin", store=store, out=out, force=force, report=progress)
        else:
            with storage_errors(file), file.open("rb") as stream:
                done = unpack(
                    stream,
                    str(file),
                    store=store,
                    out=out,
                    size_bytes=file.stat().st_size,
                    force=force,
                    report=progress,
                )
    if done.was_there:
        click.echo(f"this {done.index.kind} is there already, as it was packed", err=True)
    click.echo(_data(done) if as_json else _text(done))


def _data(done: Unpacked) -> str:
    data = {"path": str(done.path), "kind": done.index.kind, "was_there": done.was_there}
    return json.dumps({**data, "manifest": asdict(done.manifest)}, indent=2, sort_keys=True)


def _text(done: Unpacked) -> str:
    verb = "chat" if done.index.kind == "engine" else "compile"
    text = describe_engine(done.path, done.manifest, as_json=False)
    return f"{text}\n  next: edgekit {verb} {done.path}"
