"""Train the tokenizer on the corpus, split the corpus and encode it.

    python tokenizer.py --raw raw --out data

Writes data/tokenizer/ (a Hugging Face tokenizer folder) and, as token ids with the beginning of each document,
data/train.npz, data/heldout-story.npz and data/heldout-chat.npz.
"""

import argparse
import hashlib
import json
import random
import re
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SIZE = 4096
END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a friendly storyteller.",
    "You are a kind helper. Answer in short sentences.",
    "Be short and friendly.",
)
ASKS = (
    "Tell me a story about {}.",
    "Tell me a story.",
    "Write a story about {}.",
    "Write a short story about {}.",
    "Please tell me a short story about {}.",
    "Can you tell me a story about {}?",
    "I would like to hear a story about {}.",
    "Once upon a time",
)


def turn(role: str, text: str) -> str:
    """Write one message as the chat template does."""
    return f"{START}{role}\n{text}{END}\n"


def document(entry: dict, rng: random.Random) -> str:
    """Write one corpus entry as training text: most stories as they are, a third of them as the answer to a wish."""
    turns = entry.get("turns")
    if entry["kind"] == "story":
        if rng.random() < 0.65:
            return entry["text"]
        asked = rng.choice(ASKS)
        subject = entry["subject"] if rng.random() < 0.6 else simple(entry["subject"])
        turns = [(asked.format(subject), entry["text"])]
    head = turn("system", rng.choice(SYSTEMS)) if rng.random() < 0.25 else ""
    return head + "".join(turn("user", asked) + turn("assistant", answer) for asked, answer in turns)


def simple(subject: str) -> str:
    """Shorten a story's subject to its first character: "a shy fox named Tom, a ..." becomes "a shy fox"."""
    return re.split(r",| named | who | and ", subject, maxsplit=1)[0]


def is_held_out(entry: dict) -> bool:
    """Hold out about 1 % of the stories and of the chats; the same question is never on both sides."""
    key = entry["text"] if entry["kind"] == "story" else entry["turns"][0][0]
    return hashlib.sha256(key.encode()).digest()[0] < 3


def load(folder: Path) -> list[dict]:
    """Read the corpus: parts in order, exact repetitions left out."""
    seen, entries = set(), []
    for part in sorted(folder.glob("part-*.jsonl")):
        for line in part.read_text().splitlines():
            entry = json.loads(line)
            key = entry["text"] if entry["kind"] == "story" else json.dumps(entry["turns"])
            if key not in seen:
                seen.add(key)
                entries.append(entry)
    return entries


def train(texts: list[str]) -> Tokenizer:
    """Train byte-level BPE: every byte has a token, so any text can be encoded and comes back as it was."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=[END_OF_TEXT, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != SIZE:
        raise ValueError(f"the corpus gives only {tokenizer.get_vocab_size()} tokens")
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, context: int = 1024) -> None:
    """Write the tokenizer as transformers reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT),
        "additional_special_tokens": [START, END],
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def encode(tokenizer: Tokenizer, texts: list[str], path: Path) -> int:
    """Encode documents, each followed by the end-of-text token, and save them; return the number of tokens."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    ids, starts, length = [], [], 0
    for first in range(0, len(texts), 20000):
        for encoding in tokenizer.encode_batch_fast(texts[first : first + 20000]):
            starts.append(length)
            ids.append(np.asarray([*encoding.ids, end], dtype=np.uint16))
            length += len(ids[-1])
    np.savez(path, ids=np.concatenate(ids), starts=np.asarray(starts, dtype=np.int64))
    return length


def main() -> None:
    """Parse the command line and do all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seed", type=int, default=2026)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(options.seed)  # noqa: S311  no secrets here
    parts: dict[str, list] = {"train": [], "heldout-story": [], "heldout-chat": []}
    kinds = {"story": 0, "chat": 0}
    for entry in load(options.raw):
        kinds[entry["kind"]] += 1
        parts[f"heldout-{entry['kind']}" if is_held_out(entry) else "train"].append(document(entry, rng))
    tokenizer = train(parts["train"])
    save(tokenizer, options.out / "tokenizer")
    tokens = {name: encode(tokenizer, texts, options.out / f"{name}.npz") for name, texts in parts.items()}
    characters = sum(map(len, parts["train"]))
    numbers = {"documents": kinds, "tokens": tokens, "characters per token": characters / tokens["train"]}
    (options.out / "numbers.json").write_text(json.dumps(numbers, indent=2) + "\n")
    print(numbers, flush=True)


if __name__ == "__main__":
    main()
