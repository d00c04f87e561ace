"""A *scripted* ModelOpt and as much of torch and transformers as the plugin touches: no arithmetic.

Functions take the parameters of the contract's facts and no others; what is called, in order, is in ``calls``.
"""

import contextlib
import json
from types import SimpleNamespace


class Linear:
    def __init__(self, inputs):
        self.in_features = inputs


class Model:
    """With two matrices and a head, and places that it was brought to."""

    def __init__(self, inputs):
        self.parts = {"model.layers.0.q_proj": Linear(inputs), "model.layers.0.norm": object(), "lm_head": Linear(7)}
        self.places = []
        self.seen = []

    def eval(self):
        return self

    def to(self, place):
        self.places.append(place)
        return self

    def named_modules(self):
        return self.parts.items()

    def __call__(self, *, input_ids, use_cache):
        assert use_cache is False
        self.seen += input_ids


class OutOfMemoryError(Exception):
    pass


class Toolchain:
    """``modules`` are what the plugin imports.

    Args:
        facts: of ModelOpt, by ``contract/quantization.json``.
        inputs: of the model's matrices.
        gpu: whether torch finds one.
    """

    def __init__(self, facts, inputs=256, *, gpu=False):
        self.facts = facts
        self.model = Model(inputs)
        self.gpu = gpu
        self.calls = []
        self.writes = dict(facts["writes"])
        self.config = None
        presets = {
            name: {"quant_cfg": {"*weight_quantizer": {"block_sizes": {-1: 128}}}, "name": name}
            for name in facts["presets"]
        }
        self.presets = presets
        self.modules = {
            "torch": SimpleNamespace(
                OutOfMemoryError=OutOfMemoryError,
                cuda=SimpleNamespace(is_available=lambda: self.gpu),
                inference_mode=contextlib.nullcontext,
                manual_seed=lambda seed: self.calls.append(("manual_seed", seed)),
                nn=SimpleNamespace(Linear=Linear),
                tensor=lambda rows, device: rows,
            ),
            "transformers": SimpleNamespace(AutoModelForCausalLM=SimpleNamespace(from_pretrained=self._load)),
            "modelopt.torch.quantization": SimpleNamespace(
                quantize=self._called("quantize", self._quantize), **presets
            ),
            "modelopt.torch.export": SimpleNamespace(
                export_hf_checkpoint=self._called("export_hf_checkpoint", self._export)
            ),
        }

    def _load(self, _path, *, dtype, local_files_only):
        assert (dtype, local_files_only) == ("auto", True)
        return self.model

    def _called(self, name, function):
        (known,) = [each for path, each in self.facts["signatures"].items() if path.endswith(f".{name}")]

        def call(*values, **named):
            given = dict(zip(known, values, strict=False)) | named
            assert set(given) <= set(known)
            self.calls.append((name, given))
            return function(**given)

        return call

    def _quantize(self, model, config, forward_loop):
        self.config = config
        for _ in range(2 if config["name"] == "INT4_AWQ_CFG" else 1):
            forward_loop(model)
        return model

    def _export(self, model, export_dir):
        assert model is self.model
        written = dict(self.writes[self.config["name"]])
        if "group_size" in written:
            written["group_size"] = self.config["quant_cfg"]["*weight_quantizer"]["block_sizes"][-1]
        (export_dir / "hf_quant_config.json").write_text(json.dumps({"quantization": written}))
        (export_dir / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "modelopt"}}))
        (export_dir / "model.safetensors").write_bytes(b"")
