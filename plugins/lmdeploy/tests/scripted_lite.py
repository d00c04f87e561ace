"""A *scripted* ``lmdeploy.lite`` and as much of torch and transformers as the plugin touches: no arithmetic.

Functions take the parameters of the contract's facts and no others; what is called, in order, is in ``calls``.
"""

import json
from types import SimpleNamespace


class Part:
    """A module: parts by their names, or a matrix of some inputs and outputs."""

    def __init__(self, **parts):
        self.parts = parts
        self.hooks = []
        self.places = []

    def named_modules(self, prefix=""):
        yield prefix, self
        for name, part in self.parts.items():
            yield from part.named_modules(f"{prefix}.{name}" if prefix else name)

    def children(self):
        return self.parts.values()

    def get_submodule(self, name):
        return dict(self.named_modules())[name]

    def to(self, place):
        self.places.append(place)
        return self

    def register_forward_pre_hook(self, hook):
        return self._registered(lambda: hook(self, ()))

    def register_forward_hook(self, hook):
        return self._registered(lambda: hook(self, (), None))

    def _registered(self, hook):
        self.hooks.append(hook)
        return SimpleNamespace(remove=lambda: self.hooks.remove(hook))


class Linear(Part):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.in_features, self.out_features = inputs, outputs


class ModuleList(Part):
    pass


class LlamaDecoderLayer(Part):
    pass


class LlamaForCausalLM(Part):
    """With a configuration, and a way to be saved."""

    def __init__(self, layers, **widths):
        layer = {"inputs": 128, "outputs": 128} | widths

        def make():
            matrix = {"q_proj": Linear(layer["inputs"], layer["outputs"])}
            return LlamaDecoderLayer(norm=Part(), attention=Part(**matrix), out=Linear(layer["inputs"], 128))

        parts = {str(number): make() for number in range(layers)}
        self.model = Part(embed=Part(), layers=ModuleList(**parts))
        super().__init__(model=self.model, lm_head=Linear(128, 128))
        self.config = SimpleNamespace(use_cache=True, update=lambda values: vars(self.config).update(values))
        self.used_cache = None

    def eval(self):
        return self

    def save_pretrained(self, folder):
        (folder / "config.json").write_text(json.dumps({"quantization_config": self.config.quantization_config}))
        (folder / "model.safetensors").write_bytes(b"")


class Toolchain:
    """``modules()``: name → what ``import_module`` gives for it.

    Attributes:
        calls: (name of a function, its arguments).
        model: the one that is loaded.
        breaks: name of a function → what it raises.
        smallest_scale: of what is rounded to 8 bits.
    """

    def __init__(self, facts, layers=2, **widths):
        self.calls = []
        self.model = LlamaForCausalLM(layers, **widths)
        self.breaks = {}
        self.smallest_scale = 0.1
        self.tables = {"LlamaForCausalLM": "LlamaDecoderLayer", "Qwen3MoeForCausalLM": "Qwen3MoeDecoderLayer"}
        self._parameters = facts["read"]["lite"]["value"]

    def _called(self, name, *positional, **named):
        parameters = self._parameters[f"lmdeploy.{name}"]
        assert len(positional) + len(named) <= len(parameters), name
        assert set(named) <= set(parameters[len(positional) :]), name
        self.calls.append((name.rpartition(".")[2], dict(zip(parameters, positional, strict=False)) | named))
        if name in self.breaks:
            raise self.breaks[name]

    def modules(self):
        chain = self

        class CalibrationContext:
            def __init__(self, *positional, **named):
                chain._called("lite.quantization.CalibrationContext", *positional, **named)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                return None

            def calibrate(self, data):
                chain._called("lite.quantization.CalibrationContext.calibrate", data)
                chain.model.used_cache = chain.model.config.use_cache
                for part in chain.model.model.parts["layers"].children():
                    for hook in list(part.hooks):
                        hook()

            def collect_inputs_stats(self):
                return {"absmax": {"a": 1}}

        def collect(model, target, prefix=""):
            named = ((f"{prefix}.{name}" if prefix else name, part) for name, part in model.named_modules())
            return {name: part for name, part in named if target in {type(part), type(part).__name__}}

        def from_float(*positional, **named):
            chain._called("pytorch.models.QLinear.from_float", *positional, **named)
            made = Part()
            made.scale = SimpleNamespace(min=lambda: chain.smallest_scale)
            return made

        norms = {"norm": ["attention.q_proj"]}
        matrices = {"attention.q_proj": ["out"]}
        torch = SimpleNamespace(
            OutOfMemoryError=MemoryError,
            cuda=SimpleNamespace(is_available=lambda: False),
            nn=SimpleNamespace(Linear=Linear, ModuleList=ModuleList),
            tensor=lambda rows: rows,
            int8="int8",
            float8_e4m3fn="float8_e4m3fn",
        )
        return {
            "torch": torch,
            "transformers": SimpleNamespace(
                AutoModelForCausalLM=SimpleNamespace(from_pretrained=lambda *_, **__: chain.model)
            ),
            "lmdeploy.lite.apis.calibrate": SimpleNamespace(
                LAYER_TYPE_MAP=self.tables, NORM_TYPE_MAP=dict.fromkeys(self.tables, "Norm")
            ),
            "lmdeploy.lite.quantization": SimpleNamespace(
                CalibrationContext=CalibrationContext, ActivationObserver=SimpleNamespace(instances=dict)
            ),
            "lmdeploy.lite.quantization.awq": SimpleNamespace(
                NORM_FCS_MAP={"LlamaDecoderLayer": norms, "Qwen3MoeDecoderLayer": norms},
                FC_FCS_MAP={"LlamaDecoderLayer": matrices},
                smooth_layers=lambda *p, **n: chain._called("lite.quantization.awq.smooth_layers", *p, **n),
                quant_weights=lambda *p, **n: chain._called("lite.quantization.awq.quant_weights", *p, **n),
            ),
            "lmdeploy.lite.utils": SimpleNamespace(collect_target_modules=collect),
            "lmdeploy.pytorch.models": SimpleNamespace(QLinear=SimpleNamespace(from_float=from_float)),
        }
