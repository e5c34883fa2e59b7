"""The GGUF header reader, and that a damaged file never does more than be refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.checkpoint import resolve_model
from edgekit.checkpoint.gguf_file import read_gguf
from edgekit.errors import CheckpointError, InputError

Write = Callable[..., Path]


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_gguf(path)
    return str(caught.value)


def test_the_header_is_what_the_library_reads(write_gguf: Write) -> None:
    path = write_gguf(quantize={"token_embd.weight": gguf.GGMLQuantizationType.Q4_1})
    found, expected = read_gguf(path), gguf.GGUFReader(path)
    assert found.metadata == {
        key: field.contents()
        for key, field in expected.fields.items()
        if not key.startswith("GGUF.")
    }
    assert [(t.name, t.quant_type, t.offset, t.num_bytes) for t in found.tensors.values()] == [
        (t.name, t.tensor_type.name, t.data_offset, t.n_bytes) for t in expected.tensors
    ]
    assert found.tensors["token_embd.weight"].shape == (264, 64)


def test_every_kind_of_value_is_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "kinds.gguf"), "llama")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -5)
    writer.add_uint16("u16", 60000)
    writer.add_int16("i16", -6)
    writer.add_uint64("u64", 2**63)
    writer.add_int64("i64", -(2**62))
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("text", "héllo")
    writer.add_array("words", ["a", ""])
    writer.add_array("flags", [True, False])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert read_gguf(tmp_path / "kinds.gguf").metadata == {
        "general.architecture": "llama",
        "u8": 200,
        "i8": -5,
        "u16": 60000,
        "i16": -6,
        "u64": 2**63,
        "i64": -(2**62),
        "f64": 0.1,
        "yes": True,
        "text": "héllo",
        "words": ["a", ""],
        "flags": [True, False],
    }


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a GGUF file"),
        (b"PK\x03\x04" + bytes(40), "not a GGUF file"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1 instead of 2 or 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "header is damaged"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**40) + bytes(40), "header is damaged"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 50) + bytes(40), "is truncated"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2) + b"\xff\xff" + bytes(40), "header is damaged"),
        # key "a", type 99
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + bytes([99, 0, 0, 0, 0]), "is damaged"),
        # key "a", an array of 2^50 bytes
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 0, 2**50),
            "header is damaged",
        ),
        # key "a", an array of arrays
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 9, 1),
            "header is damaged",
        ),
    ],
)
def test_what_is_no_gguf_file_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "m.gguf").write_bytes(data)
    assert words in refusal(tmp_path / "m.gguf")


def test_a_truncated_file_says_where_it_ends(write_gguf: Write) -> None:
    path = write_gguf()
    path.write_bytes(path.read_bytes()[:-1000])
    assert "is truncated: " in refusal(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"general.alignment": 48},
        {"general.alignment": 0},
        {"general.alignment": "x"},
    ],
)
def test_an_alignment_that_is_no_power_of_two_is_refused(
    write_gguf: Write, changes: dict[str, Any]
) -> None:
    assert "not a power of two" in refusal(write_gguf(metadata=changes))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_file_is_converted_or_refused(write_gguf: Write, data: st.DataObject) -> None:
    path = write_gguf()
    content = bytearray(path.read_bytes())
    # the header is 9 kB of 180 kB: most damage there, some in the weights
    positions = st.integers(0, 9000) | st.integers(0, len(content) - 1)
    for position in data.draw(st.lists(positions, max_size=4)):
        content[position] = data.draw(st.integers(0, 255))
    length = data.draw(st.just(len(content)) | st.integers(0, len(content)))
    path.write_bytes(content[:length])
    with suppress(InputError):
        resolve_model(str(path), work=path.parent / "work")
