"""Where 1.2 keeps the LLM of engines; 1.3 has it no more."""

import os
import sys

if os.environ.get("FAKE_TRTLLM") == "1.3":
    raise ImportError("no module named tensorrt_llm._tensorrt_engine")
LLM = sys.modules["tensorrt_llm"]._TrtLLM
