"""One file that carries an engine, or the stage before one, to another machine.

    x.tar.zst = zstd frames, one after the other; what is in them is one tar archive
    ├── edgekit-pack.json   the index: what follows, in order, with the size and sha256 of each;
    │                       its frame is stored, not compressed: `head -c 3000` shows it
    ├── backend/model.data  every file of the directory, sorted, each in a frame of its own
    ├── …
    └── two empty blocks    the end of the archive

The index comes first and everything else follows from it, byte by byte: names and sizes in the
archive's headers, contents, padding, the end. So reading never asks what a strange archive may
contain: what is not as the index says is refused, and the index itself is small and checked before
anything is written. `tar --zstd -xf` unpacks such a file as well, without the checks.

The same directory gives the same file: sorted names, no times, owners or modes, one thread. Only
what is written to a pipe differs, in one number: how long the file is was not known yet.

`names` says which paths are harmless, `index` what the index holds, `frames` is zstd, `write` and
`read` are the two ends, `unpack` the way into a store.
"""

from __future__ import annotations

from edgekit.pack.index import PACK_FORMAT, PackIndex
from edgekit.pack.unpack import Unpacked, unpack
from edgekit.pack.write import Packed, default_name, find_packable, pack, pack_to

__all__ = [
    "PACK_FORMAT",
    "PackIndex",
    "Packed",
    "Unpacked",
    "default_name",
    "find_packable",
    "pack",
    "pack_to",
    "unpack",
]
