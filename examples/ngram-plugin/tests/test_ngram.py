"""What the engine declares, it does; what it does not declare is refused."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from anyengine import ModelNotFound, SamplingParams, UnsupportedCapability, UnsupportedParameter
from anyengine.sync import Engine
from anyengine.testing import make_model_folder
from anyengine_ngram import plugin

CORPUS = "the cat sat on a mat\nthe cat sat on a mat\nthe dog sat on a log\n"
GREEDY = SamplingParams(temperature=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = make_model_folder(tmp_path / "model")
    (model / "corpus.txt").write_text(CORPUS)
    return model


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.load(plugin, folder) as loaded:
        yield loaded


def test_greedy_follows_the_corpus_to_its_end(engine: Engine) -> None:
    answer = engine.generate("the dog", sampling=GREEDY)
    assert answer.text == " sat on a mat"
    assert answer.finish_reason == "stop"
    assert answer.stop_reason in engine.model.eos_token_ids


def test_a_seed_repeats_and_others_differ(engine: Engine) -> None:
    answers = [engine.generate("the ", sampling=SamplingParams(seed=seed)).text for seed in range(20)]
    assert answers == [engine.generate("the ", sampling=SamplingParams(seed=seed)).text for seed in range(20)]
    assert len(set(answers)) > 1


@pytest.mark.parametrize("field", [{"top_k": 1}, {"top_p": 0.01}, {"temperature": 0.0001}])
def test_each_parameter_that_leaves_one_token_is_greedy(engine: Engine, field: dict[str, float]) -> None:
    narrowed = engine.generate("the ", sampling=SamplingParams(**field))
    assert narrowed.token_ids == engine.generate("the ", sampling=GREEDY).token_ids


def test_no_end_before_min_tokens(engine: Engine) -> None:
    answer = engine.generate("the dog", sampling=GREEDY, min_tokens=40, max_tokens=60)
    assert len(answer.token_ids) > 40


def test_a_stop_token_ends_the_text(engine: Engine) -> None:
    space = engine.tokenize(" ")[0]
    answer = engine.generate("the ", sampling=GREEDY, stop_token_ids=[space])
    assert (answer.text, answer.stop_reason) == ("cat", space)


def test_what_is_not_declared_is_refused(engine: Engine) -> None:
    with pytest.raises(UnsupportedParameter, match="min_p"):
        engine.generate("the", sampling=SamplingParams(min_p=0.5))
    with pytest.raises(UnsupportedCapability, match="logprobs"):
        engine.generate("the", logprobs=1)


def test_leaving_a_stream_ends_the_request(engine: Engine) -> None:
    with engine.stream("the", ignore_eos=True) as stream:
        assert next(iter(stream)).text == " "
        assert engine.stats().running == 1
    assert engine.stats().running == 0


def test_stats_count_tokens(engine: Engine) -> None:
    answer = engine.generate("the dog", sampling=GREEDY)
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.generated_tokens) == (answer.usage.prompt_tokens, len(answer.token_ids))


def test_a_missing_corpus_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"corpus\.txt"), Engine.load(plugin, make_model_folder(tmp_path / "model")):
        pass
