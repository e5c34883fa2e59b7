"""`edgekit pack`: an engine or a stage as one file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from edgekit.cli import options
from edgekit.cli.progress import ProgressLine
from edgekit.errors import InputError
from edgekit.pack import Packed, default_name, find_packable, pack, pack_to
from edgekit.units import format_bytes


@click.command(
    "pack",
    epilog="Example: edgekit pack int4_awq -o engine.tar.zst · "
    "edgekit pack int4_awq -o - | ssh dev edgekit unpack -",
)
@click.argument("engine", required=False, metavar="[ENGINE|STAGE]")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="The file to write; `-`: stdout. Default: named after the engine, in this directory.",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@options.store
@options.as_json
def command(engine: str | None, out: Path | None, force: bool, store: Path, as_json: bool) -> None:
    """Write ENGINE, or a stage, to one file to be carried to the device.

    Default: the newest engine of the store. The file says first what is in it, so that `edgekit
    unpack` checks every byte on arrival. The same engine gives the same file. Exit code 5 when a
    file of the engine is not as it was built.
    """
    directory = find_packable(store, engine)
    if out == Path("-"):
        if as_json:
            raise InputError("stdout is taken by the pack", hint="leave `--json` out")
        stream = options.binary_stream("stdout")
        with ProgressLine() as progress:
            pack(directory, stream, report=progress)
        stream.flush()
        return
    file = out or Path(default_name(directory))
    with ProgressLine() as progress:
        packed = pack_to(directory, file, force=force, report=progress)
    click.echo(json.dumps(_data(file, packed), indent=2) if as_json else _text(file, packed))


def _data(file: Path, packed: Packed) -> dict[str, object]:
    return {
        "file": str(file),
        "content_bytes": packed.index.content_bytes,
        **asdict(packed.index),
    }


def _text(file: Path, packed: Packed) -> str:
    index = packed.index
    return (
        f"{file}\n  {index.kind} {index.place}, {len(index.files)} files, "
        f"{format_bytes(index.content_bytes)} in {format_bytes(packed.packed_bytes)}\n"
        f"  there: edgekit unpack {file.name}"
    )
