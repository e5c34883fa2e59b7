"""What engines of both backends that start another interpreter are bound to, and record of it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.backends.edge_llm.identity import Identity as EdgeIdentity
from edgekit.backends.edge_llm.layout import EngineLayout as EdgeLayout
from edgekit.backends.identity import Identity, differences, rebuild_command
from edgekit.backends.tensorrt_llm.identity import Identity as TrtIdentity
from edgekit.backends.tensorrt_llm.layout import EngineLayout as TrtLayout
from edgekit.errors import EngineError
from edgekit.profile import find_profile

MANIFEST = {
    "model": "my model", "profile": "rtx-4090", "precision": "int4_awq",
    "kv_precision": "int8", "context_tokens": 8192, "batch": 1, "device": {"cpu": "Cortex"},
}  # fmt: skip
IDENTITIES: dict[type[Identity], dict[str, Any]] = {
    EdgeIdentity: {
        "gpu": "NVIDIA Thor", "sm": 110, "driver": "580.00", "cuda": "13.0",
        "tensorrt": "10.16.0", "edge_llm": "0.11.0", "jetpack": "7.0", "l4t": "38.2.0",
    },
    TrtIdentity: {
        "gpu": "NVIDIA GeForce RTX 4090", "sm": 89, "driver": "580.82.09", "cuda": "13.0.96",
        "tensorrt": "10.14.1.48", "tensorrt_llm": "1.2.1",
    },
}  # fmt: skip
PACKAGES = {EdgeIdentity: "edge_llm", TrtIdentity: "tensorrt_llm"}
each_identity = pytest.mark.parametrize("kind", IDENTITIES)


@each_identity
@given(data=st.data())
def test_an_identity_is_read_as_it_was_written(kind: type[Identity], data: st.DataObject) -> None:
    values: dict[str, Any] = {
        name: data.draw(
            st.integers(0) | st.none() if name == "sm"
            else st.text() if name == PACKAGES[kind]
            else st.text() | st.none()
        )
        for name in IDENTITIES[kind]
    }  # fmt: skip
    identity = kind(**values)
    written = json.loads(json.dumps({**identity.to_dict(), "cpu": "another key of the manifest"}))
    assert kind.from_dict(written) == identity
    assert list(differences(identity, identity)) == []


@each_identity
@pytest.mark.parametrize(
    "changes", [{"sm": "89"}, {"sm": True}, {"gpu": 4090}, {"package": None}, {"tensorrt": 10}]
)
def test_a_manifest_that_does_not_say_it_is_damaged(
    kind: type[Identity], changes: dict[str, object]
) -> None:
    [(name, value)] = changes.items()
    name = PACKAGES[kind] if name == "package" else name
    with pytest.raises(EngineError, match=f"built on: {name}$"):
        kind.from_dict({**IDENTITIES[kind], name: value})


def test_the_rebuild_command_is_that_of_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    expected = [
        "edgekit", "build", "--model", "my model", "--profile", "rtx-4090",
        "--precision", "int4_awq", "--kv", "int8", "--context", "8192", "--batch", "1",
        "--backend", "tensorrt-llm",
    ]  # fmt: skip
    for place in (tmp_path, tmp_path / "backend"):
        assert shlex.split(rebuild_command(place, "tensorrt-llm")) == expected


def test_it_names_a_known_model_as_a_build_takes_it(tmp_path: Path) -> None:
    made = {"model": "Llama-3.1-Nemotron-Nano-8B-v1", "plan": {"speculation": "ngram"}}
    (tmp_path / "manifest.json").write_text(json.dumps(made))
    assert rebuild_command(tmp_path, "tensorrt-llm-pytorch") == (
        "edgekit build --model nvidia/Llama-3.1-Nemotron-Nano-8B-v1 --speculation ngram "
        "--backend tensorrt-llm-pytorch"
    )


MADE = {**MANIFEST, "precision": "fp8", "kv_precision": "fp8", "batch": 2}


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("h100-80gb", "--precision fp8 --kv fp8 --batch 2 --backend tensorrt-llm"),
        # no FP8 arithmetic: the profile's own choices
        ("rtx-3070", "--batch 2 --backend tensorrt-llm"),
        ("jetson-thor", "--precision fp8 --batch 2"),  # another backend, with a cache of its own
        ("cpu", "--batch 2"),
    ],
)
def test_for_another_device_it_has_what_that_device_has(
    profile: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(MADE))
    command = rebuild_command(tmp_path, "tensorrt-llm", find_profile(profile))
    # neither its profile nor its context is the other's
    assert command == f"edgekit build --model 'my model' {expected}"


def test_what_the_other_version_s_backend_has_not_is_left_out(tmp_path: Path) -> None:
    made = {**MADE, "kv_precision": "int8", "plan": {"speculation": "ngram"}}
    (tmp_path / "manifest.json").write_text(json.dumps(made))
    drafts, cache = "--speculation ngram", "--kv int8"
    command = rebuild_command(tmp_path, "tensorrt-llm-pytorch")
    assert (drafts in command, cache in command) == (True, False)
    command = rebuild_command(tmp_path, "tensorrt-llm")
    assert (drafts in command, cache in command) == (False, True)


@pytest.mark.parametrize(
    ("text", "options"),
    [(None, ""), ("{", ""), ("[]", ""), ("{}", " --backend tensorrt-llm")],
)
def test_a_manifest_that_says_nothing_gives_the_bare_command(
    text: str | None, options: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    assert rebuild_command(tmp_path, "tensorrt-llm") == f"edgekit build{options}"


@pytest.mark.parametrize("layout", [EdgeLayout, TrtLayout])
@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format": 9}', '{"format": 1, "batch": 1}', '{"format": 2}']
)
def test_a_damaged_layout_is_an_engine_error(
    layout: type[EdgeLayout | TrtLayout], text: str, tmp_path: Path
) -> None:
    (tmp_path / "engine.json").write_text(text, encoding="utf-8")
    with pytest.raises(EngineError, match=r"unreadable .*engine\.json"):
        layout.read(tmp_path)
