"""What `edgekit serve` was told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from edgekit.errors import InputError

MIB = 2**20
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@A-Z]+")
"""As browsers send it: lower case, no path, no slash at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a server listens and what it refuses. Raises `InputError` on what would not be safe."""

    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = ()
    """Any of these opens the interface; none: it is open to whoever reaches it."""
    allow_open: bool = False
    """Beyond this machine without a key: only when it was said."""
    origins: tuple[str, ...] = ()
    """Web pages of these origins may use the interface (CORS)."""
    has_page: bool = True
    """A chat for people at `/`."""
    queue_limit: int = 64
    deadline_s: float = 600.0
    drain_s: float = 30.0
    stall_s: float = 60.0
    """So long an answer may stay unread before its connection is reset."""
    max_body_bytes: int = 4 * MIB
    max_new_tokens: int | None = None
    """Of one answer, whatever the request says; None: what the context holds."""

    def __post_init__(self) -> None:
        if not self.is_local and not self.keys and not self.allow_open:
            raise InputError(
                f"whoever reaches {self.host} could use this server: it has no API key",
                hint="give `--api-key-file FILE`, or `--no-auth` if that is meant",
            )
        for origin in self.origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise InputError(
                    f"no page has this origin: {origin}",
                    hint="give `--cors` scheme, host and port only, as in https://example.org:8443",
                )

    @property
    def is_local(self) -> bool:
        """Only programs on this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


def read_keys(files: Sequence[Path], given: Sequence[str]) -> tuple[str, ...]:
    """API keys: those given, and one on each line of the files; `#` begins a comment.

    Raises `InputError` on a file without any, or a key that no header can carry.
    """
    keys = list(given)
    for path in files:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "it is not a text file"
            raise InputError(f"cannot read the key file {path}: {reason}") from exc
        found = [line.strip() for line in lines if line.strip() and line.strip()[0] != "#"]
        if not found:
            raise InputError(f"no key in {path}", hint="write one on each line")
        keys += found
    for key in keys:
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise InputError("an API key must be printable ASCII without spaces, and not empty")
    return tuple(dict.fromkeys(keys))
