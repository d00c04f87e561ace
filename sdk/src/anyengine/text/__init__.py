"""Everything between text and token ids: tokenisation, incremental decoding, stop strings, chat templates.

Backends speak tokens; this package is the only place where tokens become text and text becomes tokens, so the same
prompt ids reach every engine and the same ids give the same text on every engine. It runs where the engine runs.
Nothing is imported here: `tokenizers` and `jinja2` load with the first tokenizer, not with the package.
"""
