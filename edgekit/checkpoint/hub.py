"""The Hugging Face hub: whole checkpoints, or only what a plan needs of one.

Nothing here runs unless the user named a hub id, and `offline` forbids every request.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from edgekit.checkpoint.read import SOURCE_FILE, Checkpoint, read_checkpoint, write_source
from edgekit.errors import CheckpointError, InputError, storage_errors
from edgekit.families import read_spec
from edgekit.model import ModelSpec
from edgekit.progress import Progress

HUB_ID = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?")
_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model*", "*.txt"]
_TOLERANCE = 0.01
"""Some checkpoints store buffers or a tied head besides the weights that the config implies."""


def read_hub_spec(
    repository: str, revision: str | None, hub: Path, *, offline: bool = False
) -> ModelSpec:
    """The shape of a model from its config.json and the headers of its safetensors files.

    Weights are not downloaded: headers come by range requests. The config is kept in `hub`, so a
    second plan needs no network but for the headers, and with `offline` none at all. Raises
    `InputError` when it cannot be had, `CheckpointError` when headers and config disagree.
    """
    api = _api()
    name = f"{repository}@{revision}" if revision else repository
    with storage_errors(hub):
        try:
            path = api.hf_hub_download(
                repository, "config.json", revision=revision, cache_dir=hub,
                local_files_only=offline,
            )  # fmt: skip
            stored = 0
            if not offline:
                metadata = api.get_safetensors_metadata(repository, revision=revision)
                stored = sum(metadata.parameter_count.values())
        except Exception as exc:  # the vendor's border: a dozen unrelated classes
            if isinstance(exc, OSError) and exc.errno is not None:
                raise
            raise _hub_error(name, offline, exc) from exc
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as exc:
        raise CheckpointError(f"the config.json of {name} is not JSON: {exc}") from exc
    if not isinstance(config, dict):
        raise CheckpointError(f"the config.json of {name} holds no object")
    spec = read_spec(config)
    if stored and abs(stored - spec.num_params) > _TOLERANCE * spec.num_params:
        raise CheckpointError(
            f"{name} stores {stored:,} weights, its config.json describes {spec.num_params:,}",
            hint="it may be quantized already, or of another kind: look at its model card",
        )
    return spec


def download_checkpoint(
    repository: str, revision: str | None, hub: Path, offline: bool, report: Progress
) -> Checkpoint:
    """The whole checkpoint, continuing where a download stopped."""
    api = _api()
    name = f"{repository}@{revision}" if revision else repository
    report(f"download {name}", 0, 1)
    with storage_errors(hub):
        try:
            path = Path(
                api.snapshot_download(
                    repository,
                    revision=revision,
                    cache_dir=hub,
                    local_files_only=offline,
                    allow_patterns=_FILES,
                )
            )
        except Exception as exc:  # the vendor's border: a dozen unrelated classes
            if isinstance(exc, OSError) and exc.errno is not None:
                raise
            raise _hub_error(name, offline, exc) from exc
    if not (path / SOURCE_FILE).is_file():
        if offline:
            raise _hub_error(name, offline, None)
        write_source(
            path,
            name=repository.rpartition("/")[2],
            kind="hub",
            repository=repository,
            # the hub's cache names a snapshot after its commit
            revision=path.name,
        )
    report(f"download {name}", 1, 1)
    return read_checkpoint(path)


def _api() -> Any:
    try:
        import huggingface_hub
    except ImportError as exc:
        raise InputError(
            "reading a model from the hub needs the package `huggingface_hub`",
            hint="`pip install edgekit[build]`, or give a checkpoint directory",
        ) from exc
    return huggingface_hub


def _hub_error(name: str, offline: bool, exc: Exception | None) -> InputError:
    if offline:
        return InputError(
            f"not on this machine, and downloads are off: {name}",
            hint="download it once without `--offline`, or give a checkpoint directory",
        )
    causes = {
        "GatedRepoError": ("its owner asks for a login", "run `hf auth login` after you asked"),
        "RepositoryNotFoundError": (
            "no such repository",
            "check the spelling; a path starts with `./` or `/`",
        ),
        "RevisionNotFoundError": ("no such revision", "leave it out for the newest one"),
    }
    first_line = (str(exc).strip() or type(exc).__name__).splitlines()[0]
    cause, hint = causes.get(
        type(exc).__name__, (first_line, "check the network; a repeated call continues")
    )
    return InputError(f"cannot download {name}: {cause}", hint=hint)
