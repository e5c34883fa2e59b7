"""Options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgekit.backends.edge_llm.runtime import OPTION as EDGELLM_OPTION
from edgekit.backends.edge_llm.runtime import VARIABLE as EDGELLM_VARIABLE
from edgekit.backends.tensorrt_llm.runtime import VARIABLE as TRTLLM_VARIABLE
from edgekit.engine import DEFAULT_STORE
from edgekit.precision import PRECISIONS
from edgekit.profile import KV_BITS

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

store = click.option(
    "--store",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_STORE,
    show_default=True,
    help="Where engines are kept.",
)
model = click.option(
    "--model",
    "model_name",
    metavar="MODEL",
    help="A checkpoint directory, a GGUF file, or a hub id (a build downloads it; a plan reads its "
    "headers). For a plan a known name is enough; its default is Llama-3.1-Nemotron-Nano-8B-v1.",
)
profile = click.option(
    "--profile",
    "profile_name",
    help="A name from `edgekit profiles`, or a .toml file. Default: what this machine is.",
)
precision = click.option(
    "--precision",
    type=click.Choice(["auto", *PRECISIONS]),
    default="auto",
    show_default=True,
    help="auto: the profile's first choice that fits.",
)


class _Context(click.ParamType[Any]):
    """A number of tokens, or `auto`."""

    name = "context"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "auto":
            return value
        return click.IntRange(min=1).convert(value, param, ctx)


context = click.option(
    "--context",
    type=_Context(),
    metavar="N|auto",
    help="Tokens of context; auto: the most that fit. Default: the profile's, or what fits of it.",
)
kv = click.option(
    "--kv",
    "kv_precision",
    type=click.Choice(["auto", *KV_BITS]),
    default="auto",
    show_default=True,
    help="Precision of the KV cache. auto: the profile's first choice.",
)


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in (value or "").split(","))
    if value is not None and not all(names):
        raise click.BadParameter(f"a name is empty: {value!r}")
    return names if value is not None else ()


headless = click.option(
    "--headless",
    "is_headless",
    is_flag=True,
    help="Plan a device by name as without a desktop on its GPU.",
)
batch = click.option(
    "--batch",
    type=click.IntRange(min=1, max=65_536),
    default=1,
    show_default=True,
    help="Conversations at once.",
)
targets = click.option(
    "--for",
    "targets",
    metavar="PROFILE,…",
    callback=_names,
    help="One engine for several GPUs: their profiles. Planned for the one with the least memory, "
    "or for `--profile`; must fit all.",
)
backend = click.option(
    "--backend",
    "backend_name",
    default="auto",
    show_default=True,
    help="auto: the profile's first choice; to build, the first that is real here.",
)


def _name_runtime(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        os.environ[TRTLLM_VARIABLE] = value  # what looks for it, here or in a child, sees it there


def _name_edge_llm(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        os.environ[EDGELLM_VARIABLE] = value


edge_llm = click.option(
    EDGELLM_OPTION,
    metavar="PYTHON",
    callback=_name_edge_llm,
    expose_value=False,
    help="Where TensorRT Edge-LLM is: an interpreter. Default: "
    f"{EDGELLM_VARIABLE}, or what `edgekit doctor --install edge-llm` made.",
)
trtllm = click.option(
    "--trtllm-python",
    metavar="PYTHON|docker:IMAGE",
    callback=_name_runtime,
    expose_value=False,
    help=f"Where TensorRT-LLM is: an interpreter, or an image. Default: {TRTLLM_VARIABLE}.",
)
offline = click.option("--offline", is_flag=True, help="Never touch the network.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
calibration = click.option(
    "--calibration",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Your own calibration text: .txt, or .jsonl with `text` or `messages`.",
)
calibration_tokens = click.option(
    "--calibration-tokens",
    type=click.IntRange(min=32),
    metavar="N",
    help="How much of it to use: more takes longer. Default: 1024.",
)
seed = click.option("--seed", type=int, default=0, show_default=True, help="For calibration.")


def combine(*options: Decorator) -> Decorator:
    """Several options as one decorator, in the order given."""

    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


planning = combine(model, profile, targets, precision, context, batch, kv, backend, headless, store)
quantizing = combine(calibration, calibration_tokens, seed, offline)
