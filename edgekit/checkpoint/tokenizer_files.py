"""The files of a checkpoint that the runtime needs besides the weights."""

from __future__ import annotations

import shutil
from pathlib import Path

_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
)
_DIRECTORIES = ("additional_chat_templates",)


def copy_tokenizer(checkpoint: Path, out: Path) -> None:
    """Copy tokenizer, chat templates and generation defaults into `out`, which may exist."""
    out.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, out / name)
    for name in _DIRECTORIES:
        if (checkpoint / name).is_dir():
            shutil.copytree(checkpoint / name, out / name, dirs_exist_ok=True)
