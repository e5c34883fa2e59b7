from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from edgekit import choice
from edgekit.backends import list_backends
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
    assert "`--on USER@HOST` to have it compiled there" in result.stderr


@pytest.mark.parametrize(
    ("jetpack", "hint"),
    [("7.0", "edgekit doctor --install edge-llm"), ("6.2", "flash JetPack 7.0 or later")],
)
def test_a_board_that_lacks_something_is_told_how_to_get_it(
    jetpack: str, hint: str, recorded: Recorded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("EDGEKIT_EDGELLM_PYTHON", raising=False)
    device = recorded("agx-thor-jetpack-7")
    assert device.jetson is not None
    device = replace(device, jetson=replace(device.jetson, jetpack=jetpack))
    with pytest.raises(MissingBackendError, match="cannot be built for on this machine") as caught:
        choose_backend(find_profile("jetson-thor"), "auto", device, is_needed=True)
    assert caught.value.hint == hint


@pytest.mark.parametrize("board", ["jetson-thor", "jetson-orin"])
def test_every_other_backend_is_refused_on_a_jetson_with_its_reason(
    board: str, recorded: Recorded
) -> None:
    profile = find_profile(board)
    for name in {info.name for info in list_backends()} - {*profile.backends}:
        with pytest.raises(InputError, match=f"has no backend {name}: .* sm_{profile.sm}"):
            choose_backend(profile, name, recorded("container"), is_needed=False)


def test_auto_passes_over_a_backend_without_the_wished_cache(recorded: Recorded) -> None:
    profile, device = find_profile("rtx-5090"), recorded("container")
    assert choose_backend(profile, "auto", device, is_needed=False) == "tensorrt-rtx"
    chosen = choose_backend(profile, "auto", device, is_needed=False, kv_precision="fp8")
    assert chosen == "tensorrt-llm"
