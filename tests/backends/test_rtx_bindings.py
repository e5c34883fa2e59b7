"""The installed TensorRT-RTX has the names, types and manners that `runtime` relies on.

A version that renames one fails here, on a machine without a GPU. What needs a GPU is scripted in
`test_rtx_runtime.py`.
"""

from __future__ import annotations

import gc
import mmap
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.backends.tensorrt_rtx.log import VendorLog, import_bindings, vendor_log
from edgekit.errors import MissingBackendError

trt = pytest.importorskip("tensorrt_rtx_bindings")


def first_line(function: Any) -> str:
    """Signatures of an extension's function, from its docstring."""
    return str(function.__doc__)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (trt.Runtime.__init__, "logger: tensorrt_rtx_bindings.tensorrt_rtx.ILogger"),
        (trt.Runtime.get_engine_validity, "buffer: typing_extensions.Buffer) -> tuple"),
        (trt.Runtime.deserialize_cuda_engine, "serialized_engine: typing_extensions.Buffer"),
        (trt.ICudaEngine.create_runtime_config, "-> tensorrt_rtx_bindings.tensorrt_rtx.IRuntimeC"),
        (
            trt.ICudaEngine.create_execution_context,
            "runtime_config: tensorrt_rtx_bindings.tensorrt_rtx.IRuntimeConfig",
        ),
        (trt.ICudaEngine.get_tensor_shape, "name: str) -> tensorrt_rtx_bindings.tensorrt_rtx.Dims"),
        (trt.ICudaEngine.get_tensor_dtype, "-> tensorrt_rtx_bindings.tensorrt_rtx.DataType"),
        (trt.IRuntimeConfig.create_runtime_cache, "-> nvinfer1::IRuntimeCache"),
        (trt.IRuntimeConfig.set_runtime_cache, "cache: nvinfer1::IRuntimeCache"),
        (trt.IRuntimeConfig.set_runtime_cache, "-> bool"),
        (trt.IRuntimeCache.deserialize, "blob: typing_extensions.Buffer) -> bool"),
        (trt.IRuntimeCache.serialize, "-> tensorrt_rtx_bindings.tensorrt_rtx.IHostMemory"),
        (
            trt.IExecutionContext.set_optimization_profile_async,
            "profile_index: typing.SupportsInt, stream_handle: typing.SupportsInt) -> bool",
        ),
        (trt.IExecutionContext.set_input_shape, "name: str, shape: tuple) -> bool"),
        (trt.IExecutionContext.set_tensor_address, "name: str, memory: typing.SupportsInt) -> boo"),
        (trt.IExecutionContext.execute_async_v3, "stream_handle: typing.SupportsInt) -> bool"),
        (trt.ILogger.log, "msg: str) -> None"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_function_takes_what_it_is_given(function: Any, expected: str) -> None:
    assert expected in first_line(function)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (trt.Runtime, "engine_header_size"),
        (trt.ICudaEngine, "num_optimization_profiles"),
        (trt.ICudaEngine, "num_io_tensors"),
        (trt.IRuntimeConfig, "cuda_graph_strategy"),
        (trt.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy"),
    ],
)
def test_a_property_is_there(owner: Any, name: str) -> None:
    assert isinstance(owner.__dict__[name], property)


@pytest.mark.parametrize(
    ("enum", "names"),
    [
        (trt.EngineValidity, {"VALID", "SUBOPTIMAL", "INVALID"}),
        (trt.ExecutionContextAllocationStrategy, {"STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"}),
        (trt.CudaGraphStrategy, {"DISABLED", "WHOLE_GRAPH_CAPTURE"}),
        (trt.DynamicShapesKernelSpecializationStrategy, {"LAZY", "EAGER", "NONE"}),
        (trt.ILogger.Severity, {"INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"}),
    ],
)
def test_an_enum_has_the_members_that_are_told_apart(enum: Any, names: set[str]) -> None:
    assert set(enum.__members__) == names


def test_types_and_shapes_compare_as_runtime_compares_them() -> None:
    assert np.dtype(trt.nptype(trt.int32)) == np.int32
    assert trt.int32 != trt.int64
    assert tuple(trt.Dims((-1, 2, 64, 16)))[1:] == (2, 64, 16)


def test_the_version_is_that_of_both_packages() -> None:
    for name in ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs"):
        assert metadata.version(name) == trt.__version__


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt_rtx_bindings", None)
    with pytest.raises(MissingBackendError, match="not installed") as caught:
        import_bindings()
    assert caught.value.hint is not None
    assert caught.value.hint == "pip install 'edgekit[rtx]'"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`y = x @ 1` for two compute capabilities, compiled on this processor."""
    builder = trt.Builder(vendor_log().logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    x = network.add_input("x", trt.float16, (-1, 64))
    ones = np.ones((64, 64), np.float16)
    weight = network.add_constant((64, 64), trt.Weights(ones)).get_output(0)
    none = trt.MatrixOperation.NONE
    network.mark_output(network.add_matrix_multiply(x, none, weight, none).get_output(0))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 2
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    config.set_compute_capability(trt.ComputeCapability.SM89, 1)
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, 64), (4, 64), (16, 64))
    config.add_optimization_profile(profile)
    path = tmp_path_factory.mktemp("plan") / "engine.plan"
    path.write_bytes(memoryview(builder.build_serialized_network(network, config)))
    return path


@pytest.fixture
def log() -> VendorLog:
    log = vendor_log()
    log.clear()
    return log


def has_driver() -> bool:
    try:
        from cuda.bindings import driver

        return bool(driver.cuInit(0)[0] == 0)
    except Exception:
        return False


def test_a_mapped_engine_can_be_read_and_let_go(plan: Path, log: VendorLog) -> None:
    runtime = trt.Runtime(log.logger)
    with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        whole = memoryview(mapped)
        header = whole[: runtime.engine_header_size]
        verdict, flags = runtime.get_engine_validity(header)
        assert verdict.name in trt.EngineValidity.__members__
        assert int(flags) >= 0
        runtime.deserialize_cuda_engine(whole)
        header.release()
        whole.release()  # nobody else holds the memory, or closing the map raises


def test_what_is_no_engine_is_malformed(log: VendorLog) -> None:
    verdict, flags = trt.Runtime(log.logger).get_engine_validity(b"x" * 1000)
    assert verdict.name == "INVALID"
    assert flags == int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)


def test_without_a_driver_the_library_says_so_to_our_logger(
    plan: Path, log: VendorLog, capfd: pytest.CaptureFixture[str]
) -> None:
    if has_driver():
        pytest.skip("this machine has an NVIDIA driver")
    runtime = trt.Runtime(log.logger)
    verdict, _ = runtime.get_engine_validity(plan.read_bytes())
    assert verdict.name == "INVALID"
    assert "CUDA driver version is insufficient" in log.said
    assert runtime.deserialize_cuda_engine(plan.read_bytes()) is None
    assert str(log.failure("loading")).startswith("TensorRT-RTX failed at loading: ")
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def test_a_damaged_engine_is_not_loaded(plan: Path, log: VendorLog) -> None:
    blob = plan.read_bytes()
    assert trt.Runtime(log.logger).deserialize_cuda_engine(blob[: len(blob) // 2]) is None
    assert log.said


def test_one_logger_serves_one_runtime_after_the_other(log: VendorLog) -> None:
    for _ in range(3):
        runtime = trt.Runtime(log.logger)
        runtime.get_engine_validity(b"")
        del runtime
        gc.collect()
    assert vendor_log() is log
