"""`edgekit plan`: does this model fit this device?"""

from __future__ import annotations

import json
from typing import Any

import click

from edgekit.cli import options
from edgekit.plan import require_fit
from edgekit.planning import Request, request_plan


@click.command(
    "plan", epilog="Example: edgekit plan --model Llama-3.1-Nemotron-Nano-8B-v1 --profile cpu"
)
@options.planning
@options.as_json
def command(as_json: bool, **named: Any) -> None:
    """Say what fits on a device, before any download or build.

    Exit code 3 when nothing fits.
    """
    plan, _ = request_plan(request(**named))
    click.echo(json.dumps(plan.to_dict(), indent=2) if as_json else plan.describe())
    require_fit(plan)


def request(
    *, model_name: str | None, profile_name: str, backend_name: str, **rest: Any
) -> Request:
    """The planning options as one value."""
    return Request(model=model_name, profile=profile_name, backend=backend_name, **rest)
