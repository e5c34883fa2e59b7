"""How fast this machine reads memory, measured with numpy alone.

One thread per core sums its own array of 64-bit integers; a sum is the cheapest operation that
has to read everything, and numpy releases the interpreter lock for it. Compared by hand with
AVX-512 loops in C over the same arrays (plain, four streams, software prefetch), the sum was as
fast as the fastest of them, so it is bound by memory and not by its additions. Sums of float32
are not: without reassociation they are a third as fast on data in cache.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from edgekit.units import MIB

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_CACHE_MULTIPLE = 4
_UNKNOWN_CACHE_BYTES = 64 * MIB
_MIN_BYTES = 256 * MIB
_REPETITIONS = 3
_PAUSE_SECONDS = 0.05
"""Before a reading: threads of an engine that has just computed wait for more in a loop, beside
which the first reading was half of the next ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """A measured read bandwidth and what it rests on."""

    bytes_per_s: int
    """Median over the readings."""
    lowest_bytes_per_s: int
    highest_bytes_per_s: int
    read_bytes: int
    """Size of all arrays together."""
    cache_bytes: int | None
    """The last-level cache; None where the system does not say."""

    @property
    def exceeds_cache(self) -> bool:
        """Whether the arrays are so much larger than the cache that it cannot help."""
        return self.read_bytes >= _CACHE_MULTIPLE * (self.cache_bytes or _UNKNOWN_CACHE_BYTES)


class BandwidthMeter:
    """Reads with so many threads together; one per core reaches the most.

    It holds its arrays, at most a quarter of `available_bytes`, which `Bandwidth.exceeds_cache`
    reports, so that it can read beside other work: what a machine shares with others, or moves
    between its processors, changes within seconds.
    """

    def __init__(self, *, threads: int, available_bytes: int) -> None:
        self._cache_bytes = last_level_cache_bytes()
        wanted = max(_MIN_BYTES, _CACHE_MULTIPLE * (self._cache_bytes or _UNKNOWN_CACHE_BYTES))
        total = min(wanted, available_bytes // 4)
        self._words: int = -(-total // threads // 8)
        self._pool = ThreadPoolExecutor(threads)
        # written, not only reserved: untouched pages all read one page of zeros
        self._arrays = list(
            self._pool.map(lambda _: np.ones(self._words, np.uint64), range(threads))
        )
        self._start = threading.Barrier(threads)
        self._rates: list[float] = []

    @property
    def read_bytes(self) -> int:
        """Size of all arrays together."""
        return 8 * self._words * len(self._arrays)

    def read(self) -> float:
        """Bytes per second now, the median of a few repetitions. Takes a tenth of a second."""
        time.sleep(_PAUSE_SECONDS)
        rates = [
            _rate(list(self._pool.map(self._read, self._arrays)), 8 * self._words)
            for _ in range(_REPETITIONS)
        ]
        self._rates.append(median(rates))
        return self._rates[-1]

    def _read(self, array: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> tuple[int, int]:
        self._start.wait()
        began_ns = time.perf_counter_ns()
        np.add.reduce(array)
        return began_ns, time.perf_counter_ns()

    def result(self) -> Bandwidth:
        """Of all readings; at least one."""
        return Bandwidth(
            bytes_per_s=round(median(self._rates)),
            lowest_bytes_per_s=round(min(self._rates)),
            highest_bytes_per_s=round(max(self._rates)),
            read_bytes=self.read_bytes,
            cache_bytes=self._cache_bytes,
        )

    def __enter__(self) -> BandwidthMeter:
        return self

    def __exit__(self, *_: object) -> None:
        self._start.abort()  # where not all came to it, as after Ctrl-C: none waits for ever
        self._pool.shutdown()
        self._arrays.clear()


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
