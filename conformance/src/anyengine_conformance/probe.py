"""Whether an engine answers at all: asked once a check has lost its engine, so that the rest need not wait for it too.

A backend that never sends a finish lets every check wait for its own deadline, one that dies of any request is loaded
again for every check: hours for what one request shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyengine import AnyEngineError, EngineDied, EngineUnresponsive

from anyengine_conformance.bench import Hung, Overran
from anyengine_conformance.check import DEFAULT, OWN
from anyengine_conformance.needs import greedy

if TYPE_CHECKING:
    from anyengine import Engine

    from anyengine_conformance.bench import Bench
    from anyengine_conformance.subject import Garage

__all__ = ["NOT_RUN", "Probe", "Silent"]

#: How the reason of a check begins that was not run because the engine does not answer.
NOT_RUN = "not run: the engine does not answer"
#: Seconds for the answer, on the reference engine: twice what most checks have, and for less. A slow engine has more.
_LIMIT = 60.0
_TOKENS = 4
_PROMPT = "Once upon a time"
_OWED = (
    "Every request must end with a delta that has a finish: see Backend.stream in docs/api/backend.md. If the engine "
    "is only slow, --time-factor gives it longer"
)


class Silent(Exception):
    """An engine does not answer the simplest request; says how far it came.

    Attributes:
        hung: whether its event loop was given up with it.
        log: last lines of an engine that died.
    """

    def __init__(self, variant: str, seen: str, *, hung: bool = False, log: str = "") -> None:
        asked = f"a request for {_TOKENS} tokens behind {_PROMPT!r}, on a fresh engine of the variant {variant!r},"
        super().__init__(f"{NOT_RUN}: {asked} {seen}")
        self.hung = hung
        self.log = log


class Probe:
    """Asks for a few tokens once there is a reason to doubt that the engine answers.

    A variant that does not answer is not asked again. Where it is the default one, nothing is: all others change it in
    something, and that is not what it fails in.

    Args:
        garage: loads the engine.
        bench: what it runs on.
        enabled: else it is never asked.
    """

    def __init__(self, garage: Garage, bench: Bench, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._garage = garage
        self._bench = bench
        self._doubted = False
        self._silent: dict[str, Silent] = {}

    def doubt(self) -> None:
        """A check has lost its engine: the next one asks first."""
        self._doubted = self._enabled

    def spare(self, variant: str) -> None:
        """Load nothing for a variant that did not answer before.

        Raises:
            Silent: it did not.
        """
        silent = self._silent.get(DEFAULT) or self._silent.get(variant)
        if silent is not None:
            raise silent

    def ask(self, variant: str, engine: Engine | None) -> None:
        """Ask the engine of a variant, if there is a reason; of one that checks load for themselves, the default.

        Raises:
            Silent: it does not answer.
            LoadFailed: the default variant does not load.
        """
        if not self._doubted:
            return
        variant = DEFAULT if variant == OWN else variant
        settings = self._garage.settings
        limit = _LIMIT * max(1.0, settings.time_factor)
        came: list[int] = []
        try:
            if engine is None:
                engine = self._bench.run(self._garage.engine(DEFAULT), settings.load_timeout)
            self._bench.run(_answer(engine, came), limit)
        except (Overran, Hung) as error:
            seen = f"had no answer: loading it {error}"
            if engine is not None:
                seen = f"gave {len(came)} of {_TOKENS} tokens in {limit:g} s, and did not end. {_OWED}"
            silent = Silent(variant, seen, hung=isinstance(error, Hung))
        except (EngineDied, EngineUnresponsive) as error:
            tail = error.log_tail if isinstance(error, EngineDied) else ()
            silent = Silent(variant, f"ended with {type(error).__name__}: {error}", log="\n".join(tail))
        except AnyEngineError:  # an answer too; the checks say whether it is the right one
            self._doubted = False
            return
        else:
            self._doubted = False
            return
        self._silent[variant] = silent
        raise silent


async def _answer(engine: Engine, came: list[int]) -> None:
    # Nothing left to chance: a request that happens to end early may say less.
    sampling, unending = greedy(engine.capabilities), "ignore_eos" in engine.capabilities.request
    async with engine.stream(_PROMPT, sampling=sampling, max_tokens=_TOKENS, ignore_eos=unending) as stream:
        async for chunk in stream:
            came += chunk.token_ids
