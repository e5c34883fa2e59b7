"""How good an engine is: perplexity over a text, and divergence from another model."""
