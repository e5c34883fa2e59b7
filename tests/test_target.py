from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from edgekit.device import Device, read_device
from edgekit.errors import InputError
from edgekit.planning import read_bandwidth, write_bandwidth
from edgekit.profile import find_profile
from edgekit.target import device_budget, find_target, host_budget
from edgekit.units import GIB, MIB

Recorded = Callable[[str], Device]


@pytest.mark.parametrize(
    ("device", "profile"),
    [("rtx-3070", "rtx-3070"), ("agx-thor-jetpack-7", "jetson-thor"), ("container", "cpu")],
)
def test_without_a_name_the_target_is_this_machine(
    recorded: Recorded, device: str, profile: str
) -> None:
    assert find_target(None, recorded(device)).name == profile
    assert find_target("rtx-4090", recorded(device)).name == "rtx-4090"


def test_a_gpu_without_a_profile_gets_one_of_its_own(recorded: Recorded) -> None:
    device = recorded("rtx-3070")
    unknown = replace(device, gpus=(replace(device.gpus[0], name="NVIDIA GeForce RTX 3060 Ti"),))
    profile = find_target(None, unknown)
    assert (profile.sm, profile.memory_bytes) == (86, 8_366_587_904)
    assert profile.bandwidth_bytes_per_s == 448_064_000_000
    assert "fp8" in profile.refused


def test_on_the_device_itself_what_is_free_now_counts(recorded: Recorded) -> None:
    device = recorded("rtx-4090")
    budget = device_budget(find_profile("rtx-4090"), device)
    # 22.41 GiB free: less than the 23.3 visible, so no desktop is taken off a second time
    assert (budget.bytes, budget.is_device) == (24_066_916_352, True)
    assert "free now on GPU 0" in budget.detail
    # an idle card says more than a program gets: the profile's 7.75 GiB is the limit
    assert device_budget(find_profile("rtx-3070"), recorded("rtx-3070")).bytes == 8_321_499_136


def test_elsewhere_a_desktop_is_assumed_unless_it_is_said_not_to_be_there() -> None:
    profile, here = find_profile("rtx-3070"), replace(read_device(), gpus=())
    assert device_budget(profile, here).bytes == 8_321_499_136 - 697_932_186
    assert device_budget(profile, here, is_headless=True).bytes == 8_321_499_136
    assert "unless `--headless`" in device_budget(profile, here).detail


def test_on_unified_memory_what_is_available_counts_and_is_shared(recorded: Recorded) -> None:
    device = replace(recorded("agx-thor-jetpack-7"), available_bytes=100 * GIB)
    profile = find_profile("jetson-thor")
    budget = device_budget(profile, device)
    assert (budget.bytes, budget.is_device) == (100 * GIB - profile.reserved_bytes, False)


def test_a_container_is_planned_within_its_limit(recorded: Recorded) -> None:
    device, profile = recorded("container"), find_profile("cpu")
    assert device.available_bytes <= device.memory_bytes
    limit = device.available_bytes - profile.reserved_bytes
    assert device_budget(profile, device).bytes == max(0, limit)
    assert host_budget(profile, device).bytes == max(0, limit)


def test_no_memory_is_no_budget_and_not_less() -> None:
    device = replace(read_device(), available_bytes=100 * MIB)
    assert device_budget(find_profile("cpu"), device).bytes == 0
    assert host_budget(find_profile("rtx-3070"), device).bytes == 0


@pytest.mark.parametrize("model", ["Llama-3.3-Nemotron-Super-49B-v1",
                                   "nvidia/Llama-3_1-Nemotron-Ultra-253B-v1"])  # fmt: skip
def test_a_model_that_no_family_reads_is_planned_and_never_downloaded(
    run_cli: Callable[..., Result], model: str
) -> None:
    fits = "49B" in model  # 26.9 GiB at 4 bits; the 253B takes 132
    # not on a Jetson: Edge-LLM has no blocks that differ
    planned = run_cli("plan", "--model", model, "--profile", "h100-80gb")
    assert planned.exit_code == 3 * (not fits)
    refused = run_cli("plan", "--model", model, "--profile", "jetson-thor")
    assert refused.exit_code == 2
    assert "edge-llm takes llama and qwen2 and qwen3 models" in refused.stderr
    result = run_cli("build", "--model", model, "--profile", "cpu")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "cannot be built: its blocks differ in shape" in result.stderr


def test_an_integrated_gpu_is_never_silently_the_processor(recorded: Recorded) -> None:
    thor = recorded("agx-thor-jetpack-7")
    other = replace(thor, jetson=None, gpus=(replace(thor.gpus[0], name="NVIDIA T4000"),))
    profile = find_target(None, other)
    assert (profile.sm, profile.is_memory_unified) == (110, True)
    assert device_budget(profile, other).is_device is False
    spark = replace(other, gpus=(replace(other.gpus[0], name="NVIDIA GB10", sm=121),))
    with pytest.raises(InputError, match="sm_121"):
        find_target(None, spark)


def test_a_driver_without_a_gpu_is_said(
    recorded: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    device = recorded("driver-without-gpu")
    assert find_target(None, device).name == "cpu"
    assert device.gpu_problem is not None
    assert device.gpu_problem in caplog.text


def test_unknown_memory_is_said_and_not_taken_from_elsewhere(recorded: Recorded) -> None:
    card = replace(find_profile("rtx-3070"), memory_bytes=None)
    with pytest.raises(InputError, match="how much memory `rtx-3070` has is not known"):
        device_budget(card, recorded("container"))


def test_a_broken_profile_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Callable[..., Result]
) -> None:
    (tmp_path / "broken.toml").write_text("name = 3\n")
    monkeypatch.setenv("EDGEKIT_PROFILE_PATH", str(tmp_path))
    result = run_cli("profiles")
    assert result.exit_code == 0
    assert "rtx-4090" in result.stdout
    assert "broken.toml:1" in result.stderr
    assert find_target(None, replace(read_device(), gpus=(), jetson=None)).name == "cpu"


def test_a_measured_bandwidth_bounds_the_next_plan_of_this_machine_alone(tmp_path: Path) -> None:
    here = read_device()
    write_bandwidth(tmp_path, here, 30_000_000_000)
    assert read_bandwidth(tmp_path, here) == 30e9
    assert read_bandwidth(tmp_path, replace(here, cpu="another")) is None


def test_a_second_gpu_is_taken_where_nothing_runs_on_the_first(recorded: Recorded) -> None:
    device = recorded("rtx-3070")
    old = replace(device.gpus[0], name="NVIDIA GeForce GT 1030", sm=61)
    new = replace(device.gpus[0], name="NVIDIA GeForce RTX 3060", index=1)
    assert find_target(None, replace(device, gpus=(old, new))).sm == 86
    with pytest.raises(InputError, match="GT 1030 is sm_61"):
        find_target(None, replace(device, gpus=(old,)))


@pytest.mark.parametrize("text", ["{", "3", '{"bytes_per_s": -5}', '{"bytes_per_s": 1e999}'])
def test_a_damaged_note_of_the_bandwidth_is_as_none(tmp_path: Path, text: str) -> None:
    here = read_device()
    write_bandwidth(tmp_path, here, 1)
    note = tmp_path / ".work" / "bandwidth.json"
    note.write_text(text.replace("}", f', "cpu": "{here.cpu}", "cores": {here.cores}}}'))
    assert read_bandwidth(tmp_path, here) is None
