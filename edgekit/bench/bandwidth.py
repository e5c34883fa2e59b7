"""How fast this machine reads memory, measured with numpy alone.

One thread per core sums its own array of 64-bit integers; a sum is the cheapest operation that
has to read everything, and numpy releases the interpreter lock for it. Compared by hand with
AVX-512 loops in C over the same arrays (plain, four streams, software prefetch), the sum was as
fast as the fastest of them, so it is bound by memory and not by its additions. Sums of float32
are not: without reassociation they are a third as fast on data in cache.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter_ns

import numpy as np
import psutil

from edgekit.units import MIB

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_CACHE_MULTIPLE = 4
_UNKNOWN_CACHE_BYTES = 64 * MIB
_MIN_BYTES = 256 * MIB
_REPETITIONS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """A measured read bandwidth and what it rests on."""

    bytes_per_s: int
    """Median over the repetitions."""
    read_bytes: int
    """Size of all arrays together."""
    cache_bytes: int | None
    """The last-level cache; None where the system does not say."""

    @property
    def exceeds_cache(self) -> bool:
        """Whether the arrays are so much larger than the cache that it cannot help."""
        return self.read_bytes >= _CACHE_MULTIPLE * (self.cache_bytes or _UNKNOWN_CACHE_BYTES)


def measure_bandwidth(*, threads: int) -> Bandwidth:
    """Read bandwidth of so many threads together; one per core reaches the most. Takes seconds.

    Uses at most a quarter of the free memory, which `exceeds_cache` reports.
    """
    cache_bytes = last_level_cache_bytes()
    wanted = max(_MIN_BYTES, _CACHE_MULTIPLE * (cache_bytes or _UNKNOWN_CACHE_BYTES))
    total = min(wanted, psutil.virtual_memory().available // 4)
    words = -(-total // threads // 8)
    with ThreadPoolExecutor(threads) as pool:
        # written, not only reserved: untouched pages all read one page of zeros
        arrays = list(pool.map(lambda _: np.ones(words, np.uint64), range(threads)))
        start = threading.Barrier(threads)

        def read(array: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> tuple[int, int]:
            start.wait()
            began_ns = perf_counter_ns()
            np.add.reduce(array)
            return began_ns, perf_counter_ns()

        rates = [_rate(list(pool.map(read, arrays)), 8 * words) for _ in range(_REPETITIONS)]
    return Bandwidth(
        bytes_per_s=round(median(rates)), read_bytes=8 * words * threads, cache_bytes=cache_bytes
    )


def _rate(spans: list[tuple[int, int]], bytes_each: int) -> float:
    """Bytes per second from the first start to the last end."""
    spent_ns = max(end for _, end in spans) - min(begin for begin, _ in spans)
    return len(spans) * bytes_each / spent_ns * 1e9


def last_level_cache_bytes(caches: Path = _CACHES) -> int | None:
    """Size of the largest cache of the first core, as Linux reports it."""
    sizes = []
    for path in caches.glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        number, unit = text.rstrip("KMG"), text[-1:]
        if number.isdigit():
            sizes.append(int(number) << {"K": 10, "M": 20, "G": 30}.get(unit, 0))
    return max(sizes, default=None)
