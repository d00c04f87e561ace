"""What a hostile or careless caller gives to the reference engine: an exit code and a line that says what was wrong."""

import json
import pickle
import shutil
from pathlib import Path

import pytest

DEEP_SCHEMA = '{"not":' * 10_000 + "{}" + "}" * 10_000
RAISES = '{{ "".__class__.__mro__[1].__subclasses__() }}'
NEVER_ENDS = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
RECURSES = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}"
GROWS = '{{ "a" * 10000000000 }}'


def refused(anyengine, code: int, *arguments: str) -> str:
    """The one line on stderr; with ``--json`` it is the same, and stdout has the error as data."""
    plain = anyengine(*arguments)
    assert (plain.exit_code, plain.stdout, plain.stderr.count("\n")) == (code, "", 1), plain.output
    assert plain.stderr.startswith("error: ")
    machine = anyengine(*arguments, "--json")
    assert (machine.exit_code, machine.stderr, machine.stdout.count("\n")) == (code, plain.stderr, 1)
    assert set(json.loads(machine.stdout)["error"]) >= {"type", "message"}
    return plain.stderr.removeprefix("error: ")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ([""], "prompt: is empty"),
        (["word " * 5000], "prompt: has 5002 tokens; the context holds 1024"),
        (["hi", "--temperature", "-1"], "sampling.temperature: "),
        (["hi", "--temperature", "nan"], "sampling.temperature: "),
        (["hi", "--temperature", "inf"], "sampling.temperature: "),
        (["hi", "--temperature", "warm"], "Invalid value for '--temperature'"),
        (["hi", "--top-k", "-1"], "sampling.top_k: "),
        (["hi", "--top-k", "9" * 30], "sampling.top_k: "),
        (["hi", "--top-p", "0"], "sampling.top_p: "),
        (["hi", "--min-p", "2"], "sampling.min_p: "),
        (["hi", "--seed", "-1"], "sampling.seed: "),
        (["hi", "--max-tokens", "0"], "max_tokens: "),
        (["hi", "--n", "0"], "n: "),
        (["hi", "--stop", ""], "stop.0: "),
        (["hi", "--json-schema", DEEP_SCHEMA], "structured.json_schema: nested deeper than"),
        (["hi", "--json-schema", '{"type": "nonsense"}'], "structured.json_schema: "),
        (["hi", "--regex", "("], "structured.regex: "),
        (["hi", "--grammar", "start: nowhere"], "structured.grammar: "),
        (["hi", "--engine", "nothing"], "no engine is named 'nothing'; installed are: "),
        (["hi", "--engine", "refrence"], "no engine is named 'refrence'; did you mean 'reference'? Installed are: "),
        (["hi", "-r", "nonsense=1"], "unknown field 'nonsense'"),
        (["hi", "-r", "sampling=1"], "sampling: "),
        (["hi", "-r", "sampling.nonsense=1"], "unknown field 'sampling.nonsense'"),
        (["hi", "-r", "prompt=ho"], "-r prompt and -r messages stand instead of PROMPT"),
        (["hi", "-o", "nonsense=1"], "unknown field 'nonsense'"),
        (["hi", "-o", "kv_cache.nonsense=1"], "unknown field 'kv_cache.nonsense'"),
        (["hi", "-o", "native=" + "[" * 20_000], "Invalid value for '-o' / '--option': native: "),
        (["hi", "-o", "seed=NaN"], "seed: "),
        (["hi", "--chat", "-o", f"chat_template={RAISES}"], "chat_template: the chat template is not safe"),
        (["hi", "--chat", "-o", f"chat_template={NEVER_ENDS}"], "chat_template: the chat template was stopped"),
        (["hi", "--chat", "-o", f"chat_template={RECURSES}"], "chat_template: the chat template was stopped"),
        (["hi", "--chat", "-o", f"chat_template={GROWS}"], "chat_template: the chat template was stopped"),
        (["hi", "--chat", "-o", "chat_template={% if %}"], "chat_template: the chat template cannot be compiled"),
    ],
)
def test_misuse_exits_with_2_and_names_the_field(anyengine, arguments, field):
    assert refused(anyengine, 2, "generate", *arguments).startswith(field)


def test_a_deep_schema_in_a_file_is_refused_in_the_same_way(anyengine, tmp_path):
    file = tmp_path / "deep.json"
    file.write_text(DEEP_SCHEMA)
    assert refused(anyengine, 2, "generate", "hi", "--json-schema", str(file)).startswith("structured.json_schema: ")


def test_an_exploding_regex_is_bounded_or_refused(anyengine):
    done = anyengine("generate", "hi", "--regex", "(a{1,1000}){1,1000}", "--max-tokens", "5")
    if done.exit_code == 0:
        assert set(done.stdout.strip()) == {"a"}
    else:
        assert (done.exit_code, done.stderr.startswith("error: structured.regex: ")) == (2, True)


@pytest.fixture
def storyteller(tmp_path):
    """A copy of the built-in model, to be damaged."""
    import anyengine_reference

    built_in = Path(anyengine_reference.__file__).parent / "models" / "storyteller"
    return Path(shutil.copytree(built_in, tmp_path / "storyteller"))


def test_a_model_without_a_tokenizer_says_how_to_make_one(anyengine, storyteller):
    (storyteller / "tokenizer.json").unlink()
    line = refused(anyengine, 1, "generate", "hi", "--model", str(storyteller))
    assert "has no tokenizer.json; make one with transformers" in line


def test_truncated_weights_are_refused_by_their_sizes(anyengine, storyteller):
    weights = storyteller / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20_000])
    line = refused(anyengine, 1, "generate", "hi", "--model", str(storyteller))
    assert "model.safetensors has 20000 bytes, and its header says" in line


def test_pickled_weights_are_never_read(anyengine, storyteller):
    (storyteller / "model.safetensors").unlink()
    with (storyteller / "pytorch_model.bin").open("wb") as file:
        pickle.dump({}, file)
    line = refused(anyengine, 1, "generate", "hi", "--model", str(storyteller))
    assert "has only pickled weights (pytorch_model.bin)" in line
    assert "safe_serialization=True" in line


def test_an_argument_that_is_no_text_is_reported_in_json_too(anyengine):
    # What Python makes of an argument that is not in the terminal's encoding.
    assert "no engine is named" in refused(anyengine, 2, "generate", "hi", "--engine", "\udcff")
    assert "lone surrogate" in refused(anyengine, 2, "generate", "\udcff")
