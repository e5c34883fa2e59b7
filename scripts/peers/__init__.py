"""`scripts/bench`: edgekit and its peers, measured on one machine in turns.

To add an engine: an adapter in `adapters.py`, a conversion in `prepare.py`, a row in `catalog.py`.
"""
