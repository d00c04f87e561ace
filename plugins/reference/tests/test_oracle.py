"""The engine against Hugging Face transformers in float32, through the uniform API."""

import pytest
from anyengine import Engine, SamplingParams

pytestmark = pytest.mark.oracle

#: A choice this close to the oracle's best, in nats, is a tie that rounding decides.
NEAR_TIE = 1e-3
TOKENS = 64
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):",
    "The three primary colors are",
    "Water boils at",
    "To make a cup of tea, first",
    "In the year 1969, humans",
    "The opposite of hot is",
    "SELECT name, COUNT(*) FROM",
    "Dear Sir or Madam,",
    "La capitale de l'Italie est",
    "Die Hauptstadt von Deutschland ist",
    "日本の首都は",
    "The mitochondria is",
    "1, 1, 2, 3, 5, 8,",
    "Roses are red,",
    "My favourite animal is the",
    "A list of fruits:\n- apple\n-",
    "Question: What is the largest planet?\nAnswer:",
    "import numpy as np\n\n",
]


def _shortfalls(folder, prompt_ids, token_ids):
    """How much less likely than the oracle's best each token is, in nats, teacher-forced."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    gaps = []
    with torch.inference_mode():
        for prompt, tokens in zip(prompt_ids, token_ids, strict=True):
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
            chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
            gaps.append((logits.max(1).values - chosen).tolist())
    return gaps


@pytest.mark.timeout(600)
async def test_twenty_greedy_answers_of_smollm2_are_those_of_transformers(smollm2):
    async with Engine.load("reference", smollm2) as engine:
        answers = await engine.generate(PROMPTS, sampling=SamplingParams(temperature=0), max_tokens=TOKENS)
        eos = engine.model.eos_token_ids
    gaps = _shortfalls(smollm2, [a.prompt_token_ids for a in answers], [a.token_ids for a in answers])
    defects = {
        (prompt, position): gap
        for prompt, row in zip(PROMPTS, gaps, strict=True)
        for position, gap in enumerate(row)
        if gap > NEAR_TIE
    }
    assert defects == {}
    assert [(len(a.token_ids) == TOKENS) or a.token_ids[-1] in eos for a in answers] == [True] * len(PROMPTS)


@pytest.mark.timeout(600)
async def test_prompt_ids_and_chat_prompts_are_those_of_transformers(smollm2):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi! Ünïcödé 👋🏽"}]
    async with Engine.load("reference", smollm2) as engine:
        for prompt in PROMPTS:
            assert await engine.tokenize(prompt) == tokenizer(prompt)["input_ids"]
        expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        assert await engine.apply_chat_template(chat) == expected


@pytest.mark.timeout(600)
async def test_scores_of_smollm2_are_those_of_transformers(smollm2):
    import torch
    from transformers import AutoModelForCausalLM

    async with Engine.load("reference", smollm2) as engine:
        score = await engine.score(PROMPTS[1])
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    ids = torch.tensor([score.token_ids])
    with torch.inference_mode():
        logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].tolist()
    assert score.logprobs == pytest.approx(logprobs, abs=2e-3)
