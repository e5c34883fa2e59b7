"""Stands in for the wheel `tensorrt-edgellm` 0.11.0, as far as edgekit uses it, without a GPU."""
