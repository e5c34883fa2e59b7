"""Fields that other programs always send, with the one value that changes nothing here.

Any other value is a 400 that names the field. vLLM's router, which passes requests on to replicas,
writes all of them into every request (0.1.17); the names are vLLM's and SGLang's.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class NeutralFields(BaseModel):
    """Nothing of it is read."""

    ignore_eos: Literal[False] = False
    no_stop_trim: Literal[False] = False
    skip_special_tokens: Literal[True] = True
    return_hidden_states: Literal[False] = False


class NeutralChatFields(NeutralFields):
    """Thoughts are always apart from the answer, and streamed."""

    continue_final_message: Literal[False] = False
    separate_reasoning: Literal[True] = True
    stream_reasoning: Literal[True] = True
    include_reasoning: Literal[True] = True
