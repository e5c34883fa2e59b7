from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import Result

from edgekit import choice
from edgekit.choice import choose_backend
from edgekit.device import Device
from edgekit.errors import InputError, MissingBackendError
from edgekit.profile import find_profile

Recorded = Callable[[str], Device]


def test_a_plan_takes_the_first_choice_and_a_build_the_first_that_is_real(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, device = find_profile("rtx-4090"), recorded("rtx-4090")
    assert choose_backend(profile, "auto", device, is_needed=False) == "tensorrt-llm"
    monkeypatch.setattr(choice, "_is_installed", lambda _: True)
    assert choose_backend(profile, "auto", device, is_needed=True) == "tensorrt-rtx"
    missing = {"tensorrt-rtx": ["tensorrt_rtx_bindings"]}
    monkeypatch.setattr(choice, "missing_packages", lambda name: missing.get(name, []))
    assert choose_backend(profile, "auto", device, is_needed=True) == "onnxruntime"
    with pytest.raises(MissingBackendError, match="tensorrt-llm: needs TensorRT-LLM"):
        choose_backend(profile, "tensorrt-llm", device, is_needed=True)
    with pytest.raises(InputError, match="has no backend edge-llm") as caught:
        choose_backend(profile, "edge-llm", device, is_needed=False)
    assert (
        caught.value.hint == "it has tensorrt-llm, tensorrt-llm-pytorch, tensorrt-rtx, onnxruntime"
    )


def test_an_engine_that_cannot_be_checked_here_is_not_built_here(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = find_profile("a100-80gb")
    with pytest.raises(MissingBackendError, match="no a100-80gb is here") as caught:
        choose_backend(profile, "auto", recorded("container"), is_needed=True)
    assert caught.value.exit_code == 4
    monkeypatch.setattr(choice, "_is_installed", lambda _: False)
    with pytest.raises(MissingBackendError, match="onnxruntime: needs onnxruntime-gpu"):
        choose_backend(
            find_profile("rtx-4090"), "onnxruntime", recorded("rtx-4090"), is_needed=True
        )


def test_building_for_an_absent_device_exits_4_before_any_work(
    run_cli: Callable[..., Result], make_tiny: Callable[..., object]
) -> None:
    result = run_cli("build", "--model", str(make_tiny()), "--profile", "jetson-thor")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "edge-llm: its engines are checked on the GPU, and no jetson-thor is" in result.stderr
    assert "--profile cpu" in result.stderr


def test_auto_passes_over_a_backend_without_the_wished_cache(recorded: Recorded) -> None:
    profile, device = find_profile("rtx-5090"), recorded("container")
    assert choose_backend(profile, "auto", device, is_needed=False) == "tensorrt-rtx"
    chosen = choose_backend(profile, "auto", device, is_needed=False, kv_precision="fp8")
    assert chosen == "tensorrt-llm"
