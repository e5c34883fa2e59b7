"""Fields that other programs always send, with the one value that changes nothing here.

Any other value is a 400 that names the field. vLLM's router, which passes requests on to replicas,
writes all of them into every request (0.1.17); the names are vLLM's and SGLang's.
"""

from __future__ import annotations

from edgekit.serve.fields import No, Strict, Yes


class NeutralFields(Strict):
    """Nothing of it is read."""

    ignore_eos: No = False
    no_stop_trim: No = False
    skip_special_tokens: Yes = True
    return_hidden_states: No = False


class NeutralChatFields(NeutralFields):
    """Thoughts are always apart from the answer, and streamed."""

    continue_final_message: No = False
    separate_reasoning: Yes = True
    stream_reasoning: Yes = True
    include_reasoning: Yes = True
