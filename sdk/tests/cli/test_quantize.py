"""``anyengine quantize``."""

import json


def test_a_quantised_model_is_written_and_can_be_loaded(anyengine, tmp_path):
    folder = tmp_path / "smaller"
    arguments = ["--model", "storyteller", "--scheme", "int8-w8a16", "--output", str(folder)]
    assert anyengine.json("quantize", *arguments) == {
        "engine": "reference",
        "model": "storyteller",
        "scheme": "int8-w8a16",
        "output": str(folder),
    }
    done = anyengine("generate", "Once", "--model", str(folder), "--max-tokens", "4", "--json")
    assert (done.exit_code, len(json.loads(done.stdout)["token_ids"])) == (0, 4)


def test_the_folder_is_what_is_printed(anyengine, tmp_path):
    folder = tmp_path / "smaller"
    arguments = ["--model", "storyteller-draft", "--scheme", "int8-w8a16", "--output", str(folder)]
    done = anyengine("quantize", *arguments)
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"{folder}\n", "")


def test_an_unknown_scheme_is_refused_with_those_that_exist(anyengine, tmp_path):
    done = anyengine("quantize", "--model", "storyteller", "--scheme", "int3", "--output", str(tmp_path / "x"))
    assert (done.exit_code, "int8-w8a16" in done.stderr, (tmp_path / "x").exists()) == (2, True, False)
