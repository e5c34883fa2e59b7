"""Options that several commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import click

from edgekit.backends.edge_llm.runtime import OPTION as EDGELLM_OPTION
from edgekit.backends.edge_llm.runtime import VARIABLE as EDGELLM_VARIABLE
from edgekit.backends.tensorrt_llm.runtime import VARIABLE as TRTLLM_VARIABLE
from edgekit.engine import DEFAULT_STORE
from edgekit.errors import InputError
from edgekit.footprint import STEP_TOKENS
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
_BATCH = click.IntRange(min=1, max=65_536)
batch = click.option(
    "--batch",
    type=_BATCH,
    default=1,
    show_default=True,
    help="Conversations at once.",
)
batch_to_compile = click.option(
    "--batch",
    type=_BATCH,
    help="Conversations at once. Default: as a stage was made for, else 1.",
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
        ctx.meta[TRTLLM_VARIABLE] = value


def _name_edge_llm(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        os.environ[EDGELLM_VARIABLE] = value
        ctx.meta[EDGELLM_VARIABLE] = value


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
speculation = click.option(
    "--speculation",
    type=click.Choice([*STEP_TOKENS]),
    default="none",
    show_default=True,
    help="How the engine drafts by itself. ngram: `tensorrt-llm-pytorch` alone. For engines that "
    "show logits edgekit drafts when they answer.",
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


def binary_stream(name: Literal["stdin", "stdout"]) -> BinaryIO:
    """stdin or stdout for bytes. Raises `InputError` where it is a terminal."""
    stream: BinaryIO = getattr(sys, name).buffer
    if stream.isatty():
        raise InputError(
            f"{name} is a terminal", hint="connect it to a pipe or a file, or name a file"
        )
    return stream


def named_runtimes() -> tuple[str, ...]:
    """`--trtllm-python` and `--edgellm-python` as this command line, not the environment, has
    them."""
    said = click.get_current_context().meta
    rows = (("--trtllm-python", TRTLLM_VARIABLE), (EDGELLM_OPTION, EDGELLM_VARIABLE))
    return tuple(word for flag, name in rows if name in said for word in (flag, said[name]))


on = click.option(
    "--on",
    metavar="USER@HOST",
    help="Compile on that machine, over ssh: plan and quantize here, send, go on there.",
)
on_edgekit = click.option(
    "--on-edgekit", default="edgekit", metavar="PATH", show_default=True, help="edgekit there."
)
on_store = click.option(
    "--on-store",
    default=str(DEFAULT_STORE),
    metavar="DIR",
    show_default=True,
    help="Where engines are kept there, from its home directory.",
)
ssh_option = click.option(
    "--ssh-option",
    "ssh_options",
    multiple=True,
    metavar="NAME=VALUE",
    help="As `ssh -o`, e.g. Port=2222; may be repeated.",
)


def combine(*options: Decorator) -> Decorator:
    """Several options as one decorator, in the order given."""

    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


planning = combine(
    model, profile, targets, precision, context, batch, kv, backend, speculation, headless, store
)
quantizing = combine(calibration, calibration_tokens, seed, offline)
remote = combine(on, on_edgekit, on_store, ssh_option)
