"""What a step is told, and what it gives."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgekit.engine import WORK
from edgekit.errors import EdgekitError
from edgekit.progress import Progress
from edgekit.scratch import SCRATCH_PREFIX
from gpu_check.lines import Line
from gpu_check.rig import Rig


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a step is told."""

    model: str
    precision: str
    store: Path
    batch: int
    context_tokens: int | None = None
    """`None`: the profile's default, or what fits of it."""
    profile: str | None = None
    """`None`: this machine's."""
    gpu_index: int = 0
    gpu_uuid: str | None = None
    repetitions: int = 5
    backend: str = "tensorrt-rtx"
    engine: Path | None = None
    """From here on: facts."""
    first_s: float | None = None

    @property
    def graph(self) -> Path:
        """Where the twin's graph lies between two steps; a build that comes later removes it."""
        return self.store / WORK / f"{SCRATCH_PREFIX}gpu-check-{self.precision}"

    @property
    def built_engine(self) -> Path:
        """Raises `EdgekitError` when `build` has not come before."""
        if self.engine is None:
            raise EdgekitError("there is no engine to check")
        return self.engine

    @property
    def backend_files(self) -> Path:
        """The directory that the backend opens."""
        return self.built_engine / "backend"

    def to_json(self) -> str:
        """For another process."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return json.dumps({k: str(v) if isinstance(v, Path) else v for k, v in data.items()})

    @classmethod
    def from_json(cls, text: str) -> Job:
        """What `to_json` gave."""
        data = json.loads(text)
        engine = data["engine"]
        paths = {"store": Path(data["store"]), "engine": engine and Path(engine)}
        return cls(**{**data, **paths})

    def told(self, facts: Mapping[str, Any]) -> Job:
        """With the facts of a step before."""
        paths = {k: Path(v) for k, v in facts.items() if k == "engine"}
        return replace(self, **{**facts, **paths})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a step gives."""

    lines: list[Line]
    facts: dict[str, Any] = field(default_factory=dict)
    """JSON types."""


Step = Callable[[Job, Rig, Progress], Outcome]
