from __future__ import annotations

import pytest

from edgekit.models import DEFAULT_MODEL, find_convention
from edgekit.models.convention import detect_convention, list_conventions
from edgekit.runtime.sampling import Sampling

# what the templates of these families have in common, in our own words
LLAMA3 = "{{ '<|start_header_id|>' + m['role'] }}"
SUPER_V1 = LLAMA3 + "{% if '</think>' in content %}{{ content.split('</think>')[-1] }}{% endif %}"
SUPER_V1_5 = SUPER_V1 + "{% if '/no_think' in system %}<think>\n\n</think>\n\n{% endif %}"
QWEN3 = "{% if '</think>' in c %}{% endif %}{% if enable_thinking is false %}<think>{% endif %}"
R1 = "{{ '<｜Assistant｜>' }}{{ content.split('</think>')[-1] }}<think>\n"
PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}{% endfor %}"


def test_nemotron_thinks_when_its_system_prompt_says_so() -> None:
    found = find_convention(DEFAULT_MODEL)
    assert found is not None
    convention, source = found
    assert source == "its own file"
    assert convention.toggle_text("on") == "detailed thinking on"
    assert convention.toggle_text("off") == "detailed thinking off"
    assert (convention.open_tag, convention.close_tag) == ("<think>", "</think>")
    # the model card: 0.6 and 0.95 with reasoning, greedy without; a block that is closed already
    assert convention.sampling("on") == {"temperature": 0.6, "top_p": 0.95}
    assert convention.sampling("off")["temperature"] == 0.0
    assert convention.off_prefill == "<think>\n</think>"
    assert (convention.default, convention.instructions) == ("on", "user")


def test_a_model_with_one_mode_has_no_convention_whatever_its_template_says() -> None:
    assert find_convention("SmolLM2-135M-Instruct", QWEN3) is None


def test_a_model_that_nothing_is_known_of_has_none() -> None:
    assert find_convention("my-own-model") is None
    assert find_convention("my-own-model", PLAIN) is None


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (SUPER_V1, "nemotron-v1"), ("detailed thinking off", "nemotron-v1"),
        (SUPER_V1_5, "think-words"), (QWEN3, "enable-thinking"), (R1, "always"),
    ],
)  # fmt: skip
def test_an_unknown_model_is_recognized_by_its_template(template: str, name: str) -> None:
    found = find_convention("my-own-model", template)
    assert found is not None
    assert (found[0].name, found[1]) == (name, "its chat template")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("nvidia/Llama-3.1-Nemotron-Nano-4B-v1.1", "nemotron-v1"),
        ("nvidia/Llama-3_3-Nemotron-Super-49B-v1_5", "think-words"),
        ("NVIDIA-Nemotron-Nano-9B-v2", "think-words"),
        ("Qwen3-0.6B", "enable-thinking"), ("Qwen/Qwen3-30B-A3B", "enable-thinking"),
        ("DeepSeek-R1-Distill-Llama-8B", "always"),
    ],
)  # fmt: skip
def test_an_unknown_model_is_recognized_by_its_name(model: str, name: str) -> None:
    found = detect_convention(model, PLAIN)
    assert found is not None
    assert (found[0].name, found[1]) == (name, "its name")


@pytest.mark.parametrize("model", ["Qwen3-4B-Instruct-2507", "nemotron-v1-notes", "R1"])
def test_a_name_that_only_looks_similar_is_not_taken(model: str) -> None:
    assert detect_convention(model, PLAIN) is None


@pytest.mark.parametrize("template", [SUPER_V1, SUPER_V1_5, QWEN3, R1])
def test_no_template_is_of_two_conventions(template: str) -> None:
    import re

    fits = [
        c.name
        for c in list_conventions().values()
        if re.search(c.template_matches, template)
        and not any(w in template for w in c.template_lacks)
    ]
    assert len(fits) == 1


@pytest.mark.parametrize("name", list_conventions())
def test_every_convention_is_whole(name: str) -> None:
    convention = list_conventions()[name]
    assert convention.open_tag != convention.close_tag
    assert convention.off_prefill.startswith(convention.open_tag)
    assert convention.off_prefill.rstrip().endswith(convention.close_tag)
    assert bool(convention.on and convention.off) == (convention.toggle == "system")
    assert bool(convention.variable) == (convention.toggle == "variable")
    assert convention.source
    for mode in ("on", "off"):
        Sampling(**convention.sampling(mode))  # type: ignore[arg-type]  # numbers of a TOML table


@pytest.mark.parametrize(
    ("text", "mode", "rest"),
    [
        ("detailed thinking on", "on", ""),
        ("detailed thinking off", "off", ""),
        ("Be brief.\ndetailed thinking on", "on", "Be brief."),
        ("detailed thinking off. You are a pirate.", "off", "You are a pirate."),
        ("detailed thinking on\n\nno: detailed thinking off", "off", "no:"),
        ("detailed thinking onwards", None, "detailed thinking onwards"),
        ("Be kind.", None, "Be kind."),
        ("", None, ""),
    ],
)  # fmt: skip
def test_a_system_text_may_carry_the_toggle(text: str, mode: str | None, rest: str) -> None:
    convention = list_conventions()["nemotron-v1"]
    assert convention.mode_in(text) == mode
    assert convention.without_toggle(text) == rest


def test_the_shorter_toggle_word_is_not_found_inside_the_longer() -> None:
    convention = list_conventions()["think-words"]
    assert convention.mode_in("/no_think") == "off"
    assert convention.mode_in("Be brief. /think") == "on"
    assert convention.mode_in("look into /thinking") is None
