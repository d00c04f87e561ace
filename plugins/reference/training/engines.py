"""Load the trained models in a real engine on a GPU host: greedy text, sampled text, a chat, speculation in vLLM.

python engines.py vllm|turbomind|pytorch MODEL [DRAFT]      under an interpreter that has the engine
"""

import sys
import time

PROMPTS = (
    "Once upon a time",
    "One day, Lily found a red ball in the garden.",
    "The old baker",
    "It was a cold winter night.",
)
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
QUESTIONS = ("Hello!", "What is a cat?", "Tell me a story about a brave mouse.", "What does a rabbit eat?")
MANY = 256


def vllm(model: str, draft: str | None) -> None:
    """Run the checks in vLLM; with a draft, compare the greedy texts and count accepted guesses."""
    from vllm import LLM, SamplingParams  # noqa: PLC0415  each engine is imported where it is asked for

    options: dict = {"dtype": "bfloat16", "enforce_eager": True, "gpu_memory_utilization": 0.2, "max_model_len": 1024}
    if draft:
        options["speculative_config"] = {"model": draft, "method": "draft_model", "num_speculative_tokens": 4}
    engine = LLM(model, disable_log_stats=False, **options)

    def run(prompts: list[str], tokens: int, temperature: float) -> list[tuple[str, int]]:
        sampling = SamplingParams(temperature=temperature, max_tokens=tokens, seed=1 if temperature else None)
        answers = engine.generate(prompts, sampling, use_tqdm=False)
        return [(answer.outputs[0].text, len(answer.outputs[0].token_ids)) for answer in answers]

    show(run)
    if draft:
        values = {metric.name: getattr(metric, "value", None) for metric in engine.get_metrics()}
        guessed, right = values["vllm:spec_decode_num_draft_tokens"], values["vllm:spec_decode_num_accepted_tokens"]
        rounds = values["vllm:spec_decode_num_drafts"]
        print(
            f"speculation: {right} of {guessed} guesses accepted ({right / guessed:.3f}), "
            f"{1 + right / rounds:.2f} tokens a step"
        )


def lmdeploy(backend: str, model: str) -> None:
    """Run the checks in one of LMDeploy's backends."""
    from lmdeploy import GenerationConfig, PytorchEngineConfig, TurbomindEngineConfig, pipeline  # noqa: PLC0415

    kind = TurbomindEngineConfig if backend == "turbomind" else PytorchEngineConfig
    options: dict = {} if backend == "turbomind" else {"eager_mode": True}
    config = kind(dtype="bfloat16", session_len=1024, cache_max_entry_count=0.2, **options)
    engine = pipeline(model, backend_config=config, log_level="ERROR")

    def run(prompts: list[str], tokens: int, temperature: float) -> list[tuple[str, int]]:
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        config = GenerationConfig(max_new_tokens=tokens, **sampling)
        answers = engine(prompts, gen_config=config, do_preprocess=False, use_tqdm=False)
        return [(answer.text, answer.generate_token_len) for answer in answers]

    show(run)
    engine.close()


def show(run) -> None:  # noqa: ANN001  a function local to each engine
    """Print texts and a speed."""
    texts = [*PROMPTS, *(CHAT.format(question) for question in QUESTIONS)]
    for temperature in (0.0, 0.7):
        for text, (more, count) in zip(texts, run(texts, 100, temperature), strict=True):
            print(f"[{temperature}] {text!r} -> {more!r} ({count} tokens)")
    many = [f"Once upon a time, there were {count} little ducks." for count in range(MANY)]
    started = time.perf_counter()
    tokens = sum(count for _, count in run(many, 128, 0.0))
    print(f"{tokens / (time.perf_counter() - started):.0f} tokens/s at {MANY} concurrent requests")


if __name__ == "__main__":
    name, *models = sys.argv[1:]
    begin = time.perf_counter()
    if name == "vllm":
        vllm(models[0], models[1] if len(models) > 1 else None)
    else:
        lmdeploy(name, models[0])
    print(f"{name}: all of it in {time.perf_counter() - begin:.0f} s")
