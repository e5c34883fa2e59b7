"""What both kinds of engine have in common: a TensorRT-LLM of its own, and a session over it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgekit.backends.base import (
    BackendInfo,
    ScoringSession,
    Session,
    StreamingSession,
    Wanted,
)
from edgekit.errors import BackendError, EdgekitError, MissingBackendError

if TYPE_CHECKING:
    from edgekit.backends.tensorrt_llm.command import BuildSizes
    from edgekit.backends.tensorrt_llm.kinds import Kind
    from edgekit.backends.tensorrt_llm.runtime import Runtime


class TensorRtLlm(ABC):
    """The part of a backend that does not depend on the kind of its engines."""

    kind: ClassVar[Kind]
    info: ClassVar[BackendInfo]

    @abstractmethod
    def reader(self) -> Callable[..., Session]:
        """What opens the checkpoint of such an engine, with the arguments of `open_twin`."""

    def version(self) -> str:
        """Version of TensorRT-LLM in its interpreter. Raises `MissingBackendError`."""
        return self.runtime().version

    def runtime(self) -> Runtime:
        """The TensorRT-LLM that is named or found, which has such engines.

        Raises `MissingBackendError`, `BackendError`.
        """
        from edgekit.backends.tensorrt_llm.runtime import find_runtime

        runtime = find_runtime(None)
        if not self.kind.is_of(runtime):
            raise MissingBackendError(self._why_not(runtime), hint=self.kind.remedy)
        return runtime

    def missing_runtime(self) -> str | None:
        """That no interpreter with TensorRT-LLM is named or found, or one without such engines."""
        from edgekit.backends.tensorrt_llm.runtime import OPTION, VARIABLE

        if not is_named():
            return f"needs TensorRT-LLM in a Python of its own, named by `{OPTION}` or {VARIABLE}"
        return self.unfit_runtime()

    def unfit_runtime(self) -> str | None:
        """That the TensorRT-LLM which is named has no such engines. What else may be wrong with it
        is said where it is needed."""
        from edgekit.backends.tensorrt_llm.runtime import find_runtime

        if not is_named():
            return None
        try:
            runtime = find_runtime(None)
        except EdgekitError:
            return None
        return None if self.kind.is_of(runtime) else self._why_not(runtime)

    def _why_not(self, runtime: Runtime) -> str:
        return f"TensorRT-LLM {runtime.version} {self.kind.why_not}"

    def open(
        self, engine: Path, *, context_tokens: int, num_slots: int, threads: int | None = None
    ) -> Session:
        """Raises `BackendError`: its engines give no logits. See `open_stream`."""
        raise BackendError(
            "TensorRT-LLM's engines give tokens, no logits",
            hint="build the engine for another `--backend`",
        )

    def open_stream(
        self,
        engine: Path,
        *,
        context_tokens: int,
        num_slots: int,
        stop_ids: Collection[int] = (),
    ) -> StreamingSession:
        """Load the engine in a worker process. Raises `StaleEngineError` for one built elsewhere,
        `BudgetError`, `BackendError`."""
        from edgekit.backends.tensorrt_llm import compiler
        from edgekit.backends.tensorrt_llm.runtime import find_runtime

        return compiler.open_engine(
            self.kind,
            find_runtime(None),  # a version without such engines is one that differs: told so
            engine,
            context_tokens=context_tokens,
            num_slots=num_slots,
            stop_ids=stop_ids,
        )

    def open_scores(self, engine: Path, *, context_tokens: int) -> ScoringSession:
        """Load the engine so that it gives the logits of what it samples. As `open_stream`."""
        from edgekit.backends.tensorrt_llm import compiler
        from edgekit.backends.tensorrt_llm.runtime import find_runtime

        return compiler.open_engine(
            self.kind,
            find_runtime(None),
            engine,
            context_tokens=context_tokens,
            num_slots=1,
            to_score=True,
        )

    def open_twin(
        self,
        source: Path,
        *,
        context_tokens: int,
        num_slots: int,
        threads: int | None = None,
        keeps_activations: bool = False,
    ) -> Session:
        """The checkpoint on this machine's processor, through torch."""
        return self.reader()(
            source,
            context_tokens=context_tokens,
            num_slots=num_slots,
            keeps_activations=keeps_activations,
        )

    def sizes(self, wanted: Wanted) -> BuildSizes:
        """The sizes that memory follows from, as the plan counts them."""
        from edgekit.backends.tensorrt_llm.command import make_sizes
        from edgekit.footprint import FOOTPRINTS, STEP_TOKENS

        row = FOOTPRINTS[self.info.name]
        return make_sizes(
            context_tokens=wanted.context_tokens,
            batch=wanted.batch,
            chunk_tokens=row.chunk_tokens,
            in_parts=(wanted.precision, wanted.kv_precision) not in row.whole_prompts,
            step_tokens=STEP_TOKENS[wanted.speculation],
        )


def is_named() -> bool:
    """Whether there is a TensorRT-LLM to ask."""
    from edgekit.backends.tensorrt_llm.runtime import VARIABLE

    return bool(os.environ.get(VARIABLE)) or find_spec("tensorrt_llm") is not None
