"""Engines side by side: how far their greedy answers are the model's own, in one table.

Three steps, each a command of ``anyengine conformance parity``, so that they can run on different machines: ``answer``
asks one engine (:mod:`.answers`), ``judge`` has an oracle score what any number of engines answered (:mod:`.judging`),
``page`` writes the table into a document (:mod:`.page`).
"""
