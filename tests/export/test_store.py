"""The data file: every tensor once, where the graph says it lies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor

from edgekit.errors import CheckpointError
from edgekit.export.store import TensorStore, to_float16


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TensorStore]:
    store = TensorStore(tmp_path / "model.data")
    yield store
    store.close()


def read_back(store: TensorStore, name: str) -> NDArray[Any]:
    """By onnx's own reader of external data."""
    store.close()
    proto = store.initializer(name)
    load_external_data_for_tensor(proto, str(store.path.parent))
    return np.asarray(numpy_helper.to_array(proto))


def test_chunks_are_joined(store: TensorStore) -> None:
    rows = np.arange(15, dtype=np.float32).reshape(5, 3)
    store.add("w", "float32", (5, 3), lambda: [rows[:2], rows[2:3], rows[3:]])
    np.testing.assert_array_equal(read_back(store, "w"), rows)


def test_a_transposed_chunk_is_stored_in_its_own_order(store: TensorStore) -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3).T
    store.add_array("w", array)
    np.testing.assert_array_equal(read_back(store, "w"), array)


def test_another_name_is_for_the_same_bytes_alone(store: TensorStore) -> None:
    store.add_array("w", np.zeros((4, 6), np.uint8))
    store.alias("rows", "w", (2, 12))
    store.alias("wide", "w", (3, 2), dtype="float32")
    with pytest.raises(ValueError, match=r"short: 20 bytes in \(4, 5\), w: 24"):
        store.alias("short", "w", (4, 5))


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 6000), min_size=1, max_size=6))
def test_small_tensors_begin_on_a_line_and_large_ones_on_a_page(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    store = TensorStore(tmp_path_factory.mktemp("store") / "model.data")
    arrays = {f"t{i}": np.full(size, i, np.uint8) for i, size in enumerate(sizes)}
    end = 0
    for name, array in arrays.items():
        stored = store[store.add_array(name, array)]
        assert stored.offset % (4096 if array.size >= 4096 else 64) == 0
        assert stored.offset >= end  # no two overlap
        end = stored.offset + stored.num_bytes
    for name, array in arrays.items():
        np.testing.assert_array_equal(read_back(store, name), array)


def test_a_name_is_stored_once_and_its_chunks_are_not_asked_for_again(store: TensorStore) -> None:
    store.add_array("w", np.ones(4, np.float32))
    before = store["w"]

    def never() -> list[NDArray[Any]]:
        raise AssertionError("asked again")

    assert store.add("w", "float32", (4,), never) == "w"
    assert store["w"] == before


def test_an_alias_is_the_same_bytes_in_another_shape(store: TensorStore) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    store.add_array("blob", array)
    assert store.alias("rows", "blob", (2, 12)) == "rows"
    assert store["rows"].offset == store["blob"].offset
    np.testing.assert_array_equal(read_back(store, "rows"), array.reshape(2, 12))
    assert store.path.stat().st_size == 24


@pytest.mark.parametrize("rows", [3, 5])
def test_chunks_that_do_not_add_up_are_refused(store: TensorStore, rows: int) -> None:
    # a tensor [4, 2] of float32 is 32 bytes
    chunk = np.zeros((rows, 2), np.float32)
    with pytest.raises(ValueError, match=f"w: {rows * 8} bytes in chunks, 32 in"):
        store.add("w", "float32", (4, 2), lambda: [chunk])


def test_a_chunk_of_another_type_is_refused(store: TensorStore) -> None:
    with pytest.raises(ValueError, match="chunk of float64, expected float32"):
        store.add("w", "float32", (2,), lambda: [np.zeros(2)])


def test_closing_twice_is_allowed(store: TensorStore) -> None:
    store.close()
    store.close()


def test_a_weight_beyond_fp16_is_refused_by_name() -> None:
    # the largest fp16 is 65504; from 65520 on, rounding gives infinity
    with pytest.raises(
        CheckpointError, match="a weight of norm is beyond the range of fp16: 70000"
    ):
        to_float16(np.array([1.0, -70000.0], np.float32), "norm")


def test_the_largest_fp16_is_kept() -> None:
    assert to_float16(np.array([65504.0, 65519.0], np.float32), "w").tolist() == [65504.0] * 2


def test_what_is_fp16_already_is_not_copied() -> None:
    array = np.ones(3, np.float16)
    assert to_float16(array, "w") is array
