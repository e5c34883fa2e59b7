"""Configurations, under their public name."""

import sys

_all = sys.modules["tensorrt_llm"]
KvCacheConfig = _all.KvCacheConfig
LookaheadDecodingConfig = _all.LookaheadDecodingConfig
NGramDecodingConfig = _all.NGramDecodingConfig
