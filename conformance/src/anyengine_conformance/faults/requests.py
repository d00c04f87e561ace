"""Engines that take what they should refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyengine import GenerateRequest, InvalidRequest

from anyengine_conformance.broken import BrokenEngine, as_dict, as_list, fault, is_ids

if TYPE_CHECKING:
    from collections.abc import Mapping


_HALF = "\ud83d"


@fault("requests.empty-prompt", "an empty prompt becomes a space")
class EmptyPromptTaken(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return " " if prompt == "" else prompt, options


@fault("requests.prompt-or-messages", "messages win over a prompt")
class MessagesWin(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return None if "messages" in options else prompt, options


@fault("requests.unknown-field", "unknown fields are dropped")
class UnknownFieldDropped(BrokenEngine):
    ignored = ("max_token",)

    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        prompt, options = super().request(prompt, options)
        return prompt, {"max_tokens": 1, **options} if len(options) == 1 else options


@fault("requests.wrong-values", "numbers in texts are read as numbers")
class Lenient(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return prompt, {
            name: int(value) if isinstance(value, str) and value.isdigit() else value for name, value in options.items()
        }


@fault("requests.wrong-sampling-values", "values out of range are clipped")
class Clipped(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        sampling: Any = options.get("sampling")
        if as_dict(sampling).get("top_p", 1) == 0:
            return prompt, {**options, "sampling": {"top_p": 0.001}}
        return prompt, options


@fault("requests.max-tokens-must-fit", "max_tokens is lowered to what fits")
class MaxTokensLowered(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return prompt, {**options, "max_tokens": 4} if 500 < (options.get("max_tokens") or 0) < 2000 else options  # noqa: PLR2004

    def stream(self, prompt: Any = None, **options: Any) -> Any:
        return self.inner.stream(prompt, **options)


@fault("requests.prompt-must-fit", "a prompt that is too long is cut")
class PromptCut(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return prompt[-100:] if len(as_list(prompt)) > 500 else prompt, options  # noqa: PLR2004


@fault("requests.min-above-max", "min_tokens is lowered to max_tokens")
class MinLowered(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if options.get("min_tokens") == 5 and options.get("max_tokens") == 4:  # noqa: PLR2004
            options = {**options, "min_tokens": 4}
        return prompt, options


@fault("requests.token-ids-must-exist", "the engine says that its vocabulary is larger than it is")
class LargeVocabulary(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        size = self.inner.info.vocab_size
        if is_ids(prompt):
            prompt = [token % size for token in prompt]
        return prompt, options


@fault("requests.stop-token-ids-must-exist", "stop tokens that do not exist are dropped")
class StopTokensDropped(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        size, stops = self.inner.info.vocab_size, options.get("stop_token_ids")
        if isinstance(stops, list) and size in stops:
            options = {**options, "stop_token_ids": []}
        return prompt, options


@fault("requests.half-characters", "half a character becomes U+FFFD")
class HalfReplaced(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return prompt.replace(_HALF, "\ufffd") if isinstance(prompt, str) else prompt, options


@fault("requests.template-kwargs-need-messages", "chat_template_kwargs without a chat are ignored")
class KwargsIgnored(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        plain = isinstance(prompt, str) and "messages" not in options
        return prompt, {
            name: value for name, value in options.items() if not (plain and name == "chat_template_kwargs")
        }


@fault("requests.refused-is-not-submitted", "a request is tried first, and refused when the engine fails on it")
class TriedFirst(BrokenEngine):
    async def generate(self, prompt: Any = None, **options: Any) -> Any:
        try:
            return await super().generate(prompt, **options)
        except InvalidRequest:
            if isinstance(prompt, str) and prompt.startswith("Once") and options.get("n") == 0:
                await self.inner.generate(prompt, max_tokens=1)
            raise


@fault("requests.list-is-checked-first", "a list is submitted one by one")
class OneByOne(BrokenEngine):
    async def generate(self, prompt: Any = None, **options: Any) -> Any:
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], str) and "return_exceptions" not in options:
            await self.inner.generate(prompt[0], **options)
        return await super().generate(prompt, **options)


@fault("requests.list-keeps-order", "completions come in the order in which they ended")
class OrderOfEnding(BrokenEngine):
    def completion(self, completion: Any, options: Mapping[str, Any]) -> Any:
        return completion[::-1] if as_list(completion) and "return_exceptions" not in options else completion


@fault("requests.errors-in-their-place", "errors are left out of the results")
class ErrorsLeftOut(BrokenEngine):
    def completion(self, completion: Any, options: Mapping[str, Any]) -> Any:
        if not as_list(completion):
            return completion
        return [answer for answer in as_list(completion) if not isinstance(answer, Exception)]


@fault("requests.whole-request-means-the-same", "of a whole request only the prompt is read")
class OnlyThePrompt(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return (prompt.prompt, {"max_tokens": 3}) if isinstance(prompt, GenerateRequest) else (prompt, options)


@fault("requests.undeclared-fields", "adapters are ignored, not refused")
class AdaptersIgnored(BrokenEngine):
    ignored = ("lora",)


@fault("requests.undeclared-config", "tensor parallelism is ignored, not refused")
class ParallelIgnored(BrokenEngine):
    @classmethod
    def configured(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        return {name: value for name, value in config.items() if name != "parallel"}


@fault("requests.declared-conflicts", "ignore_eos is dropped beside a constraint")
class ConflictDropped(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if options.get("structured") is not None:
            options = {name: value for name, value in options.items() if name != "ignore_eos"}
        return prompt, options
