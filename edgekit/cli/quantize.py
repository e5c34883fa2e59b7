"""`edgekit quantize`: one step of `build`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.cli import options
from edgekit.cli.plan import request
from edgekit.cli.progress import ProgressLine
from edgekit.errors import InputError
from edgekit.pipeline import BuildOptions, quantize
from edgekit.planning import request_plan, require_checkpoint
from edgekit.preflight import require_room


@click.command(
    "quantize",
    epilog="Example: edgekit quantize --model ./Llama-3.2-1B --precision int8 --out ./quantized",
)
@options.planning
@options.quantizing
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="The directory to write."
)
def command(
    calibration: Path | None,
    calibration_tokens: int | None,
    seed: int,
    out: Path,
    **named: Any,
) -> None:
    """Write a ModelOpt checkpoint (Hugging Face layout) with fewer bits."""
    asked = request(**named)
    if out.exists():
        raise InputError(f"there is something already: {out}", hint="choose another `--out`")
    with ProgressLine() as progress:
        checkpoint = require_checkpoint(asked, report=progress)
        plan, profile = request_plan(asked, checkpoint)
        require_room(plan, "quantize")
        quantize(
            checkpoint,
            plan.precision,
            profile,
            out,
            BuildOptions(calibration=calibration, calibration_tokens=calibration_tokens, seed=seed),
            checkpoint_sha256=checkpoint.sha256(progress),
            backend=plan.backend,
            report=progress,
        )
    click.echo(out)
