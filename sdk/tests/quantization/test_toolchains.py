"""What plugins with a toolchain in PyTorch share."""

import errno

import pytest
from anyengine.backend.quantizing import group_size, save_checkpoint, tool_versions
from anyengine.errors import UnsupportedParameter


@pytest.mark.parametrize(("inputs", "expected"), [([256, 512], 128), ([256, 704], 64), ([576, 96], 32), ([], 128)])
def test_the_first_size_that_divides_every_matrix_is_taken(inputs, expected):
    assert group_size("int4", inputs, (128, 64, 32), engine="simulated") == expected


def test_where_none_divides_the_widths_are_named():
    with pytest.raises(UnsupportedParameter, match=r"groups of 128, 64 or 32, .* matrices of 36, 48 inputs") as caught:
        group_size("int4", [48, 36, 48], (128, 64, 32), engine="simulated")
    assert (caught.value.field, caught.value.engine) == ("scheme", "simulated")


def test_what_lies_beside_the_weights_is_copied_and_nothing_overwritten(tmp_path):
    source, output = tmp_path / "source", tmp_path / "output"
    for folder in (source, output):
        folder.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja", "config.json", "model.safetensors.index.json", "model.bin"):
        (source / name).write_text("old")
    save_checkpoint(lambda: (output / "config.json").write_text("new"), source, output)
    found = {file.name: file.read_text() for file in output.iterdir()}
    assert found == {"config.json": "new", "tokenizer.json": "old", "chat_template.jinja": "old"}


def test_a_full_disk_is_an_error_of_the_system_whoever_says_so(tmp_path):
    def full():
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    with pytest.raises(OSError, match="No space left") as caught:
        save_checkpoint(full, tmp_path, tmp_path)
    assert caught.value.errno == errno.ENOSPC


def test_other_errors_of_saving_stay_what_they_are(tmp_path):
    def fail():
        raise RuntimeError("shared tensors")

    with pytest.raises(RuntimeError, match="shared tensors"):
        save_checkpoint(fail, tmp_path, tmp_path)


def test_versions_are_of_what_is_installed():
    assert set(tool_versions(["anyengine", "no-such-distribution"])) == {"anyengine"}
