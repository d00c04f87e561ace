"""The shape of a model, read from the ``config.json`` of a Hugging Face checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar, cast

from .errors import BadCheckpoint, UnsupportedModel

__all__ = ["ModelConfig", "RopeConfig"]

_FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}
_POSITIONS = {"llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768}
_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding; the formulas are in `rope.inverse_frequencies`.

    Fields beyond `type` and `theta` are read by the types named: `factor` (linear, llama3, yarn), `low_freq_factor` and
    `high_freq_factor` (llama3), `original_max_position_embeddings` (llama3, yarn), the rest yarn.
    """

    type: Literal["default", "linear", "llama3", "yarn"] = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything that the mathematics of `Model` depends on. Sizes are counts of features, heads, layers or tokens.

    `attention_bias` is the bias of the query, key and value projections, `attention_output_bias` that of the output
    projection. `sliding_windows` has one entry a layer: a query sees that many positions, its own included; ``None``
    is all of them.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool
    attention_output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_windows: tuple[int | None, ...]

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Read the contents of a ``config.json``.

        A field that the file leaves out has the default of its family in transformers 5
        (``configuration_<family>.py``).

        Raises:
            UnsupportedModel: another architecture, activation, rope type or attention layout; named in the message.
            BadCheckpoint: a required field is missing or a field has no usable value; named in the message.
        """
        architecture, family = _family(config)
        for name in _REQUIRED:
            if config.get(name) is None:
                raise BadCheckpoint(f"config.json: {name!r} is missing, which every {architecture} checkpoint states.")
        activation = config.get("hidden_act", "silu")
        if activation != "silu":
            raise UnsupportedModel(
                f"config.json: hidden_act is {activation!r}; the reference engine computes 'silu' only."
            )
        heads = _positive(config, "num_attention_heads", int)
        kv_heads = _positive(config, "num_key_value_heads", int, _KV_HEADS.get(family, heads))
        hidden = _positive(config, "hidden_size", int)
        head_dim = _positive(config, "head_dim", int, 128 if family == "qwen3" else hidden // heads)
        if heads % kv_heads:
            raise BadCheckpoint(f"config.json: {heads} attention heads do not divide among {kv_heads} key-value heads.")
        if head_dim % 2:
            raise UnsupportedModel(f"config.json: head_dim is {head_dim}; rotary embeddings need an even one.")
        layers = _positive(config, "num_hidden_layers", int)
        positions = _positive(config, "max_position_embeddings", int, _POSITIONS[family])
        bias = _flag(config, "attention_bias") if family in {"llama", "qwen3"} else False
        return cls(
            architecture=architecture,
            vocab_size=_positive(config, "vocab_size", int),
            hidden_size=hidden,
            intermediate_size=_positive(config, "intermediate_size", int),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=_positive(config, "rms_norm_eps", float, 1e-6),
            rope=_rope(config, positions),
            max_position_embeddings=positions,
            tie_word_embeddings=_flag(config, "tie_word_embeddings"),
            attention_bias=bias or family == "qwen2",
            attention_output_bias=bias,
            mlp_bias=_flag(config, "mlp_bias") if family == "llama" else False,
            qk_norm=family == "qwen3",
            sliding_windows=_sliding_windows(config, family, layers),
        )


def _family(config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the architecture's class name in transformers and its ``model_type``."""
    model_type = config.get("model_type")
    named = cast("Sequence[str]", config.get("architectures") or [])
    architecture = named[0] if named else {v: k for k, v in _FAMILIES.items()}.get(str(model_type), str(model_type))
    family = _FAMILIES.get(architecture)
    if family is None or model_type not in {None, family}:
        raise UnsupportedModel(
            f"config.json: the architecture is {architecture!r} (model_type {model_type!r}); the reference "
            f"engine computes {', '.join(_FAMILIES)}. Use an engine that has this model, such as vLLM or transformers."
        )
    return architecture, family


def _sliding_windows(config: Mapping[str, Any], family: str, layers: int) -> tuple[int | None, ...]:
    """Return each layer's window: Mistral's is the same in all, Qwen's is by layer, Llama has none."""
    types = cast("Sequence[str] | None", config.get("layer_types"))
    if types is not None and (len(types) != layers or not set(types) <= {"full_attention", "sliding_attention"}):
        raise UnsupportedModel(
            f"config.json: layer_types is {list(types)!r}; the reference engine computes 'full_attention' and "
            f"'sliding_attention', one entry for each of the {layers} layers."
        )
    if family == "llama" or (family != "mistral" and not _flag(config, "use_sliding_window")):
        window = None
    else:
        stated = "sliding_window" not in config or config["sliding_window"] is not None
        window = _positive(config, "sliding_window", int, 4096) if stated else None
    if types is None:
        first = 0 if family == "mistral" else _positive(config, "max_window_layers", int, 28, least=0)
        types = ["sliding_attention" if window is not None and i >= first else "full_attention" for i in range(layers)]
    slides = [kind == "sliding_attention" for kind in types]
    if any(slides) and window is None:
        raise UnsupportedModel(
            f"config.json: layer_types has 'sliding_attention', but this {family} has no sliding_window."
        )
    if family == "mistral" and window is not None and not all(slides):
        raise UnsupportedModel(
            "config.json: layer_types varies by layer, which transformers ignores in a Mistral model."
        )
    return tuple(window if slide else None for slide in slides)


def _rope(config: Mapping[str, Any], positions: int) -> RopeConfig:
    """Read ``rope_parameters`` (transformers 5) or ``rope_theta`` and ``rope_scaling`` (before it)."""
    found: Any = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(found, Mapping):
        raise BadCheckpoint(f"config.json: the rope parameters are {found!r}; they should be an object.")
    rope = {
        "rope_theta": config.get("rope_theta"),
        "partial_rotary_factor": config.get("partial_rotary_factor"),
        **cast("Mapping[str, Any]", found),
    }
    if config.get("original_max_position_embeddings") is not None:
        rope["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    kind = rope.get("rope_type", rope.get("type", "default"))
    _refuse_rope(rope, kind)
    theta = _positive(rope, "rope_theta", float, 10000.0)
    if kind == "default":
        return RopeConfig(theta=theta)
    original = _positive(rope, "original_max_position_embeddings", int, positions)
    factor = _positive(rope, "factor", float, positions / original if kind == "yarn" else None)
    if kind == "linear":
        return RopeConfig("linear", theta, factor)
    if kind == "llama3":
        low, high = _positive(rope, "low_freq_factor", float), _positive(rope, "high_freq_factor", float)
        if high <= low:
            raise BadCheckpoint(f"config.json: high_freq_factor {high} is not above low_freq_factor {low}.")
        return RopeConfig("llama3", theta, factor, original, low, high)
    attention_factor, mscale, mscale_all_dim = (
        None if rope.get(name) is None else _positive(rope, name, float, least=0.0)
        for name in ("attention_factor", "mscale", "mscale_all_dim")
    )
    return RopeConfig(
        "yarn",
        theta,
        factor,
        original,
        attention_factor=attention_factor,
        mscale=mscale,
        mscale_all_dim=mscale_all_dim,
        beta_fast=_positive(rope, "beta_fast", float, 32.0),
        beta_slow=_positive(rope, "beta_slow", float, 1.0),
        truncate=_flag(rope, "truncate", default=True),
    )


def _refuse_rope(rope: Mapping[str, Any], kind: Any) -> None:
    """Raise `UnsupportedModel` for what is not in `RopeConfig`."""
    known = ", ".join(_ROPE_TYPES)
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise UnsupportedModel(
            "config.json: rope_parameters differ by layer type; the reference engine has one for all."
        )
    if kind == "dynamic":
        raise UnsupportedModel(
            "config.json: rope type 'dynamic' turns a key by an angle that depends on how long its sequence is at the "
            "moment, so results depend on how a prompt is cut into steps; the reference engine refuses it and computes "
            f"{known}."
        )
    if kind not in _ROPE_TYPES:
        raise UnsupportedModel(f"config.json: rope type is {kind!r}; the reference engine computes {known}.")
    partial = rope["partial_rotary_factor"]
    if partial not in {None, 1}:
        raise UnsupportedModel(
            f"config.json: partial_rotary_factor is {partial!r}; the reference engine rotates whole heads."
        )


def _positive(
    fields: Mapping[str, Any],
    name: str,
    kind: type[Number],
    default: Number | None = None,
    *,
    least: Number | None = None,
) -> Number:
    """Return a field that must be a number above 0, or at least `least`; null and absent are the default."""
    value = fields.get(name)
    if value is None:
        value = default
    numeric = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    number = cast("float", value) if numeric else -1
    if number < (0 if least is None else least) or (least is None and number == 0):
        raise BadCheckpoint(f"config.json: {name!r} is {value!r}; it should be a positive {kind.__name__}.")
    return kind(cast("Any", value))


def _flag(fields: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadCheckpoint(f"config.json: {name!r} is {value!r}; it should be true or false.")
    return value
