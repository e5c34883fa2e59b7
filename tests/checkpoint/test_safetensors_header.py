"""The safetensors header: what is read, and that nothing in a file is believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from edgekit.checkpoint import TensorInfo, read_rows, read_tensor
from edgekit.checkpoint.safetensors import encode_header, read_header
from edgekit.errors import CheckpointError


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_tensors_come_back_as_the_library_wrote_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors: dict[str, NDArray[Any]] = {
        "f32": rng.standard_normal((3, 4)).astype(np.float32),
        "f16": rng.standard_normal((2, 5)).astype(np.float16),
        "i8": rng.integers(-128, 127, (7,)).astype(np.int8),
        "u8": rng.integers(0, 255, (2, 2, 2)).astype(np.uint8),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(3, np.int64),
    }
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "m.safetensors")
    assert set(header) == set(tensors)
    for name, expected in tensors.items():
        found = read_tensor(header[name])
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_bfloat16_comes_as_exact_float32(tmp_path: Path) -> None:
    # the upper halves of 1.0 (0x3F800000), -2.0 (0xC0000000) and 0.15625 (0x3E200000)
    data = np.array([0x3F80, 0xC000, 0x3E20], "<u2").tobytes()
    path = write(tmp_path / "m.safetensors", {"w": entry("BF16", [3], [0, 6])}, data)
    found = read_tensor(read_header(path)["w"])
    assert found.dtype == np.float32
    assert found.tolist() == [1.0, -2.0, 0.15625]


def test_fp8_comes_as_bit_patterns(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", {"w": entry("F8_E4M3", [2], [0, 2])}, b"\x38\xb8")
    assert read_tensor(read_header(path)["w"]).tolist() == [0x38, 0xB8]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_row_range_is_a_slice(tmp_path: Path, dtype: type) -> None:
    matrix: NDArray[Any] = np.arange(35).reshape(7, 5).astype(dtype)
    save_file({"a": np.ones(3, np.float32), "w": matrix}, tmp_path / "m.safetensors")
    info = read_header(tmp_path / "m.safetensors")["w"]
    np.testing.assert_array_equal(read_rows(info, 2, 5), matrix[2:5])
    assert read_rows(info, 7, 7).shape == (0, 5)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 8)])
def test_a_row_range_outside_the_tensor_is_a_mistake_of_the_caller(
    tmp_path: Path, start: int, stop: int
) -> None:
    save_file({"w": np.zeros((7, 5), np.float32)}, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="no rows"):
        read_rows(read_header(tmp_path / "m.safetensors")["w"], start, stop)


def test_a_file_that_shrinks_or_goes_after_its_header_was_read_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"w": np.zeros((7, 5), np.float32)}, path)
    info = read_header(path)["w"]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="ends in the middle of w"):
        read_tensor(info)
    path.unlink()
    with pytest.raises(CheckpointError, match="has lost a file"):
        read_tensor(info)


def test_our_header_is_one_that_the_library_reads(tmp_path: Path) -> None:
    header = encode_header({"a": (2, 3), "bé": (4,)}, "F16")
    assert len(header) % 8 == 0
    data = np.arange(10, dtype=np.float16)
    (tmp_path / "m.safetensors").write_bytes(header + data.tobytes())
    found = load_file(tmp_path / "m.safetensors")
    assert found["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["bé"].tolist() == [6, 7, 8, 9]


def test_a_truncated_shard_is_told_from_its_header(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", {"w": entry()}, b"1234")
    assert "is truncated: w ends at byte" in refusal(path)


@pytest.mark.parametrize("data", [b"", b"1234567", b"\xff" * 8, (200).to_bytes(8, "little")])
def test_a_header_longer_than_the_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(data)
    assert "not a safetensors file" in refusal(tmp_path / "m.safetensors")


def test_a_header_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write((150_000_000).to_bytes(8, "little"))
        file.truncate(200_000_000)  # sparse
    assert "not a safetensors file" in refusal(path)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"w":1,"w":2}', "names a tensor twice"),
        ({"w": 1}, "malformed header entry for w"),
        ({"w": {"dtype": "F32"}}, "malformed header entry for w"),
        ({"w": entry(offsets=[0, 8, 9])}, "malformed header entry for w"),
        ({"w": entry(offsets=[0, "8"])}, "malformed header entry for w"),
        ({"w": entry(dtype="F4")}, "unsupported dtype: F4"),
        ({"w": entry(shape=[-2])}, "malformed shape"),
        ({"w": entry(shape=[True, 2])}, "malformed shape"),
        ({"w": entry(shape=[2.0])}, "malformed shape"),
        ({"w": entry(shape=[1] * 17)}, "malformed shape"),
        ({"w": entry(offsets=[8, 0])}, "do not fit its shape"),
        ({"w": entry(offsets=[-8, 0])}, "do not fit its shape"),
        ({"w": entry(shape=[3])}, "do not fit its shape"),
        ({"a": entry(), "b": entry(offsets=[4, 12])}, "tensors a and b overlap"),
    ],
)
def test_a_malformed_header_is_refused_in_a_sentence(
    tmp_path: Path, header: Any, words: str
) -> None:
    assert words in refusal(write(tmp_path / "m.safetensors", header, b"x" * 16))


def read_or_refuse(path: Path) -> dict[str, TensorInfo] | None:
    try:
        return read_header(path)
    except CheckpointError:
        return None


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
@example((2).to_bytes(8, "little") + b"{}")
def test_any_bytes_are_read_or_refused(tmp_path_factory: Any, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(data)
    read_or_refuse(path)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["F32", "BF16"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "w"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=3), JSON, max_size=3), st.binary(max_size=32))
def test_any_json_header_is_read_or_refused(
    tmp_path_factory: Any, header: dict[str, Any], data: bytes
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "json.safetensors", header, data)
    for info in (read_or_refuse(path) or {}).values():
        assert info.offset + info.num_bytes <= path.stat().st_size
