from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from anyengine.errors import InvalidConfig, InvalidRequest, ModelNotFound
from anyengine.text.tokenizer import TextTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

if TYPE_CHECKING:
    from pathlib import Path

MESSAGES = [{"role": "user", "content": "hi"}]


def write(folder: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def framed(byte_level: Tokenizer) -> Tokenizer:
    """Its post-processor puts <s> before a prompt."""
    tokenizer = Tokenizer.from_str(byte_level.to_str())
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    return tokenizer


def test_a_prompt_is_framed_by_the_post_processor_alone(framed: Tokenizer, tmp_path: Path) -> None:
    tokenizer = TextTokenizer.load(write(tmp_path, framed, {"bos_token": "<s>", "add_bos_token": False}))
    assert tokenizer.encode("The fox")[0] == tokenizer.bos_token_id
    assert tokenizer.encode("The fox", add_special_tokens=False) == tokenizer.encode("The fox")[1:]
    assert tokenizer.count("The fox") == len(tokenizer.encode("The fox"))
    assert tokenizer.decode(tokenizer.encode("The fox")) == "The fox"
    assert tokenizer.decode(tokenizer.encode("The fox"), skip_special_tokens=False) == "<s>The fox"


def test_the_spelling_of_a_special_token_is_that_token_unless_the_model_splits_it(
    byte_level: Tokenizer, tmp_path: Path
) -> None:
    text = "a<|im_end|>"
    tokenizer = TextTokenizer.load(write(tmp_path, byte_level, {}))
    assert tokenizer.encode(text)[-1] == byte_level.token_to_id("<|im_end|>")
    tokenizer = TextTokenizer.load(write(tmp_path, byte_level, {"split_special_tokens": True}))
    assert byte_level.token_to_id("<|im_end|>") not in tokenizer.encode(text)


def test_special_tokens_come_from_the_configuration(byte_level: Tokenizer, tmp_path: Path) -> None:
    config = {
        "eos_token": {"content": "</s>", "lstrip": False},
        "unk_token": None,
        "pad_token": "[PAD]",
        "extra_special_tokens": {"image_token": "<tool>"},
        "added_tokens_decoder": {
            "5": {"content": "The", "special": True},
            "999": {"content": "[NEW]", "special": True},
        },
    }
    folder = write(tmp_path, byte_level, config)
    tokenizer = TextTokenizer.load(folder)
    assert tokenizer.special_tokens == {"eos_token": "</s>", "pad_token": "[PAD]", "image_token": "<tool>"}
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("</s>", byte_level.token_to_id("</s>"))
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("[PAD]", None)
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == (None, None)
    special = {"<s>", "</s>", "<|im_end|>", "a b", "~", "The"}  # <tool> stays an ordinary added token
    assert {tokenizer.token(token_id) for token_id in tokenizer.special_ids} == special
    assert tokenizer.vocab_size == byte_level.get_vocab_size()
    assert tokenizer.token(tokenizer.vocab_size) is None
    assert tokenizer.token(-1) is None


def test_truncation_left_over_from_training_does_not_cut_prompts(byte_level: Tokenizer, tmp_path: Path) -> None:
    cut = Tokenizer.from_str(byte_level.to_str())
    cut.enable_truncation(4)
    cut.enable_padding(length=10)
    tokenizer = TextTokenizer.load(write(tmp_path, cut, {}))
    assert tokenizer.decode(tokenizer.encode("The quick brown fox")) == "The quick brown fox"


def test_a_lone_surrogate_is_refused_with_its_place(byte_level: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match=r"U\+D83D\) at character 3") as caught:
        TextTokenizer(byte_level).encode("abc\ud83d")
    assert caught.value.field == "prompt"


@settings(max_examples=30)
@given(ids=st.lists(st.integers(0, 420)), skip=st.booleans())
def test_decoding_is_that_of_the_library(tokenizer: Tokenizer, ids: list[int], *, skip: bool) -> None:
    expected = tokenizer.decode(ids, skip_special_tokens=skip)
    assert TextTokenizer(tokenizer).decode(ids, skip_special_tokens=skip) == expected


def test_bad_words_are_spelt_with_and_without_a_space_before(byte_level: Tokenizer) -> None:
    tokenizer = TextTokenizer(byte_level)
    spelt = tokenizer.bad_word_sequences(["t", "  t", "The", "\n"])
    # " The" takes one token more than "The" here, so its first token, a lone space, is not held against it.
    assert [tokenizer.decode(ids) for ids in spelt] == ["t", " t", "The", "\n"]
    assert [len(ids) for ids in spelt] == [1, 1, 1, 1]
    for word in ("", "\ud800"):
        with pytest.raises(InvalidRequest) as caught:
            tokenizer.bad_word_sequences([word])
        assert caught.value.field == "sampling.bad_words"


def test_what_cannot_be_loaded_is_refused_with_what_to_do(byte_level: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        TextTokenizer.load(tmp_path / "nowhere")
    with pytest.raises(InvalidConfig, match=r"save_pretrained"):
        TextTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InvalidConfig, match=r"tokenizer\.json cannot be read"):
        TextTokenizer.load(tmp_path)
    for config in ("[]", "{", '{"added_tokens_decoder": {"1": {}}}', '{"added_tokens_decoder": [1]}'):
        byte_level.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text(config, encoding="utf-8")
        with pytest.raises(InvalidConfig) as caught:
            TextTokenizer.load(tmp_path)
        assert caught.value.field == "tokenizer"


def test_a_named_template_is_chosen_by_name_and_by_the_tools(byte_level: Tokenizer, tmp_path: Path) -> None:
    named = [{"name": name, "template": f"{name}: {{{{ messages[0].content }}}}"} for name in ("default", "tool_use")]
    tokenizer = TextTokenizer.load(write(tmp_path, byte_level, {"chat_template": named}))
    assert tokenizer.apply_chat_template(MESSAGES) == "default: hi"
    assert tokenizer.apply_chat_template(MESSAGES, tools=[]) == "tool_use: hi"
    assert tokenizer.apply_chat_template(MESSAGES, chat_template="tool_use") == "tool_use: hi"
    assert tokenizer.apply_chat_template(MESSAGES, chat_template="mine {{ eos_token }}") == "mine "


def test_template_files_take_the_place_of_the_configuration(byte_level: Tokenizer, tmp_path: Path) -> None:
    write(tmp_path, byte_level, {"chat_template": "configured", "eos_token": "</s>"})
    assert TextTokenizer.load(tmp_path).apply_chat_template(MESSAGES) == "configured"
    (tmp_path / "chat_template.jinja").write_text("file {{ eos_token }}", encoding="utf-8")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("rag", encoding="utf-8")
    tokenizer = TextTokenizer.load(tmp_path)
    assert tokenizer.apply_chat_template(MESSAGES) == "file </s>"
    assert tokenizer.apply_chat_template(MESSAGES, chat_template="rag") == "rag"


def test_without_a_template_messages_are_refused_with_what_to_pass(byte_level: Tokenizer) -> None:
    with pytest.raises(InvalidConfig, match="pass `chat_template`") as caught:
        TextTokenizer(byte_level).apply_chat_template(MESSAGES)
    assert caught.value.field == "chat_template"
    with pytest.raises(InvalidConfig, match="it has: rag"):
        TextTokenizer(byte_level, chat_templates={"rag": "x"}).apply_chat_template(MESSAGES)


@pytest.mark.oracle
def test_a_loaded_tokenizer_is_that_of_transformers(framed: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "The",
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}",
        "added_tokens_decoder": {"3": {"content": "er", "special": True, "lstrip": True}},
    }
    folder = write(tmp_path, framed, config)
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = TextTokenizer.load(folder)
    for text in ("The quick brown fox  <|im_end|> jumps</s>", "über 木 a b", " fox", ""):
        assert ours.encode(text) == theirs(text).input_ids
        assert ours.encode(text, add_special_tokens=False) == theirs(text, add_special_tokens=False).input_ids
        ids = ours.encode(text)
        for skip in (False, True):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.special_ids >= set(theirs.all_special_ids)
    assert ours.apply_chat_template(MESSAGES) == theirs.apply_chat_template(MESSAGES, tokenize=False)


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    modules = [
        "budget",
        "decoding",
        "detokenizer",
        "files",
        "messages",
        "pipeline",
        "stopping",
        "template",
        "tokenizer",
    ]
    imports = "; ".join(f"import anyengine.text.{module}" for module in modules)
    check = f"import sys; {imports}; print(sorted({{'tokenizers', 'jinja2'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
