"""Prove engines on a machine with GPUs; ``__main__.py`` says how.

``variants`` is what is proven: engines in their configurations, and who quantises by what. ``plan`` makes steps of it,
``step`` is one of them and its record, ``runner`` runs them, ``machine`` writes down on what; ``rehearsal`` is the same
plan for a machine without GPUs.
"""
