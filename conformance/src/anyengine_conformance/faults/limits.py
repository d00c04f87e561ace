"""Engines without bounds."""

from __future__ import annotations

from typing import Any

from anyengine import Overloaded

from anyengine_conformance.broken import BrokenEngine, as_dict, as_list, fault


@fault("limits.n-is-bounded", "n is cut to what goes")
class NCut(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return prompt, {**options, "n": 2} if options.get("n", 1) == 1025 else options  # noqa: PLR2004


@fault("limits.stop-strings-are-bounded", "stop strings beyond the bound are dropped")
class StopsCut(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        stop: Any = options.get("stop")
        many = len(as_list(stop)) > 64  # noqa: PLR2004
        return prompt, {**options, "stop": stop[:4]} if many else options


@fault("limits.logprobs-are-bounded", "alternatives are cut to what goes")
class LogprobsCut(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return prompt, {**options, "logprobs": 5} if options.get("logprobs") == 1001 else options  # noqa: PLR2004


@fault("limits.declared-logprobs-hold", "alternatives above max_logprobs are cut")
class DeclaredLogprobsCut(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return prompt, {**options, "logprobs": 20} if options.get("logprobs") == 21 else options  # noqa: PLR2004


class _Constraint(BrokenEngine):
    """Takes constraints of one kind, whatever they are."""

    kind = ""

    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        structured: Any = options.get("structured")
        return prompt, {"max_tokens": 1} if self.kind in as_dict(structured) else options


@fault("limits.constraints-are-bounded", "a regex of any length is taken")
class LongRegex(_Constraint):
    kind = "regex"


@fault("limits.schemas-are-shallow", "a schema of any depth is taken")
class DeepSchema(_Constraint):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        structured: Any = options.get("structured")
        deep = "items" in as_dict(as_dict(structured).get("json_schema"))
        return prompt, {"max_tokens": 1} if deep else options


@fault("limits.huge-numbers-are-refused", "a priority beyond 64 bits is taken")
class HugePriority(BrokenEngine):
    ignored = ("priority",)


@fault("limits.full-queue-refuses", "retry_after is 0")
class NoRetryAfter(BrokenEngine):
    async def generate(self, prompt: Any = None, **options: Any) -> Any:
        try:
            return await super().generate(prompt, **options)
        except Overloaded as error:
            error.retry_after = 0
            raise


@fault("limits.refused-does-not-stay", "whoever was refused once is refused for ever")
class RefusedForEver(BrokenEngine):
    def stream(self, prompt: Any = None, **options: Any) -> Any:
        if self.inner.config.scheduling.max_queued_requests == 2:  # noqa: PLR2004 the variant of the check
            self.streams = getattr(self, "streams", 0) + 1
        return super().stream(prompt, **options)

    async def generate(self, prompt: Any = None, **options: Any) -> Any:
        if getattr(self, "streams", 0) >= 4:  # noqa: PLR2004 all places
            raise Overloaded("full for ever", retry_after=1.0)
        return await super().generate(prompt, **options)


@fault("limits.too-many-choices-for-the-queue", "n is cut to the places that there are")
class NCutToPlaces(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return prompt, {**options, "n": 2} if options.get("n", 1) == 100 else options  # noqa: PLR2004
