"""The schemas of the JSON-Schema-Test-Suite, from the source package of `jsonschema`."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonschema.validators import validator_for

CACHE = Path(__file__).resolve().parents[2] / ".bench" / "json-schema-test-suite"
_PACKAGE = "jsonschema==4.26.0"
_DRAFTS = {
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One schema of the suite."""

    name: str
    schema: Any
    tests: list[dict[str, Any]]
    """`data`, and whether it is `valid`."""

    @property
    def is_judged_rightly(self) -> bool:
        """Whether the validator agrees with every test that the suite has for this schema.

        Some of them expect ECMAScript's regular expressions, which Python does not have.
        """
        validator = validator_for(self.schema)(self.schema)
        try:
            return all(validator.is_valid(test["data"]) == test["valid"] for test in self.tests)
        except Exception:  # a pattern that it cannot read, a reference that it does not follow
            return False


def read_cases() -> list[Case]:
    """Every schema of drafts 4 to 2020-12; the same one in several drafts counts once."""
    cases: dict[str, Case] = {}
    for draft, group in _groups(_archive()):
        schema = group["schema"]
        if isinstance(schema, dict):
            key = json.dumps({k: v for k, v in schema.items() if k != "$schema"}, sort_keys=True)
            schema = {"$schema": _DRAFTS[draft], **schema}
        else:
            key = json.dumps(schema)
        name = f"{draft}: {group['description']}"
        cases.setdefault(key, Case(name=name, schema=schema, tests=group["tests"]))
    return list(cases.values())


def _groups(archive: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with tarfile.open(archive) as files:
        for member in sorted(files.getmembers(), key=lambda member: member.name):
            parts = Path(member.name).parts
            if parts[1:3] == ("json", "tests") and parts[3] in _DRAFTS and member.isfile():
                content = files.extractfile(member)
                assert content is not None
                yield from ((parts[3], group) for group in json.load(content))


def _archive() -> Path:
    name = _PACKAGE.replace("==", "-") + ".tar.gz"
    if not (CACHE / name).exists():
        print(f"downloading the source of {_PACKAGE}", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        options = ["--no-binary", ":all:", "--dest", str(CACHE), _PACKAGE]
        subprocess.run([*command, *options], check=True)
    return CACHE / name
