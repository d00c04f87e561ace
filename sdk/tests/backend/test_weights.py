"""Which weights a plugin may declare: no pickles, no code, and nothing that lets them in."""

import pytest
from anyengine.backend.weights import weights_not_declarable


@pytest.mark.parametrize(
    "pattern",
    [
        "*.safetensors",
        "*.gguf",
        "model.gguf",
        "*.xml",
        "openvino_*.bin",
        "openvino_model.bin",
        "model.bin",
        "ggml-*.bin",
        "onnx/*.onnx",
        "*.onnx_data",
        "model.onnx.data",
    ],
)
def test_weights_that_are_no_pickles_may_be_declared(pattern):
    assert weights_not_declarable((pattern,)) is None


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("*.bin", "names pickled weights as well"),
        ("*.BIN", "names pickled weights as well"),
        ("*model.bin", "names pickled weights as well"),
        ("pytorch_model.bin", "names pickled weights as well"),
        ("pytorch_model-*.bin", "names pickled weights as well"),
        ("p*.bin", "names pickled weights as well"),
        ("[op]*.bin", "names pickled weights as well"),
        ("folder/*.bin", "names pickled weights as well"),
        ("adapter_*.bin", "names pickled weights as well"),
        ("*.pt", "names pickled weights,"),
        ("*.pth", "names pickled weights,"),
        ("*.ckpt", "names pickled weights,"),
        ("model.pkl", "names pickled weights,"),
        ("*.msgpack", "names pickled weights,"),
        ("*.py", "names code"),
        ("*.so", "names code"),
        ("*", "must end in"),
        ("*.*", "must end in"),
        ("model*", "must end in"),
        ("*.b?n", "must end in"),
        ("*.[bg]in", "must end in"),
        (".gguf", "must end in"),
        ("*.", "must end in"),
        ("", "must be of files in"),
        ("/etc/*.gguf", "must be of files in"),
        ("../*.gguf", "must be of files in"),
        ("./*.gguf", "must be of files in"),
        ("**/*.gguf", "must be of files in"),
        ("folder\\*.gguf", "must be of files in"),
        ("*.gguf/", "must be of files in"),
        ("a\0.gguf", "must be of files in"),
    ],
)
def test_others_are_refused_with_the_reason(pattern, why):
    refused = weights_not_declarable(("*.safetensors", pattern))
    assert refused is not None
    assert refused.startswith(f"{pattern!r} as weights: {why}")


def test_none_at_all_is_refused():
    assert weights_not_declarable(()) == "() as weights: name at least one pattern, such as '*.safetensors'"
