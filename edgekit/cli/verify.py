"""`edgekit verify`: are the files whole, and are the answers right, here?"""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgekit.cli import options
from edgekit.cli.progress import ProgressLine
from edgekit.cli.show import describe_quality
from edgekit.engine import find_engine
from edgekit.verify import verify_engine


@click.command("verify", epilog="Example: edgekit verify SmolLM2-135M-Instruct/cpu/int4_awq")
@click.argument("engine", required=False)
@options.store
@options.as_json
@options.trtllm
@options.edge_llm
def command(engine: str | None, store: Path, as_json: bool) -> None:
    """Hash every file of ENGINE and compare its answers with the checkpoint's.

    Exit code 5 when a file differs, 4 when the answers do.
    """
    path = find_engine(store, engine)
    with ProgressLine() as progress:
        quality = verify_engine(path, report=progress).to_dict()
    text = "\n".join([f"{path}: as built", *describe_quality(quality)])
    click.echo(json.dumps({"engine": str(path), **quality}, indent=2) if as_json else text)
