"""Look at trained models with transformers, in float32: samples, a chat, and how often the draft is right.

python check.py storyteller storyteller-draft
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = (
    "Once upon a time",
    "Once upon a time, there was a little fox named Tom.",
    "One day, Lily found a red ball in the garden.",
    "The old baker",
    "It was a cold winter night.",
    "Ben and Mia were playing in the park when",
    "There was once a dragon who",
    '"Where are you going?" asked the bear.',
    "The robot was sad because",
    "In a small village there lived a kind girl named Anna.",
)
CHATS = (
    "Hello!",
    "What is a cat?",
    "Tell me a story about a brave mouse.",
    "What does a rabbit eat?",
    "How do I make tea?",
    "Why should I read books?",
    "I am sad.",
    "Name three fruits.",
    "What does a teacher do?",
    "What is the opposite of big?",
)


def generate(model, tokenizer, texts: list[str], *, temperature: float = 0.0, tokens: int = 160) -> list[str]:  # noqa: ANN001
    """Continue each text; a mark shows how it ended."""
    results = []
    for text in texts:
        given = tokenizer(text, return_tensors="pt").to(model.device)
        how = (
            {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            if temperature
            else {"do_sample": False}
        )
        out = model.generate(**given, max_new_tokens=tokens, **how)[0, given.input_ids.shape[1] :]
        results.append(tokenizer.decode(out))
    return results


@torch.no_grad()
def acceptance(model, draft, tokenizer, texts: list[str], tokens: int = 64, ahead: int = 4) -> dict[str, float]:  # noqa: ANN001
    """Return how often the draft's greedy choice is the model's, along the model's own greedy texts."""
    agree, count, rounds, gained = 0, 0, 0, 0
    for text in texts:
        given = tokenizer(text, return_tensors="pt").to(model.device)
        ids = model.generate(**given, max_new_tokens=tokens, do_sample=False)
        first = given.input_ids.shape[1]
        same = (draft(ids).logits[0, first - 1 : -1].argmax(-1) == ids[0, first:]).tolist()
        agree, count = agree + sum(same), count + len(same)
        position = 0
        while position < len(same):  # speculation: up to `ahead` right guesses, then one token of the model itself
            run = 0
            while run < ahead and position + run < len(same) and same[position + run]:
                run += 1
            position, rounds, gained = position + run + 1, rounds + 1, gained + run + 1
    return {"agreement": agree / count, f"tokens a step with {ahead} guesses": gained / rounds, "tokens": count}


def main() -> None:
    """Parse the command line and print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("draft", type=Path, nargs="?")
    parser.add_argument("--quiet", action="store_true", help="no samples")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).to(options.device).eval()
    chats = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        for text in CHATS
    ]
    for temperature in () if options.quiet else (0.0, 0.7):
        print(f"\n=== temperature {temperature}")
        for text, more in zip(TEXTS, generate(model, tokenizer, list(TEXTS), temperature=temperature), strict=True):
            print(f"--- {text} |{more}")
        for text, more in zip(CHATS, generate(model, tokenizer, chats, temperature=temperature), strict=True):
            print(f"--- user: {text} | {more}")
    if options.draft:
        draft = AutoModelForCausalLM.from_pretrained(options.draft, dtype=torch.float32).to(options.device).eval()
        print("draft:", acceptance(model, draft, tokenizer, [*TEXTS, *chats]), flush=True)


if __name__ == "__main__":
    main()
