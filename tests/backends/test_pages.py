"""Huge pages: which memory is meant, and that it stays what it is."""

from __future__ import annotations

import ctypes
import mmap
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from edgekit.backends.onnxruntime import pages
from edgekit.backends.onnxruntime import session as ort_session
from edgekit.backends.onnxruntime.pages import HugePages, Region, large_regions, parse_maps
from edgekit.profile import Storage

MIB = 1024**2
CAN_COLLAPSE = tuple(int(part) for part in platform.release().split(".")[:2]) >= (6, 1)
MAPS = """\
55d000000000-55d000800000 r--p 00000000 fe:00 1234                       /usr/bin/python3.11
55d000800000-55d001400000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000400000 rw-p 00000000 00:00 0 
7f0000500000-7f00008fffff rw-p 00000000 00:00 0 
7f0001000000-7f0002000000 rw-s 00000000 00:01 0                          /dev/zero (deleted)
7f0003000000-7f0004000000 rw-p 00000000 00:00 0                          [stack]
7f0005000000-7f0006000000 ---p 00000000 00:00 0 
7f0007000000-7f0008000000 rw-p 00001000 fe:00 99                         /tmp/with space/model.data
"""  # noqa: W291


def test_regions_are_private_writable_large_and_of_no_file() -> None:
    assert parse_maps(MAPS) == [
        (0x55D000800000, 0x55D001400000), (0x7F0000000000, 0x7F0000400000),
    ]  # fmt: skip


@pytest.mark.parametrize("setting", ["always madvise [never]\n", None])
def test_where_there_are_none_nothing_is_touched(
    setting: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if setting is not None:
        (tmp_path / "enabled").write_text(setting)
    monkeypatch.setattr(pages, "_SETTING", tmp_path / "enabled")
    assert large_regions() == []
    made = HugePages([])
    made.wait()
    made.stop()
    assert made.made_bytes == 0


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_WORTH_BYTES", 0)


def test_small_engines_are_left_alone() -> None:
    start = 0x100000000000
    assert HugePages([(start, start + 16 * MIB)])._regions == []
    made = HugePages([(start, start + 20 * MIB), (start + 100 * MIB, start + 120 * MIB)])
    assert len(made._regions) == 2
    made.stop()  # nothing lies there: the kernel refuses, and that is all


@pytest.mark.usefixtures("any_size")
def test_memory_becomes_huge_and_keeps_what_it_holds() -> None:
    before = large_regions()
    memory = mmap.mmap(-1, 32 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view = np.frombuffer(memory, np.uint32)
    view[:] = np.arange(len(view), dtype=np.uint32)
    taken = [region for region in large_regions() if region not in before]
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    made = HugePages(taken)
    made.wait(30)
    made.stop()
    if taken:  # a system that never gives huge pages has none to offer
        assert any(first <= start < last for first, last in taken)
        if CAN_COLLAPSE:  # 15 whole pages at least
            assert made.made_bytes >= 30 * MIB
    assert (view == np.arange(len(view), dtype=np.uint32)).all()


@pytest.mark.usefixtures("any_size")
def test_memory_that_is_gone_does_no_harm() -> None:
    memory = mmap.mmap(-1, 32 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    memory.close()
    made = HugePages([(start, start + 32 * MIB)])
    made.wait(30)
    made.stop()
    made.stop()


class Noted:
    """Takes the place of `HugePages`: what it was given, and when it had to stop."""

    made: ClassVar[list[Noted]] = []

    def __init__(self, regions: set[Region]) -> None:
        self.regions = set(regions)
        self.calls: list[str] = []
        self.made.append(self)

    def wait(self) -> None:
        self.calls.append("wait")

    def stop(self) -> None:
        self.calls.append("stop")


def test_a_session_gives_what_its_token_graph_took_and_stops_before_it_frees_it(
    make_tiny: Callable[..., Path],
    export_graph: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held, taken = (0x100000000000, 0x100000800000), (0x200000000000, 0x200000800000)
    for_prompts = (0x300000000000, 0x300000800000)
    loaded: list[str] = []
    load = ort_session.load_graph

    def load_noted(path: Path, *rest: Any) -> Any:
        loaded.append(path.name)
        return load(path, *rest)

    monkeypatch.setattr(ort_session, "load_graph", load_noted)
    monkeypatch.setattr(
        ort_session, "large_regions", lambda: [held, taken, for_prompts][: len(loaded) + 1]
    )
    monkeypatch.setattr(ort_session, "HugePages", Noted)
    monkeypatch.setattr(Noted, "made", [])
    graph = export_graph(make_tiny(), Storage(linear_bits=4, prompt_bits=8))
    session = ort_session.open_session(graph, context_tokens=16, num_slots=1, threads=1)
    assert loaded == ["model.onnx", "prompt.onnx"]
    [noted] = Noted.made
    assert (noted.regions, noted.calls) == ({taken}, ["wait"])
    session.close()
    assert noted.calls == ["wait", "stop"]
