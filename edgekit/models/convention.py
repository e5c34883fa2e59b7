"""How models are told to think, and how they mark what they thought: one TOML file each.

summary = "…"                 # completes "thinking is switched by …"
source = "…"                  # where all this comes from
name_matches = "…"            # a regular expression on the model's name, or
template_matches = "…"        # one on the text of its chat template, which has
template_lacks = ["…"]        # none of these: for models that no file of ours names
toggle = "system"             # `on` or `off` is the system message; "variable": a variable of the
on = "…"                      # chat template; "none": the model cannot be told
off = "…"
variable = "…"                # of toggle "variable"
default = "on"                # what is sent when the user says nothing
instructions = "user"         # where the user's own system text goes: "user" puts it before the
                              # first question, "system" below the toggle
open_tag = "<think>"
close_tag = "</think>"
off_prefill = "…"             # how an answer without thinking begins, so that no block can
tool_format = "nemotron"      # of `runtime.tools`, where the chat template takes no tools
closing = "…"                 # what leads a model out of thinking when its budget is used up
[sampling_on]                 # the model card's own
[sampling_off]
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

Think = Literal["on", "off"]

_DIRECTORY = Path(__file__).parent / "conventions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Convention:
    """How one model is told to think or not, and how it marks what it thought."""

    name: str
    summary: str
    source: str
    name_matches: str
    template_matches: str
    template_lacks: tuple[str, ...]
    toggle: Literal["system", "variable", "none"]
    open_tag: str
    close_tag: str
    off_prefill: str
    sampling_on: Mapping[str, float]
    sampling_off: Mapping[str, float]
    on: str = ""
    """System text that turns thinking on; of toggle "system"."""
    off: str = ""
    variable: str = ""
    default: Think = "on"
    instructions: Literal["system", "user"] = "system"
    tool_format: str = "hermes"
    closing: str = "Wait, I have thought long enough and must answer now."
    """The last sentence of a thinking that is cut short. Models go on to a sensible answer after
    such a sentence, and often think on after a bare tag."""

    def toggle_text(self, mode: Think) -> str:
        """The text that the system message holds for a mode; empty for another kind of toggle."""
        return self.on if mode == "on" else self.off

    def sampling(self, mode: Think) -> Mapping[str, float]:
        """What the model card recommends for a mode."""
        return self.sampling_on if mode == "on" else self.sampling_off

    def mode_in(self, text: str) -> Think | None:
        """The mode that a system text asks for in the model's own words; None: it says nothing.

        The words must be a line of their own or a sentence; the last one counts.
        """
        if self.toggle != "system":
            return None
        found = re.findall(self._toggle_pattern(), text)
        if not found:
            return None
        return "on" if found[-1].lower() == self.on.lower() else "off"

    def without_toggle(self, text: str) -> str:
        """The system text without the words that `mode_in` finds, and without space around it."""
        if self.toggle != "system":
            return text.strip()
        return re.sub(self._toggle_pattern() + r"[.!]?", "", text).strip()

    def _toggle_pattern(self) -> str:
        either = "|".join(sorted(map(re.escape, (self.on, self.off)), key=len, reverse=True))
        return rf"(?i)(?<![^\s.!?])({either})(?![^\s.!?])"


@cache
def list_conventions() -> Mapping[str, Convention]:
    """Every convention by its name, which is that of its file."""
    return {path.stem: _read(path) for path in sorted(_DIRECTORY.glob("*.toml"))}


def detect_convention(name: str, template: str) -> tuple[Convention, str] | None:
    """The convention of a model that has no file of its own, and what gave it away.

    By the model's name first, then by the text of its chat template; None when neither speaks of
    thinking.
    """
    for convention in list_conventions().values():
        if re.search(convention.name_matches, name.rpartition("/")[2]):
            return convention, "its name"
    for convention in list_conventions().values():
        has = re.search(convention.template_matches, template)
        if has and not any(word in template for word in convention.template_lacks):
            return convention, "its chat template"
    return None


def _read(path: Path) -> Convention:
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    return Convention(name=path.stem, **{**data, "template_lacks": tuple(data["template_lacks"])})
