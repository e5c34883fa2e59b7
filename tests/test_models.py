from __future__ import annotations

import pytest

from edgekit.errors import InputError
from edgekit.model import ModelSpec, RopeScaling
from edgekit.models import DEFAULT_MODEL, find_convention, find_model, list_models


@pytest.mark.parametrize("name", list_models())
def test_every_known_model_loads_and_is_named_after_its_file(name: str) -> None:
    model = find_model(name)
    assert model.name == name
    assert model.hub_id.rpartition("/")[2] == name
    assert model.source
    assert ModelSpec.from_dict(model.spec.to_dict()) == model.spec


def test_nemotron_is_the_default_and_has_the_parameters_of_its_card() -> None:
    # embedding and head 2 x 128256 x 4096 = 1,050,673,152
    # a layer: q, o 4096^2 each, k, v 1024 x 4096 each, MLP 3 x 4096 x 14336 = 218,103,808; x 32
    # norms 65 x 4096 = 266,240
    spec = find_model(DEFAULT_MODEL).spec
    assert DEFAULT_MODEL == "Llama-3.1-Nemotron-Nano-8B-v1"
    assert spec.num_params == 1_050_673_152 + 6_979_321_856 + 266_240 == 8_030_261_248
    assert spec.rope_scaling == RopeScaling(kind="llama3", factor=8.0)


def test_smollm2_counts_its_tied_table_once() -> None:
    # table 49152 x 576 = 28,311,552; a layer 576 x (2 x 576 + 2 x 192 + 3 x 1536) = 3,538,944; x 30
    # norms 61 x 576 = 35,136
    spec = find_model("SmolLM2-135M-Instruct").spec
    assert spec.num_params == 28_311_552 + 106_168_320 + 35_136 == 134_515_008


@pytest.mark.parametrize(
    "name",
    [
        "Llama-3.1-Nemotron-Nano-8B-v1",
        "nvidia/Llama-3.1-Nemotron-Nano-8B-v1",
        "nvidia/Llama-3.1-Nemotron-Nano-8B-v1@main",
        "a-mirror/Llama-3.1-Nemotron-Nano-8B-v1",
    ],
)
def test_a_model_is_found_by_name_and_by_hub_id(name: str) -> None:
    assert find_model(name).name == DEFAULT_MODEL


@pytest.mark.parametrize(
    "name",
    [
        "llama", "", ".", "nvidia/", "./Llama-3.1-Nemotron-Nano-8B-v1",
        "/models/Llama-3.1-Nemotron-Nano-8B-v1", "~/Llama-3.1-Nemotron-Nano-8B-v1",
        "models/nvidia/Llama-3.1-Nemotron-Nano-8B-v1",
    ],
)  # fmt: skip
def test_what_is_no_known_model_is_refused_and_a_path_is_never_taken_for_one(name: str) -> None:
    with pytest.raises(InputError, match="unknown model: ") as caught:
        find_model(name)
    assert caught.value.hint is not None
    assert "SmolLM2-135M-Instruct" in caught.value.hint


def test_nemotron_thinks_when_its_system_prompt_says_so() -> None:
    convention = find_convention(DEFAULT_MODEL)
    assert convention is not None
    assert convention.system_text("on") == "detailed thinking on"
    assert convention.system_text("off") == "detailed thinking off"
    assert (convention.open_tag, convention.close_tag) == ("<think>", "</think>")
    # the model card: 0.6 and 0.95 with reasoning, greedy without
    assert convention.sampling_on == {"temperature": 0.6, "top_p": 0.95}
    assert convention.sampling_off["temperature"] == 0.0


def test_a_model_with_one_mode_and_one_that_is_not_known_have_no_convention() -> None:
    assert find_convention("SmolLM2-135M-Instruct") is None
    assert find_convention("my-own-model") is None
