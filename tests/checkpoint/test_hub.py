"""Planning from the hub: config and headers, never a weight."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from click.testing import Result

from edgekit.checkpoint import read_checkpoint
from edgekit.checkpoint.hub import read_hub_spec
from edgekit.errors import CheckpointError, InputError
from edgekit.model import ModelSpec

Make = Callable[..., Path]


class Hub:
    """One repository: answers for its config and headers, and notes what it was asked."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.spec: ModelSpec = read_checkpoint(checkpoint).spec
        self.stored = self.spec.num_params
        self.asked: list[str] = []

    def hf_hub_download(self, repo_id: str, filename: str, **options: Any) -> str:
        self.asked.append(f"{repo_id} {options['revision']} {filename}")
        if repo_id != "org/small":
            raise huggingface_hub.errors.LocalEntryNotFoundError("no such thing")
        return str(self.checkpoint / filename)

    def get_safetensors_metadata(self, repo_id: str, **options: Any) -> Any:
        self.asked.append(f"{repo_id} {options['revision']} headers")
        return SimpleNamespace(parameter_count={"F16": self.stored - 1, "F32": 1})


@pytest.fixture
def hub(make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(make_checkpoint(name="remote"))
    for name in ("hf_hub_download", "get_safetensors_metadata"):
        monkeypatch.setattr(huggingface_hub, name, getattr(made, name))
    return made


def test_the_shape_comes_from_config_and_headers_alone(hub: Hub, tmp_path: Path) -> None:
    assert read_hub_spec("org/small", "v1", tmp_path) == hub.spec
    assert hub.asked == ["org/small v1 config.json", "org/small v1 headers"]


def test_offline_asks_for_nothing_but_the_config_that_is_kept(hub: Hub, tmp_path: Path) -> None:
    assert read_hub_spec("org/small", None, tmp_path, offline=True) == hub.spec
    assert hub.asked == ["org/small None config.json"]
    with pytest.raises(InputError, match="downloads are off: org/other"):
        read_hub_spec("org/other", None, tmp_path, offline=True)


def test_headers_that_disagree_with_the_config_are_refused(hub: Hub, tmp_path: Path) -> None:
    hub.stored //= 2
    with pytest.raises(CheckpointError, match=f"stores {hub.stored:,} weights, its config.json"):
        read_hub_spec("org/small", None, tmp_path)


def test_a_config_that_is_not_json_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    (hub.checkpoint / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json of org/small is not JSON"):
        read_hub_spec("org/small", None, tmp_path)


def test_a_plan_of_a_hub_id_reads_no_weight(hub: Hub, run_cli: Callable[..., Result]) -> None:
    result = run_cli("plan", "--model", "org/small", "--profile", "rtx-4090", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["model"] == "small"
    assert len(hub.asked) == 2


def test_a_known_model_asks_the_hub_nothing(hub: Hub, run_cli: Callable[..., Result]) -> None:
    model = "nvidia/Llama-3.1-Nemotron-Nano-8B-v1"
    assert run_cli("plan", "--model", model, "--profile", "rtx-4090").exit_code == 0
    assert hub.asked == []


def test_a_hub_that_does_not_answer_is_one_sentence(
    hub: Hub, run_cli: Callable[..., Result]
) -> None:
    result = run_cli("plan", "--model", "org/absent", "--profile", "rtx-4090")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: cannot download org/absent: ")
