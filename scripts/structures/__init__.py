"""Fill many JSON schemas with an engine: what `scripts/structure` runs."""
