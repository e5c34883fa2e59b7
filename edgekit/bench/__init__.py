"""Measure an engine: throughput, latency, memory, and how near decode comes to the bandwidth.

`metrics` is arithmetic over timestamps, `measure` holds the clock, `report` and `compare` print.
"""
