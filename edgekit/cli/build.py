"""`edgekit build`: a checkpoint becomes a proven engine."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from edgekit.cli import options
from edgekit.cli.plan import request
from edgekit.cli.plan_text import describe_plan
from edgekit.cli.progress import ProgressLine
from edgekit.cli.show import describe_engine, describe_next
from edgekit.dry_run import build_commands
from edgekit.pipeline import BuildOptions, build
from edgekit.plan import require_fit
from edgekit.planning import refuse_early, request_plan, require_checkpoint
from edgekit.remote import Address, connect


@click.command(
    "build",
    epilog="Example: edgekit build --model ./SmolLM2-135M-Instruct --precision int4_awq · "
    "edgekit build --model ./SmolLM2-135M-Instruct --on me@jetson",
)
@options.planning
@options.quantizing
@click.option(
    "--stage",
    type=click.Choice(["engine", "checkpoint"]),
    default="engine",
    show_default=True,
    help="checkpoint: everything up to what is compiled on the device.",
)
@options.remote
@click.option("--force", is_flag=True, help="Build although the same engine is there.")
@click.option(
    "--dry-run", is_flag=True, help="Stop after the plan; print commands of others' tools."
)
@options.trtllm
@options.edge_llm
@options.as_json
def command(
    calibration: Path | None,
    calibration_tokens: int | None,
    seed: int,
    force: bool,
    dry_run: bool,
    as_json: bool,
    on: str | None,
    on_edgekit: str,
    on_store: str,
    ssh_options: tuple[str, ...],
    **named: Any,
) -> None:
    """Plan, quantize, compile and verify an engine.

    Steps that are done already are reused; a build that was interrupted goes on where it was.

    With `--on` the last two happen on another machine: what it is and has is asked before any work,
    its errors end this command with their exit code, and Ctrl-C stops both.
    """
    asked = request(**named)
    with ProgressLine() as progress, ExitStack() as stack:
        checkpoint, machine = None, None
        if on is not None:
            address = Address(host=on, edgekit=on_edgekit, store=on_store, options=ssh_options)
            machine = stack.enter_context(connect(address, runtimes=options.named_runtimes()))
            asked = machine.request(asked)
        if not dry_run:
            refuse_early(asked)
            checkpoint = require_checkpoint(asked, report=progress)
        wishes = BuildOptions(
            calibration=calibration,
            calibration_tokens=calibration_tokens,
            seed=seed,
            force=force,
            stops_at_stage=asked.stage == "checkpoint",
        )
        plan, profile = request_plan(asked, checkpoint, to_build=not dry_run, asks_runtime=dry_run)
        click.echo(describe_plan(plan), err=True)
        if dry_run or checkpoint is None:
            there = machine.commands(plan, asked.store) if machine is not None else ()
            commands = (
                build_commands(
                    plan, profile, asked, wishes, there=there, runtimes=options.named_runtimes()
                )
                if plan.fits
                else []
            )
            data = plan.to_dict() | ({"commands": commands} if commands else {})
            for line in [json.dumps(data, indent=2)] if as_json else commands:
                click.echo(line)
            require_fit(plan)
            return
        if machine is not None:
            machine.require_space(plan)
        result = build(
            checkpoint,
            plan,
            profile,
            asked.store,
            wishes,
            report=progress,
        )
        if machine is not None:
            built = machine.go_on(
                result.engine, plan, force=force, report=progress, say=progress.say
            )
            click.echo(describe_engine(built.engine, built.manifest, as_json=as_json, on=on))
            return
    if result.was_reused:
        click.echo(f"this {asked.stage} is there already; nothing to do", err=True)
    click.echo(describe_engine(result.engine, result.manifest, as_json=as_json))
    if asked.stage == "checkpoint":
        click.echo(describe_next(result.engine, result.manifest), err=True)
