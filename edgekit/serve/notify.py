"""What a service manager is told: ready, about to end, still alive. systemd's protocol.

A line in a datagram to the socket that `NOTIFY_SOCKET` names; without that variable nobody listens
and nothing happens. Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress


def notify(line: str) -> None:
    """Tell it, e.g. `READY=1`. A manager that cannot be reached is no reason to stop."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return
    address = "\0" + name[1:] if name[0] == "@" else name  # @: Linux's abstract names
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)  # a manager that does not read must not stall answers
        sock.connect(address)
        sock.send(line.encode())


def watchdog_s() -> float | None:
    """Seconds after which a silent process is taken for dead; None: nobody watches this one."""
    micros, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID")
    if not micros.isdecimal() or int(micros) == 0 or pid not in (None, str(os.getpid())):
        return None
    return int(micros) / 1e6


async def keep_watchdog(is_well: Callable[[], bool]) -> None:
    """Say that all is well, as often as systemd advises, for as long as it is.

    It comes from the event loop, so it also says that requests are still being read.
    """
    seconds = watchdog_s()
    while seconds is not None:
        if is_well():
            notify("WATCHDOG=1")
        await asyncio.sleep(seconds / 2)
