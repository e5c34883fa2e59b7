"""Command lines run in this process, and the JSON that they answer."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner, Result

from edgekit.cli import main


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], prog_name="edgekit")


def ok(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    data: dict[str, Any] = json.loads(result.stdout)
    return data
