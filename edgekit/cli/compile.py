"""`edgekit compile`: one step of `build`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.cli import options
from edgekit.cli.plan import request
from edgekit.cli.progress import ProgressLine
from edgekit.cli.show import describe_engine
from edgekit.pipeline import compile_quantized
from edgekit.planning import request_quantized


@click.command("compile", epilog="Example: edgekit compile ./quantized --name Llama-3.2-1B")
@click.argument("quantized", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", help="What to call the model. Default: as when it was quantized.")
@options.combine(
    options.profile,
    options.targets,
    options.context,
    options.batch,
    options.kv,
    options.backend,
    options.headless,
    options.store,
)
@options.as_json
def command(quantized: Path, name: str | None, as_json: bool, **named: Any) -> None:
    """Turn QUANTIZED, which `edgekit quantize` wrote, into a verified engine."""
    asked = request(model_name=None, precision="auto", **named)
    with ProgressLine() as progress:
        plan, profile = request_quantized(asked, quantized, name)
        result = compile_quantized(quantized, plan, profile, asked.store, report=progress)
    click.echo(describe_engine(result.engine, result.manifest, as_json=as_json))
