"""Let the teacher write the corpus: stories and chats by SmolLM2-135M-Instruct in LMDeploy's TurboMind engine.

    python corpus.py --teacher SmolLM2-135M-Instruct --out raw --seconds 290 --processes 3

Each process writes raw/part-SEED-N.jsonl; a run stops at its time limit, so its size depends on the machine. Prompts
and sampling are seeded, but a batch's arithmetic depends on its company, so a second run writes other texts.
"""

import argparse
import json
import random
import time
from collections.abc import Iterable
from multiprocessing import get_context
from pathlib import Path

import prompts
from clean import clean_answer, clean_ending, clean_start, join

# Sampling: warm enough for different stories, cool enough for grammar. Higher repetition penalties stop loops too, but
# make this small teacher lose the thread; loops are filtered instead.
STORY = {"do_sample": True, "temperature": 0.7, "top_p": 0.92, "top_k": 50, "repetition_penalty": 1.05}
CHAT = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 50}
ENDINGS = (
    "In the end,",
    "At last,",
    "From that day on,",
    "That night,",
    "And so",
    "Finally,",
    "In the evening,",
    "The next day,",
)


class Teacher:
    """TurboMind with the teacher model: many requests at once, text in and text out."""

    def __init__(self, model: str, concurrency: int, memory: float) -> None:
        """Load the model; `memory` is the share of free GPU memory for the KV cache."""
        from lmdeploy import TurbomindEngineConfig, pipeline  # noqa: PLC0415  only this class needs the engine

        config = TurbomindEngineConfig(
            dtype="bfloat16",
            session_len=2048,
            max_batch_size=concurrency,
            cache_max_entry_count=memory,
            enable_prefix_caching=True,  # the examples stand before every question
        )
        self.engine = pipeline(model, backend_config=config, log_level="ERROR")
        self.tokens = 0

    def write(self, texts: Iterable[str], sampling: dict, lengths: list[int], seed: int) -> list[tuple[str, bool]]:
        """Continue every text; return (continuation, ended by itself) for each."""
        from lmdeploy import GenerationConfig  # noqa: PLC0415

        configs = [
            GenerationConfig(max_new_tokens=length, random_seed=seed + index, **sampling)
            for index, length in enumerate(lengths)
        ]
        answers = self.engine(list(texts), gen_config=configs, do_preprocess=False, use_tqdm=False)
        self.tokens += sum(answer.generate_token_len for answer in answers)
        return [(answer.text, answer.finish_reason == "stop") for answer in answers]


def stories(teacher: Teacher, rng: random.Random, count: int) -> list[dict]:
    """Write stories; those that find no end by themselves are led to one by the first words of a last paragraph."""
    asked = [prompts.story(rng) for _ in range(count)]
    lengths = [rng.randint(100, 200) for _ in asked]
    answers = teacher.write([prompt.text for prompt in asked], STORY, lengths, rng.getrandbits(31))
    done, waiting = [], []
    for prompt, (text, ended) in zip(asked, answers, strict=True):
        if not (start := clean_start(join(prompt.opening, text), ended=ended)):
            continue
        if ended:
            done.append({"kind": "story", "subject": prompt.subject, "text": start})
        else:
            waiting.append((prompt, f"{start}\n\n{rng.choice(ENDINGS)}"))
    texts = [prompt.text.removesuffix(prompt.opening) + start for prompt, start in waiting]
    answers = teacher.write(texts, STORY, [60] * len(texts), rng.getrandbits(31))
    for (prompt, start), (text, _) in zip(waiting, answers, strict=True):
        if story := clean_ending(start, text):
            done.append({"kind": "story", "subject": prompt.subject, "text": story})
    return done


def chats(teacher: Teacher, rng: random.Random, count: int) -> list[dict]:
    """Write chats of one turn, and of two for a third of them."""
    asked = [prompts.dialog(rng) for _ in range(count)]
    done = answered(teacher, rng, asked)
    more = [prompts.follow_up(rng, chat["turns"][0]) for chat in rng.sample(done, len(done) // 3)]
    return done + answered(teacher, rng, more)


def answered(teacher: Teacher, rng: random.Random, asked: list[prompts.Prompt]) -> list[dict]:
    """Answer prompts and keep the clean answers."""
    answers = teacher.write([prompt.text for prompt in asked], CHAT, [90] * len(asked), rng.getrandbits(31))
    return [
        {"kind": "chat", "turns": [*prompt.history, (prompt.subject, reply)]}
        for prompt, (text, ended) in zip(asked, answers, strict=True)
        if ended and (reply := clean_answer(text))
    ]


def work(number: int, options: argparse.Namespace) -> None:
    """Write one part of the corpus until the time is over."""
    rng = random.Random(options.seed * 1000 + number)  # noqa: S311  no secrets here
    teacher = Teacher(options.teacher, options.concurrency, options.memory)
    started, kept = time.perf_counter(), {"story": 0, "chat": 0}
    with (options.out / f"part-{options.seed}-{number}.jsonl").open("w") as out:
        while time.perf_counter() - started < options.seconds:
            round_ = stories(teacher, rng, options.round) + chats(teacher, rng, options.round // 3)
            for document in round_:
                kept[document["kind"]] += 1
                out.write(json.dumps(document) + "\n")
            out.flush()
            seconds = time.perf_counter() - started
            print(f"part {number}: {seconds:.0f} s, {teacher.tokens / seconds:.0f} tokens/s, kept {kept}", flush=True)
    teacher.engine.close()


def main() -> None:
    """Parse the command line and run one process after another has loaded its model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seconds", type=float, default=290)
    parser.add_argument("--processes", type=int, default=3, help="engines side by side on one GPU")
    parser.add_argument("--concurrency", type=int, default=1024)
    parser.add_argument("--round", type=int, default=4096, help="stories, and as many questions, in a round")
    parser.add_argument("--memory", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=2026)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    context = get_context("spawn")
    parts = [context.Process(target=work, args=(number, options)) for number in range(options.processes)]
    for part in parts:
        part.start()
    for part in parts:
        part.join()


if __name__ == "__main__":
    main()
