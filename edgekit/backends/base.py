"""The contract between edgekit and a compiler-and-runtime pair.

A backend is two things: `BackendInfo`, plain data that can be read where its packages are not
installed, and an object with `compile` (files that `export` or `quantize` made -> an engine's
files) and `open` (an engine -> a `Session`). `pipeline` looks at `info.consumes` and makes what
is missing; nothing above a backend knows a vendor's type.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from edgekit.backends.info import BackendInfo as BackendInfo
from edgekit.backends.info import Wanted as Wanted
from edgekit.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.backends.installation import Installation
    from edgekit.device import Device

    Logits = NDArray[np.float32]
    TopScores = tuple[NDArray[np.int64], NDArray[np.float32]]


class Session(Protocol):
    """A loaded engine: weights, and `num_slots` independent KV slots of `context_tokens` each.

    Not thread-safe; one owner at a time. A slot holds the tokens given to it so far; its length
    only moves through these calls, and a call that raises leaves every slot as it was.
    """

    @property
    def num_slots(self) -> int:
        """KV slots, each one conversation."""
        ...

    @property
    def context_tokens(self) -> int:
        """Tokens a slot can hold."""
        ...

    @property
    def vocab_size(self) -> int:
        """V, the width of every logits row."""
        ...

    fills_apart: bool
    """Prompts fill the cache by other kernels than those that give logits."""

    def length(self, slot: int) -> int:
        """Tokens that `slot` holds."""
        ...

    def prefill(self, slot: int, token_ids: Sequence[int], *, num_logits: int = 1) -> Logits:
        """Append T >= 1 tokens to `slot` and return the logits of the last `num_logits` of them.

        `[num_logits, V]`, float32, valid until the next call; row i predicts the token after
        position `T - num_logits + i`. 0 fills the cache alone; drafted tokens are verified with T
        and taken back with `truncate`. Raises `InputError` when the slot would overflow or an id
        is outside the vocabulary.
        """
        ...

    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> Logits:
        """As `prefill` of one token for each of `slots` (distinct), in one pass over the weights
        where that is possible: `[len(slots), V]`."""
        ...

    def truncate(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens of `slot`; 0 empties it. Costs nothing."""
        ...

    def close(self) -> None:
        """Free the memory. Safe to call twice."""
        ...


class StreamingSession(Protocol):
    """A loaded engine that samples and schedules by itself: it takes ids and streams ids.

    Nothing above it can see logits, so there are no constraints and no drafts of ours; what steers
    text (stop strings, the thinking budget) stops a stream and begins another one.
    """

    @property
    def context_tokens(self) -> int:
        """Tokens that a prompt and its answer can have together."""
        ...

    def stream(
        self, token_ids: Sequence[int], *, sampling: Mapping[str, Any], max_new_tokens: int
    ) -> Generator[int]:
        """New tokens for a prompt, as they come, the one that ended the answer included.

        `sampling` has the fields of `runtime.sampling.Sampling`. Closing the generator cancels the
        request. Raises `InputError`, `BackendError`.
        """
        ...

    def close(self) -> None:
        """Free the memory. Safe to call twice."""
        ...


class ScoringSession(StreamingSession, Protocol):
    """A streaming one that also says what it finds likely."""

    def scores(self, token_ids: Sequence[int], *, first: int = 0) -> Logits:
        """Log-probabilities `[T - first, V]`, float32: row i is of the token after position
        `first + i`. Raises `InputError` where the backend gives none, `BackendError`."""
        ...


@runtime_checkable
class TakesText(Protocol):
    """A streaming session whose runtime is given the text of the ids, and cuts it by itself."""

    takes_text: Literal[True]
    """Ids that are not those of their text are not what the engine reads."""


@runtime_checkable
class TopScoring(Protocol):
    """A streaming session that says what it finds likeliest, of a few tokens alone."""

    def top_scores(self, token_ids: Sequence[int], *, first: int = 0) -> TopScores:
        """Tokens and their log-probabilities, `[T - first, K]` each, the likeliest first: row i is
        of what follows position `first + i`. A token of -1: there is none; a row of them: this
        position cannot be asked. Raises `InputError` where it gives none, `BackendError`."""
        ...


@runtime_checkable
class Scores(Protocol):
    """A streaming backend whose engines can be asked for log-probabilities."""

    def open_scores(self, engine: Path, *, context_tokens: int) -> ScoringSession:
        """Load an engine to be checked: one conversation, no token ends an answer. What
        `open_stream` raises."""
        ...


@runtime_checkable
class BindsDevice(Protocol):
    """A backend whose engines run only with the device and software that compiled them."""

    def require_here(self, recorded: Mapping[str, Any], engine: Path) -> None:
        """Raises `StaleEngineError` where an engine does not open here. `recorded` is the `device`
        of its manifest, in `engine`."""
        ...


@runtime_checkable
class ChoosesGpu(Protocol):
    """A backend that takes one of several GPUs by itself."""

    def gpu_uuid(self, engine: Path) -> str | None:
        """Of the GPU that `open` would take now; `None`: none, or not known. Never raises."""
        ...


@runtime_checkable
class Streams(Protocol):
    """A backend whose engines sample by themselves (`exposes_logits` is false)."""

    def missing_runtime(self) -> str | None:
        """What a build lacks here beside the packages that `info` names; `None`: nothing."""
        ...

    def commands(self, wanted: Wanted, source: Path, engine: Path) -> list[str]:
        """The command lines that `compile` runs, to be read or pasted."""
        ...

    def open_stream(
        self,
        engine: Path,
        *,
        context_tokens: int,
        num_slots: int,
        stop_ids: Collection[int] = (),
    ) -> StreamingSession:
        """Load the files that `compile` wrote; `stop_ids` end every answer.

        Raises `BackendError`, `StaleEngineError`, `BudgetError`.
        """
        ...


@runtime_checkable
class RunsByVersion(Protocol):
    """A backend whose runtime, where one is named, may be of a version for another backend."""

    def unfit_runtime(self) -> str | None:
        """That the one which is named is such; `None`: it is not, or none is. Never raises."""
        ...


@runtime_checkable
class FillsApart(Protocol):
    """A backend whose prompts may go through kernels of their own."""

    def leave_out_prompts(self, engine: Path) -> None:
        """Have prompts go through the engine's other kernels from now on."""
        ...


@runtime_checkable
class Prepares(Protocol):
    """A backend that can do a part of the compiler's work on any machine."""

    def prepare(self, source: Path, wanted: Wanted, *, report: Progress) -> None:
        """Add to `source` what `compile` would make of it first, where this machine can; what it
        cannot is left to `compile`. Raises `BackendError`, `CheckpointError`."""
        ...

    def prepare_commands(self, wanted: Wanted, source: Path) -> list[str]:
        """The command lines that `prepare` runs, to be read or pasted."""
        ...


@runtime_checkable
class Installs(Protocol):
    """A backend whose runtime edgekit can install into an environment of its own."""

    def plan_install(self, device: Device) -> Installation:
        """What would be done on this machine. Raises `MissingBackendError` where it cannot be."""
        ...

    def install(self, plan: Installation) -> str:
        """Do it, and say what is there then. Raises `BackendError`."""
        ...


@runtime_checkable
class Advises(Protocol):
    """A backend with a runtime of its own, of which `edgekit doctor` tells."""

    def advice(self) -> list[str]:
        """What was found, and what is wrong with it; empty where none is named. Never raises."""
        ...


class Backend(Protocol):
    """A compiler and a runtime behind one name."""

    info: BackendInfo

    def version(self) -> str:
        """Version of the installed package. Raises `MissingBackendError`."""
        ...

    def compile(
        self, source: Path, out: Path, wanted: Wanted, *, report: Progress
    ) -> dict[str, Any]:
        """Turn `source` (what `info.consumes` says) into this backend's files below `out`.

        May move the files of `source` there. Returns what the manifest records under `device`.
        Raises `BackendError`.
        """
        ...

    def open(
        self, engine: Path, *, context_tokens: int, num_slots: int, threads: int | None = None
    ) -> Session:
        """Load the files that `compile` wrote. Raises `BackendError`, `StaleEngineError`."""
        ...

    def open_twin(
        self,
        source: Path,
        *,
        context_tokens: int,
        num_slots: int,
        threads: int | None = None,
        keeps_activations: bool = False,
    ) -> Session:
        """Open `source`, from which an engine is made, on this machine's processor.

        It computes what the engine will, as far as a processor can; with `keeps_activations`
        without rounding them, where the engine does. Raises `BackendError`.
        """
        ...
