"""Nested configurations are read as transformers reads them."""

import pytest
import transformers
from anyengine import ModelNotFound
from anyengine.backend.model_config import text_config, whole_model

SMALL = {"vocab_size": 77, "max_position_embeddings": 123, "num_hidden_layers": 1}


@pytest.mark.parametrize(
    ("family", "nested"),
    [
        ("LlamaConfig", {**SMALL, "num_attention_heads": 2, "hidden_size": 8}),
        ("Gemma3Config", {"text_config": SMALL}),
        ("LlavaConfig", {"text_config": {"model_type": "llama", **SMALL}}),
        ("Qwen2_5OmniConfig", {"thinker_config": {"text_config": SMALL}}),
        ("T5GemmaConfig", {"decoder": SMALL, "encoder": {"max_position_embeddings": 5}}),
        ("ColPaliConfig", {"vlm_config": {"model_type": "paligemma", "text_config": {"model_type": "gemma", **SMALL}}}),
    ],
)
def test_the_text_model_is_where_transformers_finds_it(family, nested):
    config = getattr(transformers, family)(**nested)
    theirs = config.get_text_config(decoder=True)
    ours = text_config(config.to_dict())
    assert ours["max_position_embeddings"] == theirs.max_position_embeddings == 123
    assert ours["num_hidden_layers"] == theirs.num_hidden_layers == 1


@pytest.mark.parametrize("name", ["llm_config", "language_config"])
def test_models_with_code_of_their_own_nest_it_too(name):
    assert text_config({name: SMALL, "vocab_size": 5}) == SMALL
    assert text_config({name: SMALL, "text_config": {"vocab_size": 6}}) == {"vocab_size": 6}


def test_what_the_text_model_does_not_say_is_not_taken_from_around_it():
    assert text_config({"vocab_size": 5, "text_config": {}}) == {}
    assert text_config({"vocab_size": 5, "text_config": None}) == {"vocab_size": 5, "text_config": None}


def test_several_text_models_are_refused_as_transformers_refuses_them():
    config = transformers.PretrainedConfig()
    config.decoder = config.text_config = transformers.PretrainedConfig(**SMALL)
    with pytest.raises(ValueError, match="Multiple valid text configs"):
        config.get_text_config(decoder=True)
    with pytest.raises(ModelNotFound, match="decoder, text_config"):
        text_config({"decoder": SMALL, "text_config": SMALL})


def test_what_is_said_of_the_whole_counts_before_what_is_said_of_its_text():
    assert whole_model({"a": 1, "text_config": {"a": 2}}, "a") == 1
    assert whole_model({"a": None, "thinker_config": {"text_config": {"a": 2}}}, "a") == 2
    assert whole_model({"thinker_config": {"text_config": {}, "a": 2}}, "a") == 2
    assert whole_model({"text_config": {}}, "a") is None
