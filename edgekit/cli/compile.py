"""`edgekit compile`: one step of `build`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.cli import options
from edgekit.cli.plan import request
from edgekit.cli.progress import ProgressLine
from edgekit.cli.show import describe_engine
from edgekit.engine import STAGE_FILE
from edgekit.errors import InputError
from edgekit.pipeline import compile_quantized, compile_staged
from edgekit.planning import request_quantized, request_staged


@click.command("compile", epilog="Example: edgekit compile ./quantized --name Llama-3.2-1B")
@click.argument("quantized", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", help="What to call the model. Default: as when it was quantized.")
@options.combine(
    options.profile,
    options.targets,
    options.context,
    options.batch_to_compile,
    options.kv,
    options.backend,
    options.speculation,
    options.headless,
    options.store,
)
@click.option("--force", is_flag=True, help="Compile although the same engine is there.")
@options.trtllm
@options.edge_llm
@options.as_json
def command(quantized: Path, name: str | None, force: bool, as_json: bool, **named: Any) -> None:
    """Turn QUANTIZED into a verified engine.

    It is what `edgekit quantize` wrote, or a stage of `edgekit build --stage checkpoint`.
    """
    asked = request(model_name=None, precision="auto", **named)
    with ProgressLine() as progress:
        if (quantized / STAGE_FILE).is_file():
            if name is not None:
                raise InputError("a stage has its name", hint="leave `--name` out")
            plan, profile = request_staged(asked, quantized)
            result = compile_staged(
                quantized, plan, profile, asked.store, force=force, report=progress
            )
        else:
            plan, profile = request_quantized(asked, quantized, name)
            result = compile_quantized(
                quantized, plan, profile, asked.store, force=force, report=progress
            )
    click.echo(describe_engine(result.engine, result.manifest, as_json=as_json))
