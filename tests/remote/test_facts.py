"""What is wrong with the other machine is said in one sentence, before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from edgekit import __version__
from edgekit.device import Device, read_device
from edgekit.errors import (
    EdgekitError,
    InputError,
    MissingBackendError,
    StaleEngineError,
    StorageError,
)
from edgekit.planning import Request, request_plan
from edgekit.remote.facts import Facts, request_there, require_space
from tests.remote.conftest import Server

Run = Callable[..., Result]


def facts_of(device: Device, profile: str, **reasons: str | None) -> Facts:
    rows = [(name.replace("_", "-"), profile, reason) for name, reason in reasons.items()]
    if profile != "cpu":
        rows.append(("onnxruntime", "cpu", None))
    return Facts(
        host="dev", device=device, profile=profile, backends=tuple(rows), free_bytes=10**12
    )


def asked(store: Path, **changes: Any) -> Request:
    words = {"model": "SmolLM2-135M-Instruct", "profile": None, "precision": "auto",
             "context": 512, "batch": 1, "backend": "auto", "store": store}  # fmt: skip
    return Request(**{**words, **changes})


@pytest.fixture
def card(recorded: Callable[[str], Device]) -> Facts:
    reasons = {"tensorrt_llm": None, "tensorrt_rtx": None, "onnxruntime": None}
    return facts_of(recorded("rtx-4090"), "rtx-4090", **reasons)


def test_a_device_is_read_as_it_was_told(recorded: Callable[[str], Device]) -> None:
    for device in (read_device(), recorded("rtx-4090"), recorded("agx-thor-jetpack-7")):
        assert Device.from_dict(json.loads(json.dumps(device.to_dict()))) == device


def test_the_plan_is_for_that_machine(card: Facts, tmp_path: Path) -> None:
    wish = request_there(card, asked(tmp_path))
    assert (wish.profile, wish.backend, wish.stage) == ("rtx-4090", "tensorrt-llm", "checkpoint")
    plan, profile = request_plan(wish, to_build=True)
    assert (profile.name, plan.backend) == ("rtx-4090", "tensorrt-llm")
    assert plan.budget_where == "free now on GPU 0, NVIDIA GeForce RTX 4090"
    gpu = card.device.gpus[0].free_bytes
    assert gpu is not None
    assert plan.budget_bytes <= gpu
    assert plan.steps["quantize"].where == "this machine's RAM"


def test_the_first_backend_that_is_real_there_is_taken(
    recorded: Callable[[str], Device], tmp_path: Path
) -> None:
    facts = facts_of(
        recorded("rtx-4090"), "rtx-4090", tensorrt_llm="no Python of its own", onnxruntime=None
    )
    assert request_there(facts, asked(tmp_path)).backend == "onnxruntime"
    assert request_there(facts, asked(tmp_path, profile="cpu")).profile == "cpu"


@pytest.mark.parametrize(
    ("changes", "kind", "message", "hint"),
    [
        ({"profile": "rtx-3070"}, InputError, "dev is `rtx-4090`, not `rtx-3070`", "`--profile`"),
        ({"backend": "tensorrt-rtx"}, InputError, "nothing of `rtx-4090`", "edgekit unpack"),
        ({"backend": "edge-llm"}, InputError, "nothing of `rtx-4090` with edge-llm", "unpack"),
        ({"targets": ("rtx-3070", "rtx-4090")}, InputError, "one engine", "`--for`"),
        ({"stage": "checkpoint"}, InputError, "one engine", "`--stage`"),
    ],
)
def test_what_it_is_not_is_refused(
    changes: dict[str, Any], kind: type[EdgekitError], message: str, hint: str,
    card: Facts, tmp_path: Path,
) -> None:  # fmt: skip
    with pytest.raises(kind, match=message) as caught:
        request_there(card, asked(tmp_path, **changes))
    assert hint in str(caught.value.hint)


def test_what_is_not_real_there_is_refused_with_its_reason(
    recorded: Callable[[str], Device], tmp_path: Path
) -> None:
    facts = facts_of(recorded("rtx-4090"), "rtx-4090", tensorrt_llm="needs TensorRT-LLM")
    with pytest.raises(MissingBackendError, match="tensorrt-llm: needs TensorRT-LLM") as caught:
        request_there(facts, asked(tmp_path))
    assert "`ssh dev edgekit doctor`" in str(caught.value.hint)


def test_too_little_space_there_is_said(card: Facts, tmp_path: Path) -> None:
    plan, _ = request_plan(request_there(card, asked(tmp_path)), to_build=True)
    require_space(card, plan)
    small = replace(card, free_bytes=plan.weights_bytes)
    with pytest.raises(StorageError, match="are free on the disk of dev"):
        require_space(small, plan)


def on(server: Server, edgekit: str, tmp_path: Path, *more: str) -> list[str]:
    words = ["build", "--model", str(tmp_path / "none"), "--store", str(tmp_path / "here")]
    words += ["--on", server.host, "--on-edgekit", edgekit, "--on-store", str(tmp_path / "there")]
    for option in server.options:
        words += ["--ssh-option", option]
    return [*words, *more]


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (None, MissingBackendError, "edgekit is not on"),
        ("echo hello", MissingBackendError, "is no edgekit of this version"),
        ("exit 2", InputError, "edgekit ended with 2"),
        ("echo '{}'", StaleEngineError, "has edgekit of an older version, here is"),
        ('echo \'{"edgekit_version": "9.0"}\'', StaleEngineError, "has edgekit 9.0, here is"),
        (
            f'echo \'{{"edgekit_version": "{__version__}", "manifest_format": 1}}\'',
            StaleEngineError,
            "tells of itself in another form",
        ),
        ("sleep 0.2; kill -9 $PPID", EdgekitError, "the connection|cannot be reached|ended with"),
    ],
)
def test_an_edgekit_that_cannot_go_on_from_here_is_one_sentence(
    answer: str | None, kind: type[EdgekitError], message: str,
    server: Server, tmp_path: Path, run_cli: Run,
) -> None:  # fmt: skip
    script = tmp_path / "edgekit"
    if answer is not None:
        script.write_text(f"#!/bin/sh\n{answer}\n")
        script.chmod(0o755)
    result = run_cli(*on(server, str(script), tmp_path))
    assert result.exit_code == kind.exit_code
    assert any(part in result.stderr for part in message.split("|")), result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "here").exists()


def test_another_device_than_the_profile_s_is_refused_before_any_work(
    server: Server, tmp_path: Path, run_cli: Run, edgekit_there: Callable[..., str]
) -> None:
    code = "import edgekit.device; edgekit.device.read_record = lambda root: None"
    result = run_cli(*on(server, edgekit_there(code), tmp_path, "--profile", "rtx-4090"))
    assert result.exit_code == 2
    assert f"{server.host} is `cpu`, not `rtx-4090`" in result.stderr
    assert not (tmp_path / "here").exists()
