"""``anyengine generate``."""

import json
import os
import pty
import subprocess

import pytest
from anyengine.testing import EOS, make_model_folder

HELLO = [39, 68, 75, 75, 78]


def scripted(anyengine, *arguments: str, stdin: str | None = None):
    return anyengine("generate", "--engine", "scripted", *arguments, stdin=stdin)


def test_the_answer_is_printed_and_nothing_else(anyengine):
    done = scripted(anyengine, "hi")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "Hello\n", "")


def test_streamed_and_at_once_print_the_same(anyengine):
    assert scripted(anyengine, "hi", "--no-stream").stdout == scripted(anyengine, "hi", "--stream").stdout == "Hello\n"


def test_the_document_holds_the_completion(anyengine):
    document = anyengine.json("generate", "--engine", "scripted", "hi", "--seed", "7")
    timings = document.pop("timings")
    assert sorted(timings) == ["queue", "time_to_first_token", "total"]
    assert document == {
        "engine": "scripted",
        "model": "scripted",
        "text": "Hello",
        "token_ids": [*HELLO, EOS],
        "prompt_token_ids": [71, 72],
        "finish_reason": "stop",
        "stop_reason": EOS,
        "usage": {"prompt_tokens": 2, "completion_tokens": 6, "cached_tokens": 0},
        "seed": 7,
        "index": 0,
    }


def test_a_stream_of_json_has_a_line_for_each_chunk(anyengine):
    lines = scripted(anyengine, "hi", "--json", "--stream").stdout.splitlines()
    chunks = [json.loads(line) for line in lines]
    assert "".join(chunk["text"] for chunk in chunks) == "Hello"
    assert [token for chunk in chunks for token in chunk["token_ids"]] == [*HELLO, EOS]
    assert [chunk["finish"] is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_log_probabilities_and_alternatives_are_in_the_document_if_asked_for(anyengine):
    document = anyengine.json("generate", "--engine", "scripted", "hi", "--logprobs", "0", "-n", "3")
    assert [entry["token_id"] for entry in document["logprobs"]] == [*HELLO, EOS]
    assert [other["index"] for other in document["alternatives"]] == [1, 2]


def test_log_probabilities_as_text_are_refused(anyengine):
    done = scripted(anyengine, "hi", "--logprobs", "1")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--json" in done.stderr


def test_several_answers_as_text_are_numbered(anyengine):
    assert scripted(anyengine, "hi", "-n", "2").stdout == "--- 1 of 2 ---\nHello\n--- 2 of 2 ---\nHello\n"


def test_several_answers_as_a_stream_of_text_are_refused(anyengine):
    assert scripted(anyengine, "hi", "-n", "2", "--stream").exit_code == 2


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_the_prompt_comes_from_standard_input_without_its_last_line_break(anyengine, arguments):
    scripted(anyengine, *arguments, stdin="two\nlines\n\n")
    assert anyengine.request.prompt_text == "two\nlines\n"


def test_an_empty_prompt_is_refused(anyengine):
    done = scripted(anyengine, stdin="")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: prompt: is empty")


def test_chat_sends_the_prompt_through_the_template(anyengine):
    scripted(anyengine, "hi", "--chat")
    assert anyengine.request.prompt_text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_a_system_message_comes_first_and_implies_chat(anyengine):
    scripted(anyengine, "hi", "--system", "be kind")
    assert anyengine.request.prompt_text.startswith("<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi")


def test_options_reach_the_engine(anyengine):
    arguments = ["--max-tokens", "9", "--temperature", "0.5", "--top-p", "0.9", "--top-k", "3", "--min-p", "0.1"]
    scripted(anyengine, "hi", *arguments, "--seed", "4")
    request = anyengine.request
    assert request.max_tokens == 9
    assert request.sampling.model_dump(exclude_unset=True) == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "min_p": 0.1,
        "seed": 4,
    }


def test_any_other_field_of_a_request_can_be_given(anyengine):
    fields = ["-r", "sampling.presence_penalty=0.1", "-r", 'sampling.logit_bias={"5": 1.5}', "-r", "cache_salt=mine"]
    scripted(anyengine, "hi", *fields)
    request = anyengine.request
    assert (request.sampling.presence_penalty, request.sampling.logit_bias) == (0.1, {5: 1.5})
    assert request.cache_salt == "mine"


@pytest.mark.parametrize(
    ("option", "assignment", "field"),
    [
        ("--max-tokens=2", "max_tokens=3", "max_tokens"),
        ("--temperature=0", "sampling.temperature=1", "sampling.temperature"),
        ("--top-k=5", 'sampling={"top_p": 0.5}', "sampling.top_k"),
        ("--stop=a", 'stop=["b"]', "stop"),
        ("--regex=a", 'structured={"choice": ["a"]}', "structured.regex"),
    ],
)
def test_a_field_is_said_once(anyengine, option, assignment, field):
    found = scripted(anyengine, "hi", option, "-r", assignment)
    assert (found.exit_code, found.stdout) == (2, "")
    name, key = option.partition("=")[0], assignment.partition("=")[0]
    assert f"-r {key} and {name} both say {field}; give one of the two" in found.stderr


def test_fields_of_one_part_can_be_said_in_both_ways(anyengine):
    scripted(anyengine, "hi", "--temperature=0.5", "-r", "sampling.presence_penalty=0.1")
    sampling = anyengine.request.sampling
    assert (sampling.temperature, sampling.presence_penalty) == (0.5, 0.1)


def test_stop_strings_cut_the_text(anyengine):
    assert scripted(anyengine, "hi", "--stop", "zz", "--stop", "lo").stdout == "Hel\n"


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [
        ([], 128),
        (["-o", "max_model_len=50"], 48),
        (["-r", "max_tokens=null"], 4094),
        (["-r", "min_tokens=200"], 200),
    ],
)
def test_without_a_length_it_is_128_or_what_the_context_leaves(anyengine, arguments, limit):
    scripted(anyengine, "hi", *arguments)
    assert anyengine.request.max_tokens == limit


def test_a_configuration_comes_from_a_file_and_options_win(anyengine, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"max_model_len": 100, "scheduling": {"max_num_seqs": 3}}))
    scripted(anyengine, "hi", "--config", str(file), "-o", "max_model_len=60", "-o", "scheduling.max_queued_requests=5")
    info = anyengine.engine.plugin.loaded[-1].info
    assert (info.max_model_len, info.max_num_seqs) == (60, 3)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("nonsense=1", "unknown field 'nonsense'"),
        ("dtype=bfloat16", "cannot honour dtype='bfloat16'"),
        ("max_model_len=many", "max_model_len"),
        ("max_model_len", "KEY=VALUE"),
        ("kv_cache.=1", "KEY=VALUE"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(anyengine, assignment, words):
    done = scripted(anyengine, "hi", "-o", assignment)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert words in done.stderr


def test_a_key_through_a_value_is_refused(anyengine):
    done = scripted(anyengine, "hi", "-o", "dtype=auto", "-o", "dtype.size=1")
    assert (done.exit_code, "has no fields" in done.stderr) == (2, True)


@pytest.mark.parametrize("content", ["[1]", "{", "\x00"])
def test_a_configuration_file_that_is_no_object_is_refused(anyengine, tmp_path, content):
    file = tmp_path / "config.json"
    file.write_text(content)
    done = scripted(anyengine, "hi", "--config", str(file))
    assert (done.exit_code, "--config" in done.stderr) == (2, True)


def test_each_kind_of_structure_reaches_the_engine(anyengine, tmp_path):
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"type": "string"}')
    grammar.write_text('start: "a"')
    kinds = [
        (["--json-schema", '{"type": "object"}'], {"json_schema": {"type": "object"}}),
        (["--json-schema", str(schema)], {"json_schema": {"type": "string"}}),
        (["--regex", "a+"], {"regex": "a+"}),
        (["--choice", "yes", "--choice", "no"], {"choice": ("yes", "no")}),
        (["--grammar", str(grammar)], {"grammar": 'start: "a"'}),
        (["--grammar", 'start: "b"'], {"grammar": 'start: "b"'}),
    ]
    for arguments, expected in kinds:
        assert scripted(anyengine, "hi", *arguments).exit_code == 0
        assert anyengine.request.structured.model_dump(exclude_none=True) == expected


def test_two_kinds_of_structure_are_refused(anyengine):
    done = scripted(anyengine, "hi", "--regex", "a", "--choice", "b")
    assert (done.exit_code, "exactly one of" in done.stderr) == (2, True)


@pytest.mark.parametrize("option", ["--json-schema", "--grammar"])
def test_what_is_neither_a_file_nor_the_text_itself_is_refused(anyengine, option):
    done = scripted(anyengine, "hi", option, "nowhere")
    assert (done.exit_code, done.stderr.startswith(f"error: {option}: 'nowhere' is no readable file")) == (2, True)


def test_a_prompt_can_be_given_as_token_ids(anyengine):
    assert scripted(anyengine, "-r", "prompt=[71, 72]").exit_code == 0
    assert anyengine.request.prompt_token_ids == [71, 72]


def test_another_model_can_be_loaded(anyengine, tmp_path):
    folder = make_model_folder(tmp_path / "model")
    assert anyengine.json("generate", "--engine", "scripted", "hi", "--model", str(folder))["model"] == str(folder)


def test_the_reference_engine_is_the_default(anyengine):
    document = anyengine.json("generate", "Once upon a time", "--max-tokens", "5", "--temperature", "0")
    assert (document["engine"], document["model"], len(document["token_ids"])) == ("reference", "storyteller", 5)
    assert document["usage"]["completion_tokens"] == 5


def test_a_program_streams_the_text_that_the_document_has_for_the_same_seed(anyengine):
    command, environment = anyengine.program
    arguments = [*command, "generate", "Once upon a time", "--seed", "7", "--max-tokens", "40"]
    streamed, whole = (
        subprocess.run([*arguments, *more], env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=True)
        for more in ([], ["--json"])
    )
    document = json.loads(whole.stdout)
    assert streamed.stdout.decode() == document["text"] + "\n"
    assert (document["seed"], streamed.stderr, whole.stderr) == (7, b"", b"")


def test_on_a_terminal_the_answer_follows_its_prompt(anyengine):
    command, environment = anyengine.program
    ours, theirs = pty.openpty()
    arguments = [*command, "generate", "--engine", "scripted", "hi"]
    with subprocess.Popen(arguments, env=environment, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL):
        os.close(theirs)
        shown = b""
        while not shown.endswith(b"\n"):
            shown += os.read(ours, 4096)
    os.close(ours)
    assert shown == b"\x1b[2mhi\x1b[0mHello\r\n"
