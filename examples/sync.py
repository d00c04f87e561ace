"""The same API without an event loop: several prompts at once, a chat, and log-probabilities."""

from anyengine import SamplingParams
from anyengine.sync import Engine

with Engine.load("reference") as engine:
    sampling = SamplingParams(temperature=0.8, top_p=0.95, seed=7)
    for answer in engine.generate(["Once upon a time", "The little dog"], sampling=sampling, max_tokens=12):
        print(repr(answer.text))

    chat = [{"role": "user", "content": "Tell me a story about a cat."}]
    print(repr(engine.generate(messages=chat, sampling=sampling, max_tokens=24).text))

    answer = engine.generate("The sun is", sampling=SamplingParams(temperature=0), max_tokens=3, logprobs=2)
    for entry in answer.logprobs or []:
        alternatives = {engine.detokenize([token]): round(logprob, 2) for token, logprob in entry.top.items()}
        print(repr(engine.detokenize([entry.token_id])), round(entry.logprob, 2), alternatives)
