"""What a worker reports, or how it ended, as edgekit's errors."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.backends.build_failure import signal_of
from edgekit.backends.worker_wire import Words, kind_of_text
from edgekit.errors import BackendError, EdgekitError

_SHOWN_LINES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What one kind of the protocol's errors means for a user."""

    error: type[EdgekitError]
    words: str
    """Before what was being done."""
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """Whose package a worker drives, and what its failures mean."""

    name: str
    """As sentences have it."""
    words: Words
    """See `worker_wire`."""
    meanings: Mapping[str, Meaning]
    """"internal", and "memory" if `words` has it, at least."""
    missing_hint: str
    """What to do when its interpreter cannot be started."""

    def reported_error(
        self, message: Mapping[str, Any], said: Sequence[str], *, doing: str
    ) -> EdgekitError:
        """The error for an `error` of the protocol; `said` is what the worker printed before it."""
        kind, text = str(message.get("kind")), str(message.get("message"))
        if kind not in self.meanings or kind == "internal":
            # the reason of a failure is often in the log of the C++ runtime alone
            kind = kind_of_text("\n".join([text, *said]), self.words)
        meaning = self.meanings[kind]
        shown = _last(said) if kind == "internal" else ""
        return meaning.error(f"{meaning.words} {doing}: {text}{shown}", hint=meaning.hint or None)

    def ended_error(self, status: int, said: Sequence[str]) -> EdgekitError:
        """The error for a process that ended without being asked to."""
        number = signal_of(status)  # of a container, too, whose tool gives 128 and the signal
        how = f"exit status {status}" if number is None else signal.Signals(number).name
        if kind_of_text("\n".join(said), self.words) == "memory":
            meaning = self.meanings["memory"]
            text = f"{meaning.words} the {self.name} worker ({how}){_last(said)}"
            return meaning.error(text, hint=meaning.hint or None)
        killed = "the system may have killed it for memory" if number == signal.SIGKILL else None
        return BackendError(f"the {self.name} worker ended ({how}){_last(said)}", hint=killed)


def copy_of(error: EdgekitError) -> EdgekitError:
    """One to raise: an exception that is raised in two threads mixes their tracebacks."""
    return type(error)(str(error), hint=error.hint)


def _last(said: Sequence[str]) -> str:
    """The last lines it printed, as the end of a sentence."""
    return f"; it said: {' | '.join(said[-_SHOWN_LINES:])}" if said else ""
