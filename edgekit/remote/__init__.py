"""`edgekit build --on USER@HOST`: quantized here, compiled there, over the system's ssh.

    here                                       there
    connect, ask ──────────────────────────►   edgekit doctor --json
    plan for that machine, quantize, stage
    send the stage ── rsync, or a pack ────►   <store>/.work/arriving/…    edgekit unpack -
    go on ─────────────────────────────────►   edgekit --driven compile …
    show its progress ◄── lines of stderr ──

Everything that can be wrong with the other machine is asked before any work. One connection serves
all of it; a remote edgekit stops when the connection does, as at Ctrl-C.

`ssh` starts commands there, `facts` is what the other machine says of itself, `send` carries a
stage, `drive` runs edgekit there and speaks its errors here, `machine` is the whole.
"""

from __future__ import annotations

from edgekit.remote.machine import Machine, connect
from edgekit.remote.ssh import Address

__all__ = ["Address", "Machine", "connect"]
