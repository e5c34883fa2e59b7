"""What a build runs, as lines to be read or pasted, on one machine or on two; starts nothing."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from edgekit.backends import find_backend, install_line, list_backends
from edgekit.backends.base import Prepares, Streams
from edgekit.checkpoint.resolve import expand_user
from edgekit.compile import wanted
from edgekit.device import read_device
from edgekit.engine import DEFAULT_STORE, engine_path, stage_path
from edgekit.models import DEFAULT_MODEL, buildable_name
from edgekit.pipeline import BuildOptions
from edgekit.plan import Plan
from edgekit.planning import Request
from edgekit.profile import Profile
from edgekit.scratch import exists
from edgekit.target import own_gpu


def build_commands(
    plan: Plan,
    profile: Profile,
    request: Request,
    options: BuildOptions,
    *,
    there: Sequence[str] = (),
    runtimes: Sequence[str] = (),
) -> list[str]:
    """The command lines of other tools that a build of this plan runs, none for most backends, and
    where the device is another machine and a stage goes to it, those of edgekit around them.

    `there`: what carries a stage to a machine named by `--on` and goes on with it, in this order.
    `runtimes`: options that say where NVIDIA's runtimes are here.
    """
    known = {info.name for info in list_backends()}
    backend = find_backend(plan.backend) if plan.backend in known else None
    if not isinstance(backend, Streams):
        return [*there]
    engine = engine_path(
        request.store,
        model=plan.model,
        profile="+".join(plan.devices),
        precision=plan.precision,
        backend=plan.backend,
    )
    stage, asked = stage_path(engine), wanted(plan, profile)
    compiles = backend.commands(asked, stage / "source", engine / "backend")
    is_able = isinstance(backend, Prepares)
    prepares = backend.prepare_commands(asked, stage / "source") if is_able else []
    if not there and own_gpu(profile, read_device()) is not None:
        return [*prepares, *compiles]
    option = backend.info.runtime_option
    *carries, goes_on = there or (
        shlex.join(["rsync", "-a", str(stage), "USER@DEVICE:"]),
        shlex.join(["edgekit", "compile", stage.name, *option]),
    )
    install = "" if there else install_line(plan.backend)
    return [
        "# here: makes and proves what the device compiles",
        shlex.join([*stage_words(plan, request, options), *runtimes]),
        *(["# which runs, where its runtime is here; else the device does"] if prepares else []),
        *prepares,
        "# to the device",
        *carries,
        "# on the device",
        *([install] if install else []),
        goes_on,
        *(["# which runs there, in that machine's directories"] if compiles else []),
        *compiles,
    ]


def stage_words(plan: Plan, request: Request, options: BuildOptions) -> list[str]:
    """The `edgekit build` that makes the stage of a plan, every choice written out."""
    said = {
        "--profile": request.profile or plan.profile,
        "--precision": plan.precision,
        "--kv": plan.kv_precision,
        "--context": plan.context_tokens,
        "--batch": plan.batch,
        "--speculation": None if request.speculation == "none" else request.speculation,
        "--stage": "checkpoint",
        "--model": _model(request.model),
        "--backend": None if request.backend == "auto" else request.backend,
        "--store": None if request.store == DEFAULT_STORE else request.store,
        "--calibration": options.calibration,
        "--calibration-tokens": options.calibration_tokens,
        "--seed": options.seed or None,
    }
    words = [word for name, value in said.items() if value is not None for word in (name, value)]
    flags = {"--headless": request.is_headless, "--offline": request.offline}
    flags["--force"] = options.force
    return ["edgekit", "build", *map(str, words), *(name for name, is_on in flags.items() if is_on)]


def _model(named: str | None) -> str:
    """What a build takes for what a plan was made of."""
    named = DEFAULT_MODEL if named is None else named
    return named if exists(expand_user(named)) else buildable_name(named)
