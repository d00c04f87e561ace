"""Importing the SDK is quick and brings no engine."""

import json
import statistics
import subprocess
import sys

HEAVY = {"torch", "transformers", "numpy", "vllm", "lmdeploy", "tensorrt_llm", "anyengine_reference"}


def _import(statement: str) -> tuple[float, set[str]]:
    """Processor milliseconds of the import in a fresh interpreter, and the modules that it brought."""
    program = (
        "import json, sys, time\n"
        f"before = time.process_time()\n{statement}\nspent = time.process_time() - before\n"
        "print(json.dumps([spent * 1000, sorted(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    milliseconds, modules = json.loads(done.stdout)
    return milliseconds, {name.split(".")[0] for name in modules}


def test_importing_anyengine_takes_under_150_ms():
    milliseconds = statistics.median(_import("import anyengine")[0] for _ in range(5))
    assert milliseconds < 150


def test_neither_the_package_nor_its_engine_class_imports_an_engine():
    assert _import("import anyengine")[1] & HEAVY == set()
    assert _import("from anyengine import *")[1] & HEAVY == set()


def test_looking_for_engines_imports_no_engine():
    assert _import("import anyengine; anyengine.find_engines()")[1] & (HEAVY - {"anyengine_reference"}) == set()


def test_an_application_imports_nothing_of_an_engine_that_runs_in_a_worker():
    program = (
        "from anyengine.sync import Engine\n"
        "with Engine.load('reference', isolation='process') as engine:\n"
        "    assert engine.generate('Once upon a time', max_tokens=2).token_ids\n"
        "    with engine.stream('Once upon a time', max_tokens=2) as stream:\n"
        "        assert list(stream)"
    )
    # The plugin's package is looked at; NumPy would come with its engine, tokenizers with its text layer.
    assert _import(program)[1] & {*HEAVY - {"anyengine_reference"}, "tokenizers", "jinja2"} == set()
