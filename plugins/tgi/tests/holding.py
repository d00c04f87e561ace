"""Holds the plugin against the facts about TGI: what does not fit, as lines that a person can read."""

from __future__ import annotations

import re
from typing import Any

from anyengine.backend import TokenRequest
from anyengine.request import SamplingParams, Structured
from anyengine_tgi import wire
from anyengine_tgi.capabilities import MAX_LOGPROBS, QUANTIZATION
from anyengine_tgi.errors import ERROR_TYPES
from anyengine_tgi.launcher import ARGUMENTS, INEFFECTIVE, OWNED
from anyengine_tgi.request import parameters
from anyengine_tgi.stats import METRICS

#: Fields of ``GenerateParameters`` that are never sent, and why.
UNUSED_PARAMETERS = {
    "best_of": "the SDK sends n requests",
    "frequency_penalty": "divided by the length there: refused",
    "return_full_text": "the SDK has the prompt",
    "stop": "the SDK matches stop strings, on every engine alike",
    "truncate": "a prompt is never shortened",
    "typical_p": "there is no uniform field",
    "watermark": "there is no uniform field",
}
#: Fields of answers that are not read, and why.
UNUSED_FIELDS = {
    "Details": {"best_of_sequences": "never asked for", "seed": "the caller's, or nobody's"},
    "GenerateResponse": {"generated_text": "the SDK decodes"},
    "Info": {
        "docker_label": "for people",
        "max_best_of": "never asked for",
        "max_client_batch_size": "one prompt a request",
        "model_pipeline_tag": "for people",
        "model_sha": "the SDK resolves revisions",
        "router": "for people",
        "sha": "for people",
        "validation_workers": "for people",
    },
    "PrefillToken": {"text": "the SDK decodes"},
    "SimpleToken": {"start": "ids are compared", "stop": "ids are compared", "text": "ids are compared"},
    "StreamDetails": {"seed": "the caller's, or nobody's"},
    "StreamResponse": {"generated_text": "the SDK decodes", "index": "events come in order"},
    "Token": {"special": "the SDK decodes", "text": "the SDK decodes"},
}
#: Arguments of the launcher that are none of a server's.
UNUSED_ARGUMENTS = {"env": "prints and goes on"}
#: Variables that are set, or looked at, by this package.
VARIABLES = {"PREFILL_CHUNKING", "PREFIX_CACHING"}

_KINDS = {
    "bool": "flag",
    "f32": "float",
    "String": "str",
    "UsageStatsLevel": "str",
    "u16": "int",
    "u32": "int",
    "u64": "int",
    "usize": "int",
}
_PYTHON = {"integer": int, "number": (int, float), "boolean": bool, "string": str, "GrammarType": dict}


def requests() -> list[TokenRequest]:
    """Requests that together ask for everything that can be asked for."""
    common: dict[str, Any] = {"id": "1", "prompt_token_ids": [1, 2], "max_tokens": 3}
    sampling = SamplingParams(temperature=0.5, top_p=0.5, top_k=3, repetition_penalty=1.5, seed=0)
    return [
        TokenRequest(**common, sampling=sampling, logprobs=2, lora="adapter"),
        TokenRequest(**common, sampling=SamplingParams(temperature=0), structured=Structured(regex="a+")),
        TokenRequest(**common, sampling=SamplingParams(), structured=Structured(choice=["a", "b.c"])),
    ]


def sent() -> dict[str, list[Any]]:
    """Every parameter that is sent by some request, with the values that it has."""
    found: dict[str, list[Any]] = {"decoder_input_details": [True]}
    for request in requests():
        for name, value in parameters(request, vocabulary=100).items():
            found.setdefault(name, []).append(value)
    return found


def problems(contract: dict[str, Any]) -> list[str]:
    """What does not fit, one line each; nothing where all does."""
    return [*_parameters(contract), *_answers(contract), *_launcher(contract), *_rest(contract)]


def _parameters(contract: dict[str, Any]) -> list[str]:
    known, ours = contract["schemas"]["GenerateParameters"], sent()
    found: list[str] = []
    found += [
        f"GenerateParameters.{name}: is sent, and TGI has no such field" for name in sorted(ours.keys() - known.keys())
    ]
    found += [
        f"GenerateParameters.{name}: TGI has it, and it is neither sent nor listed as unused"
        for name in sorted(known.keys() - ours.keys() - UNUSED_PARAMETERS.keys())
    ]
    found += [
        f"GenerateParameters.{name}: is listed as unused, and is sent or gone"
        for name in sorted(UNUSED_PARAMETERS.keys() & ours.keys() | UNUSED_PARAMETERS.keys() - known.keys())
    ]
    for name in sorted(ours.keys() & known.keys()):
        found += [f"GenerateParameters.{name}: {words}" for value in ours[name] for words in _value(known[name], value)]
    if contract["schemas"]["GenerateRequest"].keys() != {"inputs", "parameters"}:
        found.append("GenerateRequest: has other fields than inputs and parameters")
    return found


def _value(field: dict[str, Any], value: Any) -> list[str]:
    kind = re.split(r"[(\[ ]", field["type"])[0]
    if not isinstance(value, _PYTHON[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return [f"{value!r} is sent where {field['type']} is due"]
    limits = (
        ("minimum", lambda limit: value >= limit),
        ("exclusiveMinimum", lambda limit: value > limit),
        ("maximum", lambda limit: value <= limit),
    )
    return [
        f"{value!r} is sent, {name} {field[name]}" for name, holds in limits if name in field and not holds(field[name])
    ]


def _answers(contract: dict[str, Any]) -> list[str]:
    found: list[str] = []
    for name, unused in UNUSED_FIELDS.items():
        known = contract["schemas"][name]
        struct = getattr(wire, name)
        read = set(struct.__struct_fields__) - {"error"}
        found += [f"{name}.{field}: is read, and TGI does not send it" for field in sorted(read - known.keys())]
        found += [
            f"{name}.{field}: TGI sends it, and it is neither read nor listed as unused"
            for field in sorted(known.keys() - read - unused.keys())
        ]
        found += [
            f"{name}.{field}: is listed as unused, and is read or gone"
            for field in sorted(unused.keys() & read | unused.keys() - known.keys())
        ]
        needed = set(struct.__struct_fields__[: len(struct.__struct_fields__) - len(struct.__struct_defaults__)])
        optional = sorted(field for field in needed & known.keys() if not known[field]["required"])
        found += [f"{name}.{field}: is needed here, and TGI may leave it out" for field in optional]
    if set(contract["schemas"]["ErrorResponse"]) != {"error", "error_type"}:
        found.append("ErrorResponse: has other fields than error and error_type")
    if set(contract["enums"]["FinishReason"]) != set(wire.FinishReason.__args__):
        found.append(f"FinishReason: TGI has {contract['enums']['FinishReason']}")
    return found


def _launcher(contract: dict[str, Any]) -> list[str]:
    known = contract["launcher"]
    found: list[str] = []
    found += [
        f"--{name}: is taken, and the launcher has no such argument" for name in sorted(ARGUMENTS.keys() - known.keys())
    ]
    found += [
        f"--{name}: the launcher has it, and it is neither taken nor listed as unused"
        for name in sorted(known.keys() - ARGUMENTS.keys() - UNUSED_ARGUMENTS.keys() - INEFFECTIVE.keys())
    ]
    for name in sorted(known.keys() & ARGUMENTS.keys()):
        kind = known[name]["type"]
        inner = re.sub(r"^(Option|Vec)<(.*)>$", r"\2", kind)
        many = {"Vec<usize>": "ints", "String": "strs"}.get(inner) if "Vec" in kind else None
        switch = "bool" if kind == "Option<bool>" else None
        due = many or switch or _KINDS.get(inner, "str")
        if ARGUMENTS[name] != due:
            found.append(f"--{name}: is written as {ARGUMENTS[name]}, and the launcher takes {kind}")
        if known[name]["flag"] != "--" + name.replace("_", "-") or known[name]["env"] != name.upper():
            found.append(f"--{name}: is spelt {known[name]['flag']} and {known[name]['env']} there")
    found += [
        f"--{name}: is refused here, and the launcher does not have it" for name in INEFFECTIVE.keys() - known.keys()
    ]
    found += [f"--{name}: is decided here, and the launcher does not have it" for name in OWNED.keys() - known.keys()]
    return found


def _rest(contract: dict[str, Any]) -> list[str]:
    found: list[str] = []
    enums = {"Quantization": QUANTIZATION, "Dtype": {"bfloat16", "float16"}, "KVCacheDtype": {"fp8_e4m3fn", "fp8_e5m2"}}
    for name, ours in enums.items():
        if set(contract["enums"][name]) != set(ours):
            found.append(f"{name}: TGI has {contract['enums'][name]}, here are {sorted(ours)}")
    found += [
        f"error_type {name!r}: is known on one side only"
        for name in sorted(contract["errors"].keys() ^ ERROR_TYPES.keys())
    ]
    found += [
        f"metric {name}: is read, and TGI does not have it" for name in sorted(METRICS - contract["metrics"].keys())
    ]
    found += [
        f"variable {name}: is set, and TGI does not look at it"
        for name in sorted(VARIABLES - set(contract["environment"]))
    ]
    if "regex" not in contract["grammar_types"]:
        found.append("GrammarType: regex is sent, and TGI does not have it")
    if int(contract["launcher"]["max_top_n_tokens"]["default"]) != MAX_LOGPROBS:
        found.append(f"--max_top_n_tokens: the default is no longer {MAX_LOGPROBS}")
    used = {"/generate", "/generate_stream", "/health", "/info", "/metrics", "/tokenize"}
    found += [f"{path}: is asked, and TGI has no such route" for path in sorted(used - contract["operations"].keys())]
    return found
