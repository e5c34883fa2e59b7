"""`edgekit plan`: does this model fit this device?"""

from __future__ import annotations

import json
from typing import Any

import click

from edgekit.cli import options
from edgekit.cli.plan_text import CONTEXTS, choice_table, describe_plan, explain_step
from edgekit.plan import make_plan, plan_table, require_fit
from edgekit.planning import Request, ask, require_targets
from edgekit.preflight import require_shape, require_slots


@click.command(
    "plan", epilog="Example: edgekit plan --model Llama-3.1-Nemotron-Nano-8B-v1 --profile rtx-4090"
)
@options.planning
@options.offline
@click.option(
    "--step",
    "step_name",
    type=click.Choice(["quantize", "compile", "run"]),
    help="Explain one step of the build.",
)
@options.as_json
def command(step_name: str | None, as_json: bool, **named: Any) -> None:
    """Say what fits on a device, before any download or build.

    Exit code 3 when it does not fit, 2 when the device cannot do it at all.
    """
    wish = request(**named)
    question, profile = ask(wish)
    plan = make_plan(question, precision=wish.precision, context=wish.context)
    if as_json:
        data = plan.to_dict()
        click.echo(json.dumps(data["steps"][step_name] if step_name else data, indent=2))
    elif step_name is not None:
        click.echo(explain_step(plan, step_name, question))
    else:
        limit = question.spec.max_context_tokens
        contexts = [c for c in CONTEXTS if c <= limit] or [limit]
        click.echo(f"{choice_table(plan_table(question, contexts))}\n\n{describe_plan(plan)}")
    require_fit(plan)
    require_targets(question, plan, is_headless=wish.is_headless)
    require_shape(question.spec, plan, profile)
    require_slots(question.spec, plan)


def request(
    *, model_name: str | None, profile_name: str | None, backend_name: str, **rest: Any
) -> Request:
    """The planning options as one value."""
    return Request(model=model_name, profile=profile_name, backend=backend_name, **rest)
