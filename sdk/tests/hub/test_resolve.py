"""Checkpoints are found, pinned, and looked over before any engine reads them."""

import json
import os
import subprocess
import sys

import pytest
from anyengine.errors import InvalidConfig, ModelNotFound
from anyengine.hub import resolve_model
from anyengine.testing import EOS, make_model_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path):
    return make_model_folder(tmp_path / "model")


def _safetensors(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _refused(name, **options) -> str:
    with pytest.raises(ModelNotFound) as caught:
        resolve_model(str(name), builtin={}, **options)
    return str(caught.value)


def test_a_folder_is_resolved_with_everything_the_sdk_reads(folder):
    files = resolve_model(str(folder), builtin={})
    assert (files.path, files.tokenizer_path, files.revision) == (folder, folder, None)
    assert files.config["vocab_size"] == 259
    assert files.eos_token_ids == {EOS, 258}


def test_a_built_in_name_comes_before_a_folder_of_that_name(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_model_folder(tmp_path / "tiny")
    assert resolve_model("tiny", builtin={"tiny": str(folder)}).path == folder
    assert resolve_model("tiny", builtin={}).path == tmp_path / "tiny"


def test_end_of_sequence_tokens_are_those_of_all_three_files(folder):
    (folder / "config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 3}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    assert resolve_model(str(folder), builtin={}).eos_token_ids == {1, 2, 3, 258}


def test_the_tokenizer_may_come_from_elsewhere(folder, tmp_path):
    other = make_model_folder(tmp_path / "other")
    (folder / "tokenizer.json").unlink()
    assert resolve_model(str(folder), builtin={}, tokenizer=str(other)).tokenizer_path == other


def test_draft_and_adapters_are_resolved_too(folder, tmp_path):
    draft = make_model_folder(tmp_path / "draft")
    (draft / "tokenizer.json").unlink()  # it proposes tokens of the main model's vocabulary
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(_safetensors({}))
    files = resolve_model(str(folder), builtin={}, draft=str(draft), loras={"x": str(adapter)})
    assert (files.draft.path, files.loras) == (draft, {"x": adapter})


def test_an_adapter_with_pickled_weights_is_refused(folder, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.bin").write_bytes(b"\x80\x04.")
    assert "adapter_model.bin" in _refused(folder, loras={"x": str(adapter)})


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"revision": "main"}, "revision"),
        ({"tokenizer": "same", "tokenizer_revision": "main"}, "tokenizer_revision"),
        ({"tokenizer_revision": "main"}, "tokenizer_revision"),
    ],
)
def test_a_revision_of_what_has_none_is_refused_and_not_ignored(folder, options, field):
    with pytest.raises(InvalidConfig) as caught:
        resolve_model("same", builtin={"same": str(folder)}, **options)
    assert caught.value.field == field


@pytest.mark.parametrize("name", ["./nowhere", "../nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c"])
def test_a_path_that_does_not_exist_never_becomes_a_download(name):
    assert _refused(name) == f"model: there is no folder {name}"


def test_a_file_is_not_a_folder(folder):
    assert "is a file" in _refused(folder / "config.json")


def test_a_missing_config_is_named(folder):
    (folder / "config.json").unlink()
    assert "no config.json" in _refused(folder)


@pytest.mark.parametrize("content", ["{", "[1]", "\x00", "[" * 100_000])
def test_an_unreadable_config_is_named(folder, content):
    (folder / "config.json").write_text(content)
    assert "config.json" in _refused(folder)


def test_a_missing_tokenizer_is_named_with_the_remedy(folder):
    (folder / "tokenizer.json").unlink()
    assert "save_pretrained" in _refused(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_pickled_weights_are_refused_with_the_remedy(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"\x80\x04.")
    message = _refused(folder)
    assert name in message
    assert "safe_serialization=True" in message


def test_a_checkpoint_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    assert "no weights" in _refused(folder)


HEADER = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def test_whole_weights_pass(folder):
    (folder / "model.safetensors").write_bytes(_safetensors(HEADER | {"__metadata__": {}}, b"\0" * 8))
    assert resolve_model(str(folder), builtin={}).path == folder


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_safetensors(HEADER, b"\0" * 7), "its header says"),
        (_safetensors(HEADER, b"\0" * 9), "its header says"),
        (_safetensors(HEADER)[:20], "truncated"),
        (b"\0\0", "truncated"),
        (b"", "truncated"),
        ((2**60).to_bytes(8, "little"), "truncated"),
        (_safetensors([1]), "broken header"),
        (_safetensors({"w": {"data_offsets": "x"}}), "broken header"),
        ((3).to_bytes(8, "little") + b"{{{", "broken header"),
    ],
)
def test_a_truncated_or_broken_weights_file_is_named(folder, content, words):
    (folder / "model.safetensors").write_bytes(content)
    message = _refused(folder)
    assert words in message
    assert "model.safetensors" in message


def test_missing_shards_are_named(folder):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-2.safetensors" in _refused(folder)


def test_a_hub_model_that_cannot_be_reached_is_a_model_not_found(monkeypatch):
    from huggingface_hub import HfApi

    def unreachable(self, *args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    message = _refused("someone/something")
    assert "someone/something" in message
    assert "no route" in message


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        (
            "storyteler",
            "model: storyteler is no model that comes with the engine (did you mean 'storyteller'? There are: ",
        ),
        (
            "gpt2",
            "model: gpt2 is no model that comes with the engine (there are: storyteller, draft), no folder here, ",
        ),
        ("someone/storyteller", "model: someone/storyteller is no folder here, and could not be fetched "),
    ],
)
def test_a_name_that_may_be_meant_for_a_built_in_model_is_told_which_there_are(monkeypatch, name, begins):
    from huggingface_hub import HfApi

    def unreachable(self, *args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    with pytest.raises(ModelNotFound) as caught:
        resolve_model(name, builtin={"storyteller": "/nowhere", "draft": "/nowhere"})
    assert caught.value.message[: len(begins)] == begins


def test_an_error_of_the_http_client_is_a_model_not_found_too(monkeypatch):
    """They are no OSErrors."""
    from huggingface_hub import HfApi

    class ConnectError(Exception):
        pass

    def unreachable(self, *args, **kwargs):
        raise ConnectError("name resolution")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    with pytest.raises(ModelNotFound, match="name resolution") as caught:
        resolve_model("someone/something", builtin={})
    assert type(caught.value.__cause__) is ConnectError


def test_a_model_is_fetched_by_the_name_that_was_given_so_that_the_cache_finds_it_offline(monkeypatch, tmp_path):
    import huggingface_hub

    folder = make_model_folder(tmp_path / COMMIT)
    asked = []

    class Info:
        sha = COMMIT

    def snapshot(name, *, revision, allow_patterns):
        asked.append(revision)
        return str(folder)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, name, *, revision: Info())
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert (resolve_model("someone/something", builtin={}).revision, asked) == (COMMIT, [None])


def _hub_error(name: str) -> Exception:
    import huggingface_hub.errors

    cls = getattr(huggingface_hub.errors, name)
    return cls.__new__(cls)  # their constructors take an HTTP response


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("RevisionNotFoundError", "has no revision 'v9'"),
        ("GatedRepoError", "accept its conditions"),
        ("RepositoryNotFoundError", "hf auth login"),
        ("HFValidationError", "no model on the hub"),
        ("LocalEntryNotFoundError", "its cache does not hold all of it"),
    ],
)
def test_each_refusal_of_the_hub_says_what_to_do(monkeypatch, name, words):
    from huggingface_hub import HfApi

    def refuse(self, *args, **kwargs):
        raise _hub_error(name)

    monkeypatch.setattr(HfApi, "model_info", refuse)
    assert words in _refused("someone/something", revision="v9")


def test_a_hub_model_is_pinned_to_a_commit_and_no_pickled_file_is_fetched(monkeypatch, folder):
    import huggingface_hub

    asked = {}

    class Info:
        sha = COMMIT

    def info(self, name, *, revision):
        asked["info"] = (name, revision)
        return Info()

    def snapshot(name, *, revision, allow_patterns):
        asked["snapshot"] = (name, revision, allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    files = resolve_model("someone/something", builtin={}, revision="main")
    assert (files.revision, asked["info"]) == (COMMIT, ("someone/something", "main"))
    name, revision, patterns = asked["snapshot"]
    assert (name, revision) == ("someone/something", COMMIT)
    assert [pattern for pattern in patterns if pattern.endswith(("bin", "pt", "pth", "py", "*"))] == []


def test_of_a_model_whose_engine_runs_elsewhere_no_weights_are_fetched(monkeypatch, folder):
    import huggingface_hub

    fetched = []
    for file in folder.glob("*.safetensors"):
        file.unlink()
    monkeypatch.setattr(
        huggingface_hub.HfApi, "model_info", lambda *_args, **_options: type("Info", (), {"sha": COMMIT})
    )
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *_args, **options: fetched.extend(options["allow_patterns"]) or str(folder),
    )
    files = resolve_model("someone/something", builtin={}, weights=())
    assert files.revision == COMMIT
    assert "*.json" in fetched
    assert not [pattern for pattern in fetched if "safetensors" in pattern]


def test_a_cached_hub_model_is_used_offline_by_the_real_client(tmp_path):
    """In a fresh interpreter: huggingface_hub reads its environment when it is imported."""
    repository = tmp_path / "hub" / "models--someone--something"
    make_model_folder(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    program = (
        "from anyengine.hub import resolve_model\n"
        "files = resolve_model('someone/something', builtin={})\n"
        "print(files.revision, files.path.name)\n"
        "try: resolve_model('someone/else', builtin={})\n"
        "except Exception as error: print(type(error).__name__)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [COMMIT, COMMIT, "ModelNotFound"]
