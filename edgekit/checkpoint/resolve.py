"""What `--model` means: a directory, a GGUF file to convert, or a hub id to download."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from edgekit.checkpoint.hub import HUB_ID, download_checkpoint
from edgekit.checkpoint.read import Checkpoint, read_checkpoint, write_source
from edgekit.errors import InputError, storage_errors
from edgekit.models import find_model, list_models
from edgekit.progress import Progress, no_progress
from edgekit.scratch import exists

_CONVERTER_VERSION = 1
"""Raise it with every change of what a conversion writes: old conversions are then redone."""
_QUANT_SUFFIX = re.compile(
    r"[-._](?:i?q\d\w*|f16|fp16|bf16|f32|fp32|mxfp4\w*|tq\d\w*)$", re.IGNORECASE
)
_HASH_STEP_BYTES = 16 * 1024**2


def resolve_model(
    model: str, *, work: Path, offline: bool = False, report: Progress = no_progress
) -> Checkpoint:
    """The checkpoint that `model` names, below `work` if it has to be made.

    An existing directory is read in place. A GGUF file is converted once, into
    `work/checkpoint-<digest of the file and the converter>`, and found again by its contents.
    `org/name[@revision]` is downloaded into `work/hub`, continuing where a download stopped;
    with `offline` only a finished download is used. Nothing that starts with `.`, `/` or `~`,
    or that exists, is ever looked up on the hub.

    Raises `InputError` when there is no such model, `CheckpointError` when it is damaged or
    nothing that edgekit reads, `StorageError` when `work` may not be written.
    """
    path = expand_user(model)
    if model and exists(path) and path.is_dir():
        return read_checkpoint(path)
    if exists(path) and path.is_file():
        return _convert(path, work, report)
    match = HUB_ID.fullmatch(model)
    if match is None or path.suffix.lower() in (".gguf", ".safetensors"):
        hint = "give a checkpoint directory, a .gguf file, or a hub id such as `org/name`"
        if model in list_models():
            hint = f"to download it: `--model {find_model(model).hub_id}`"
        raise InputError(f"no such file or directory: {model}", hint=hint)
    return download_checkpoint(
        match["repository"], match["revision"], work / "hub", offline, report
    )


def expand_user(model: str) -> Path:
    """`~/x` as a path in the home directory; unchanged where there is no such home."""
    try:
        return Path(model).expanduser()
    except RuntimeError:
        return Path(model)


def model_name(path: Path) -> str:
    """The file's stem without the suffix that says how it is quantized.

    `SmolLM2-135M-Instruct.Q4_1.gguf` -> `SmolLM2-135M-Instruct`.
    """
    return _QUANT_SUFFIX.sub("", path.stem) or path.stem


def _convert(path: Path, work: Path, report: Progress) -> Checkpoint:
    from edgekit.checkpoint.gguf_file import read_gguf

    gguf = read_gguf(path)  # before hashing: a file of another kind is refused at once
    sha256 = _sha256(path, report)
    key = hashlib.sha256(f"{sha256} {_CONVERTER_VERSION}".encode()).hexdigest()[:16]
    final = work / f"checkpoint-{key}"
    if not final.is_dir():
        from edgekit.checkpoint.gguf import convert_gguf

        with _scratch(final) as scratch:
            quant_types = convert_gguf(gguf, scratch, report=report)
            write_source(
                scratch,
                name=model_name(path),
                kind="gguf",
                file=path.name,
                sha256=sha256,
                quant_types=quant_types,
            )
            read_checkpoint(scratch)
    # the same file under another name is converted already, but has the name it has now
    return replace(read_checkpoint(final), name=model_name(path))


def _sha256(path: Path, report: Progress) -> str:
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(_HASH_STEP_BYTES):
            digest.update(block)
            done += len(block)
            report("hash the GGUF file", done, total)
    return digest.hexdigest()


@contextmanager
def _scratch(final: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `final` when the body succeeds, else disappears."""
    # the process id keeps two builds of the same model apart; the first to finish wins
    scratch = final.with_name(f".building-{final.name}-{os.getpid()}")
    with storage_errors(final):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            yield scratch
            if not final.is_dir():
                scratch.rename(final)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
