"""Engines that fail in the wrong way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyengine import AnyEngineError, EngineDied, InvalidRequest, PluginError, RequestTimeout, UnsupportedParameter
from msgspec.structs import replace

from anyengine_conformance.broken import BrokenEngine, as_list, fault

if TYPE_CHECKING:
    from collections.abc import Mapping


class ChangedErrors(BrokenEngine):
    """Changes errors of ``generate`` on their way out."""

    def error(self, error: AnyEngineError) -> Exception:
        """What becomes of one."""
        return error

    async def generate(self, prompt: Any = None, **options: Any) -> Any:
        try:
            return await super().generate(prompt, **options)
        except AnyEngineError as error:
            raise self.error(error) from error


@fault("errors.name-the-engine", "errors do not say which engine they are of")
class NoName(ChangedErrors):
    def error(self, error: AnyEngineError) -> Exception:
        error.engine = None
        return error


@fault("errors.misuse-is-misuse", "misuse is reported as a failure of the plugin")
class MisuseAsFailure(ChangedErrors):
    def error(self, error: AnyEngineError) -> Exception:
        if error.field == "max_tokens" and type(error) is InvalidRequest:
            return PluginError(error.message, engine=error.engine, field=error.field)
        return error


@fault("errors.messages-name-the-field", "messages are general")
class GeneralMessage(ChangedErrors):
    def error(self, error: AnyEngineError) -> Exception:
        error.message = "bad request"
        return error


class OwnData(ChangedErrors):
    """Changes what ``as_dict`` gives of errors."""

    def data(self, error: AnyEngineError) -> dict[str, Any]:
        """What it gives of one."""
        return error.as_dict()

    def error(self, error: AnyEngineError) -> Exception:
        told = self.data(error)
        error.__dict__["as_dict"] = lambda: told
        return error


@fault("errors.are-json-data", "an exception is among the facts of an error's data")
class NoData(OwnData):
    def data(self, error: AnyEngineError) -> dict[str, Any]:
        return {**error.as_dict(), "cause": error}


@fault("errors.are-json-data", "the field is in the message of an error's data only")
class FieldInWordsOnly(OwnData):
    def data(self, error: AnyEngineError) -> dict[str, Any]:
        return {"type": type(error).__name__, "message": error.message}


@fault("errors.timeout-is-kept", "a timeout is an asyncio one")
class ForeignTimeout(ChangedErrors):
    def error(self, error: AnyEngineError) -> Exception:
        return TimeoutError("too late") if isinstance(error, RequestTimeout) and not error.partial else error


@fault("errors.timeout-carries-what-there-was", "what there was has the finish reason length")
class PartialAsLength(ChangedErrors):
    def error(self, error: AnyEngineError) -> Exception:
        if isinstance(error, RequestTimeout) and error.partial is not None:
            error.partial = replace(error.partial, finish_reason="length")
        return error


@fault("errors.stream-times-out-too", "streams have no timeout")
class EndlessStream(BrokenEngine):
    def stream(self, prompt: Any = None, **options: Any) -> Any:
        return self.inner.stream(prompt, **{name: value for name, value in options.items() if name != "timeout"})


@fault("errors.harm-no-other", "a request that is refused ends those beside it")
class HarmsOthers(BrokenEngine):
    async def generate(self, prompt: Any = None, **options: Any) -> Any:
        self.beside = getattr(self, "beside", 0) + 1
        try:
            answer = await super().generate(prompt, **options)
        except InvalidRequest:
            self.hurt = self.beside > 1
            raise
        finally:
            self.beside -= 1
        if getattr(self, "hurt", False) and not as_list(answer):
            self.hurt = False
            return replace(answer, token_ids=[])
        return answer


@fault("errors.engine-serves-on", "after a timeout the engine is gone")
class GoneAfterTimeout(BrokenEngine):
    async def generate(self, prompt: Any = None, **options: Any) -> Any:
        if getattr(self, "gone", False):
            raise EngineDied("gone", engine="simulated")
        try:
            return await super().generate(prompt, **options)
        except RequestTimeout:
            # One that stands alone, right after a refusal: only that check asks so.
            self.gone = getattr(self, "refused", False)
            raise
        except InvalidRequest as error:
            self.refused = error.field == "max_tokens"
            raise

    async def health(self) -> None:
        if getattr(self, "gone", False):
            raise EngineDied("gone", engine="simulated")


@fault("errors.unsupported-says-what-is", "an unsupported field comes without what is supported")
class NothingSupported(ChangedErrors):
    def error(self, error: AnyEngineError) -> Exception:
        if isinstance(error, UnsupportedParameter):
            error.supported = []
        return error


@fault("errors.nothing-left-to-draw", "where no token is left the engine draws any")
class DrawsAny(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        sampling: Any = options.get("sampling")
        if options.get("min_tokens") == 4 and getattr(sampling, "allowed_token_ids", None):  # noqa: PLR2004 the check's own
            return prompt, {"max_tokens": 8}
        return prompt, options

    def completion(self, completion: Any, options: Mapping[str, Any]) -> Any:
        return completion
