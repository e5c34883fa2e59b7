"""Run an engine: text to tokens, tokens to text, sampling, generation, one conversation.

Everything here works above any backend that exposes logits and programs against
`edgekit.backends.base.Session` alone. To add a way to talk to an engine, build it from
`generate.Generation` (which tokens) and `text_stream.TextStream` (which text).
"""
