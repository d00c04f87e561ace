"""Where a ``config.json`` says what: models of more than text nest what is said of their text model.

For plugins, whose engines look in different places; the measure is transformers, which wrote the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from anyengine.errors import ModelNotFound

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["levels", "text_config", "whole_model"]

#: Of models that hold a whole other one (Qwen's Omni, the Col family), which may nest in turn.
_HOLDERS = ("thinker_config", "vlm_config")
#: Those of ``PreTrainedConfig.get_text_config(decoder=True)`` (transformers 5.24, ``configuration_utils.py``).
_TEXT = ("decoder", "generator", "text_config")
#: Those of models with code of their own (InternVL, DeepSeek-VL2), to whose classes transformers leaves it.
_THEIR_OWN = ("llm_config", "language_config")


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is said of the model that writes text: its sizes, its context, its vocabulary.

    Args:
        config: the contents of config.json.

    Returns:
        The part of it, or the whole where nothing is nested. As in transformers, what the part does not say is not
        taken from around it: there the part's own class has a default, which we do not know.

    Raises:
        ModelNotFound: there are several such parts, and it is not said which.
    """
    return levels(config)[-1]


def whole_model(config: Mapping[str, Any], name: str) -> Any:
    """What is said of the model as a whole, or of its text model where that alone has it; None if neither does.

    Args:
        config: the contents of config.json.
        name: of what is said, such as ``quantization_config``.
    """
    return next((said for part in levels(config) if (said := part.get(name)) is not None), None)


def levels(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The whole, what in it holds the text model, and that itself, as far as these are apart.

    Raises:
        ModelNotFound: see :func:`text_config`.
    """
    for names in (_HOLDERS, _TEXT, _THEIR_OWN):
        found = [name for name in names if isinstance(config.get(name), dict)]
        if len(found) > 1:
            raise ModelNotFound(f"config.json has several models of text: {', '.join(found)}", field="model")
        if found:
            part = cast("Mapping[str, Any]", config[found[0]])
            return [config, *(levels(part) if names is _HOLDERS else [part])]
    return [config]
