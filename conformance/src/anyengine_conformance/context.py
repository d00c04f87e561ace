"""What a check gets: the engine, calls that are remembered, and assertions that explain themselves."""

from __future__ import annotations

import asyncio
import hashlib
import random
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from anyengine import AnyEngineError, SamplingParams

from anyengine_conformance import properties, statistics
from anyengine_conformance.check import OWN
from anyengine_conformance.needs import greedy
from anyengine_conformance.oracle import NO_ORACLE, EngineOracle
from anyengine_conformance.violation import NotApplicable, Violation, shown, without_places

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator

    from anyengine import Capabilities, Chunk, Completion, Engine, EngineStats, Finish, Stream
    from hypothesis.strategies import SearchStrategy

    from anyengine_conformance.check import Check
    from anyengine_conformance.oracle import Oracle
    from anyengine_conformance.subject import Garage

__all__ = ["PROMPTS", "Context", "Streamed"]

T = TypeVar("T")

#: Plain English that any model can go on with, none the beginning of another.
PROMPTS = (
    "Once upon a time there was a little girl who lived near the sea. One day she",
    "The old man opened the door and looked into the garden. There he saw",
    "It was raining, so the children stayed at home and played. After a while",
    "My friend has a brown dog. Every morning the dog",
)
_REMEMBERED = 6
#: Nats that log-probabilities may be off on average, for each data type; of an unknown one, the largest.
_TOLERANCES = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.1}


@dataclass(slots=True)
class Streamed:
    """All that came from one stream.

    Attributes:
        chunks: in order.
    """

    chunks: list[Chunk] = field(default_factory=list["Chunk"])

    def choice(self, index: int = 0) -> list[Chunk]:
        """The chunks of one of ``n`` completions."""
        return [chunk for chunk in self.chunks if chunk.index == index]

    @property
    def text(self) -> str:
        """Of completion 0, joined."""
        return "".join(chunk.text for chunk in self.choice())

    @property
    def token_ids(self) -> list[int]:
        """Of completion 0, joined."""
        return [token for chunk in self.choice() for token in chunk.token_ids]

    @property
    def finish(self) -> Finish | None:
        """Of completion 0."""
        return next((chunk.finish for chunk in self.choice() if chunk.finish is not None), None)


class Context:
    """Handed to every check.

    Attributes:
        check: which one runs.
        profile: ``certify`` or ``explore``.
        seed: of everything that this check draws; the same in every ``certify`` run.
        rng: started with it.
        notes: kept as long as the loaded engine lives, for what several checks look at.
        shared: kept for the whole run, for what several checks with engines of their own look at.
    """

    def __init__(
        self,
        check: Check,
        engine: Engine | None,
        garage: Garage,
        oracle: Callable[[], Awaitable[Oracle]],
        *,
        profile: str,
        base_seed: int,
    ) -> None:
        self.check = check
        self.profile = profile
        self.seed = int.from_bytes(hashlib.sha256(f"{base_seed}:{check.id}".encode()).digest()[:6], "big")
        self.rng = random.Random(self.seed)  # noqa: S311 nothing secret
        self.notes = garage.notes
        self.shared = garage.shared
        self.example = ""
        self._engine = engine
        self._garage = garage
        self._oracle = oracle
        self._asked: list[str] = []

    # -- the subject ------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """The engine of the check's variant."""
        if self._engine is None:
            raise RuntimeError(f"{self.check.id} is of the variant 'own': it loads its engines with t.load(…)")
        return self._engine

    @property
    def capabilities(self) -> Capabilities:
        """What the loaded engine declares."""
        return self.engine.capabilities

    @property
    def described(self) -> Capabilities | None:
        """What the plugin declares in general; None where it is not installed in this interpreter."""
        return self._garage.described

    @property
    def weights(self) -> tuple[str, ...]:
        """Patterns of the files that the engine reads weights from, see ``EngineDescription.weights``."""
        return self._garage.weights

    @property
    def prompt(self) -> str:
        """A plain English prompt."""
        return PROMPTS[0]

    @property
    def greedy(self) -> SamplingParams:
        """Temperature 0 where the engine has it, else its neutral sampling."""
        return greedy(self.capabilities)

    @property
    def unending(self) -> dict[str, Any]:
        """Options that keep end-of-sequence tokens from ending a completion, as far as the engine has any."""
        return {"ignore_eos": True} if "ignore_eos" in self.capabilities.request else {}

    @property
    def time_factor(self) -> float:
        """How much slower than the reference engine the subject may be."""
        return self._garage.settings.time_factor

    @property
    def simulated(self) -> bool:
        """Whether a simulation stands for the engine: what it computes can be judged, how fast it does cannot."""
        return self._garage.settings.simulated

    @property
    def dtype(self) -> str:
        """The loaded engine's data type, for messages."""
        return self.engine.info.dtype or "a data type that BackendInfo.dtype does not name"

    @property
    def precision(self) -> float:
        """Nats that log-probabilities of the loaded engine may be off on average, for its data type."""
        return self.tolerance(_TOLERANCES.get(self.engine.info.dtype or "", max(_TOLERANCES.values())))

    @property
    def gap(self) -> float:
        """Nats within which two tokens are as good as equally likely, so that either may be the greedy one."""
        return min(0.25, 2.5 * self.precision)

    def tolerance(self, default: float) -> float:
        """Nats that a log-probability of the loaded dtype may be off: the subject's own number, or the default."""
        return self._garage.settings.tolerances.get(self.engine.info.dtype or "", default)

    @property
    def alpha(self) -> float:
        """The false-alarm probability that this check may have."""
        return statistics.share(self.check.id)

    @asynccontextmanager
    async def load(self, **config: Any) -> AsyncGenerator[Engine]:
        """Load an engine of the check's own, which is :attr:`engine` meanwhile; the shared one is closed first."""
        self.asked(f"Engine.load({_options(config)})")
        async with self._garage.own(self._garage.config("own", config)) as engine:
            before, self._engine = self._engine, engine
            try:
                yield engine
            finally:
                self._engine = before

    async def source(self) -> Path:
        """The folder of the subject's checkpoint."""
        return Path(await self._garage.checkpoint())

    async def quantize(self, scheme: str, output: Path) -> Path:
        """Make a quantised checkpoint of the subject's."""
        source = await self.source()
        self.asked(f"Engine.quantize(model={str(source)!r}, scheme={scheme!r}, output=…)")
        environment = self._garage.settings.config.get("environment")
        return await self._garage.target.quantize(str(source), scheme, output, environment)

    async def oracle(self) -> Oracle:
        """What gives exact scores for the subject's model."""
        return await self._oracle()

    @property
    def has_oracle(self) -> bool:
        """Whether :meth:`oracle` has one; where it has not, a check that asks for it is not run."""
        return self._garage.settings.oracle != NO_ORACLE

    @asynccontextmanager
    async def oracle_of(self, checkpoint: Path) -> AsyncGenerator[Oracle]:
        """What gives exact scores for a checkpoint that the check made of the subject's."""
        name = (await self._oracle()).name
        other = await EngineOracle.load(name, str(checkpoint))
        try:
            yield other
        finally:
            await other.close()

    async def once(self, name: str, make: Callable[[], Awaitable[T]]) -> T:
        """What ``make`` gave when it was first asked for on this engine; for what several checks look at.

        With the variant ``own`` it is kept for the whole run: what is recorded there are loads.
        """
        kept = self.shared if self.check.variant == OWN else self.notes
        if name not in kept:
            before = len(self._asked)
            value = await make()
            kept[name] = (value, self._asked[before:])
        value, asked = kept[name]
        self._asked += [call for call in asked if call not in self._asked]
        return cast("T", value)

    # -- calls ------------------------------------------------------------------------------------

    def asked(self, call: str) -> None:
        """Remember what was asked, for the report."""
        call = without_places(call)
        if not self._asked or self._asked[-1] != call:
            self._asked.append(call)

    @property
    def calls(self) -> str:
        """The last calls, one a line, and how many there were before."""
        earlier = len(self._asked) - _REMEMBERED
        return "\n".join([*([f"… and {earlier} before:"] if earlier > 0 else []), *self._asked[-_REMEMBERED:]])

    async def generate(self, prompt: Any = None, **options: Any) -> Completion:
        """One completion; of :attr:`prompt`, greedy, unless told otherwise."""
        prompt, options = self._defaults(prompt, options)
        self.asked(f"engine.generate({_call(prompt, options)})")
        engine: Any = self.engine  # a faulty call is passed on as it is
        return await engine.generate(prompt, **options)

    async def stream(self, prompt: Any = None, **options: Any) -> Streamed:
        """A whole stream; of :attr:`prompt`, greedy, unless told otherwise."""
        streamed = Streamed()
        async with self.open(prompt, **options) as stream:
            async for chunk in stream:
                streamed.chunks.append(chunk)
        return streamed

    def open(self, prompt: Any = None, **options: Any) -> Stream:
        """A stream to read by hand."""
        prompt, options = self._defaults(prompt, options)
        self.asked(f"engine.stream({_call(prompt, options)})")
        return self.engine.stream(prompt, **options)

    def _defaults(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if prompt is None and "messages" not in options:
            prompt = self.prompt
        return prompt, {"sampling": self.greedy, **options}

    async def stats(self) -> EngineStats:
        """The engine's statistics."""
        self.asked("engine.stats()")
        return await self.engine.stats()

    async def settled(self, good: Callable[[EngineStats], bool], *, seconds: float = 5.0) -> EngineStats:
        """Statistics once they are as they should be, or the last ones: some engines publish them a moment later."""
        loop = asyncio.get_running_loop()
        last = loop.time() + seconds * min(1.0, self.time_factor)
        while True:
            stats = await self.stats()
            if good(stats) or loop.time() > last:
                return stats
            await asyncio.sleep(0.02)

    # -- judgements -------------------------------------------------------------------------------

    def fail(self, *, expected: str, seen: object, advice: str = "") -> Violation:
        """The violation to raise; what was asked is filled in."""
        return Violation(
            expected=expected, seen=seen if isinstance(seen, str) else shown(seen), asked=self.calls, advice=advice
        )

    def expect(self, good: bool, *, expected: str, seen: object, advice: str = "") -> None:  # noqa: FBT001 reads as a sentence
        """Fail unless ``good``.

        Args:
            good: whether the engine kept the contract.
            expected: what it should have done, in words with the values.
            seen: what it did.
            advice: what to do about it, where the check's own is too general.
        """
        if not good:
            raise self.fail(expected=expected, seen=seen, advice=advice)

    def equal(self, seen: object, expected: object, what: str, *, advice: str = "") -> None:
        """Fail unless both are equal.

        Args:
            seen: what the engine gave.
            expected: what it should have given.
            what: what is compared, in words.
            advice: as in :meth:`expect`.
        """
        self.expect(
            seen == expected, expected=f"{what}: {shown(expected)}", seen=f"{what}: {shown(seen)}", advice=advice
        )

    @contextmanager
    def refused(self, kind: type[AnyEngineError], *, field: str | None = None, advice: str = "") -> Generator[None]:
        """The calls inside must be refused, with this error and, if given, this field.

        Args:
            kind: the error's type; a subclass of it will not do.
            field: what its ``field`` must be.
            advice: as in :meth:`expect`.
        """
        expected = f"{kind.__name__}" + (f" with field {field!r}" if field is not None else "")
        try:
            yield
        except AnyEngineError as error:
            good = type(error) is kind and (field is None or error.field == field)
            if not good:
                raise self.fail(
                    expected=expected, seen=f"{type(error).__name__} with field {error.field!r}: {error}", advice=advice
                ) from error
        except (Violation, NotApplicable):
            raise
        except Exception as error:
            raise self.fail(
                expected=expected,
                seen=f"{type(error).__name__}, which is no error of anyengine: {error}",
                advice=advice,
            ) from error
        else:
            raise self.fail(expected=expected, seen="no error", advice=advice)

    def skip(self, reason: str) -> NotApplicable:
        """To raise where the *model* lacks what the check needs. Never for what an engine lacks: that is a need."""
        return NotApplicable(reason)

    async def given(
        self, strategy: SearchStrategy[T], holds: Callable[[T], Awaitable[None]], *, examples: int = 20
    ) -> None:
        """Try many inputs, and report the smallest that fails.

        Args:
            strategy: makes them.
            holds: raises a violation for a bad one.
            examples: how many in the profile ``certify``; ``explore`` tries five times as many.
        """
        await properties.given(self, strategy, holds, examples)

    async def confirmed(self, sample: Callable[[int], Awaitable[float]]) -> str | None:
        """See :func:`anyengine_conformance.statistics.confirmed`; with this check's share, and in words."""
        rejected = await statistics.confirmed(self.alpha, sample)
        return None if rejected is None else " and ".join(f"{value:.2g}" for value in rejected)


def _call(prompt: object, options: dict[str, Any]) -> str:
    first = "" if prompt is None else shown(prompt)
    return ", ".join(part for part in (first, _options(options)) if part)


def _options(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_value(value)}" for name, value in options.items())


def _value(value: object) -> str:
    if isinstance(value, SamplingParams):
        return f"SamplingParams({', '.join(f'{name}={shown(getattr(value, name))}' for name in value.changed())})"
    return shown(value)
