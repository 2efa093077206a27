"""The interface to a running backend: `LocalHost` runs it in the kernel's own process, `worker_host` in another."""

from __future__ import annotations

import contextlib
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import config
from ..arrays import Array
from ..backends.errors import OptionError
from ..backends.serving.executor import resident_bytes
from ..display.progress import waiting
from ..errors import ArgumentError, EngineError, one_line
from ..eviction import drop_oldest
from ..twins import as_typed
from .descriptors import Engine
from .history import Recipe
from .storage import Slots, Storage

if TYPE_CHECKING:
    from ..program.program import Program

# A plan is a few references and views; a thousand of them are nothing, a million from a loop would be a leak.
MOST_PLANS = 1024

# The kinds of things that an engine is told to forget: the fields of the request "release".
RELEASED = ("variables", "plans", "programs", "segments", "timed")


def _half_of_all_maps() -> int:
    """Half of the memory maps that the system lets a process have; a great many where it has no such bound."""
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text(encoding="ascii")) // 2
    except (OSError, ValueError):
        return sys.maxsize


# So many memory maps at most may compiled programs take of a process: beyond its bound, what it does next fails.
MOST_MAPS = _half_of_all_maps()

# At most this many keys of dropped programs are remembered, to count recompilations.
MOST_DROPPED = 4096


class Host:
    """One running engine. `versions` and `compiled` record what it already holds of the session."""

    placement = ""  # "kernel" or "worker"

    def __init__(self, engine: Engine, storage: Storage, options: dict[str, Any] | None = None) -> None:
        self.engine = engine
        self.storage = storage
        self.options = options or {}
        self.facts: dict[str, Any] = {}
        self.ops: frozenset[str] = frozenset()
        self.dtypes: frozenset[str] = frozenset()
        self.specialises = "ones"
        self.profiler: dict[str, Any] | None = None  # the facts of the engine's own profiler
        self.start_seconds = 0.0
        self.versions: dict[int, int] = {}  # variable number -> version that the engine has
        self.can_keep = False  # whether a call's updates may stay with the engine until somebody asks for them
        self.overwrites = False  # whether such a call may overwrite the values before it
        self.holding: dict[int, Slots] = {}  # the variables whose newest values the engine has alone, by number
        # Brings the newest values of variables to the kernel's memory; the session sets it.
        self.fetch: Callable[[list[Slots]], None] | None = None
        self.call = 0  # the number of the last call whose updates stay with the engine
        self.confirmed = 0  # that of the last such call that was committed
        self.compiled: OrderedDict[str, int] = OrderedDict()  # key -> bytes
        self.maps: dict[str, int] = {}  # key -> memory maps that it takes of the process
        self.building: set[str] = set()  # the keys of programs whose faster form is being built beside the calls
        # Variables whose new values the engine may have computed in a call that isn't committed yet.
        self.uncommitted: list[Slots] | None = None
        self.plans: OrderedDict[int, str] = OrderedDict()  # number of a plan that the executor has -> its key
        self.compile_count = 0  # programs compiled so far, the dropped ones and those compiled again included
        self.dropped_count = 0
        self.recompile_count = 0
        self._dropped: dict[str, None] = {}
        self.last_run_seconds = 0.0
        self.stages: dict[str, Any] = {}  # key -> what the backend says of how it split the program

    @property
    def started(self) -> bool:
        """Whether the engine is running."""
        raise NotImplementedError

    @property
    def pid(self) -> int | None:
        """The process that the engine runs in."""
        raise NotImplementedError

    @property
    def lost(self) -> bool:
        """Whether the engine has ended with newest values that it had alone, and that can be computed again."""
        return False

    @property
    def machine(self) -> str:
        """The name of the machine that the engine runs on; "" for this one, and where it isn't known yet."""
        return str(self.facts.get("machine", ""))

    @property
    def checkpoints(self) -> str:
        """Where checkpoints of what it has alone lie, and how often they are made; "" where that needn't be said."""
        return ""

    @property
    def commit_bytes(self) -> int:
        """Up to so many bytes, a call's updates come to the kernel with its reply."""
        return config.LIMITS.commit_bytes

    @property
    def memory(self) -> int | None:
        """The resident bytes of that process, what it shares with others included; None where that isn't known."""
        return (resident_bytes(self.pid) or None) if self.started else None

    def start(self) -> None:
        """Starts the engine if it isn't running. Raises BackendNotInstalledError or EngineError."""
        raise NotImplementedError

    def notice_end(self) -> None:
        """Finds out whether an engine that nobody has heard of for a while is gone, where only its next call would."""

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        """Sends a request and returns the reply. Raises EngineError if the reply holds an error."""
        raise NotImplementedError

    def request_within(self, message: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        """The reply to a request; or None if it isn't there after so many seconds, where the engine can be left to it.

        It is then finished before the next request, and whoever made it forgets what it was about.
        """
        return self.request(message)

    def feed(self, views: list[Array], feeds: list[Array], noted: bool) -> None:
        """Readies the next run's feeds; `views`: their memory in the plan; `noted`: whether `note` reads them there."""
        for view, feed in zip(views, feeds):
            view[...] = feed

    def take(self, views: list[Array]) -> list[Any]:
        """Returns the outputs of the last run, as new ndarrays; `views`: their memory in the plan."""
        return [view.copy() for view in views]

    def held(self) -> contextlib.AbstractContextManager[Any]:
        """A context for requests and the commit of their results: Ctrl-C can't come between the two."""
        raise NotImplementedError

    def waiting(self, doing: str) -> contextlib.AbstractContextManager[None]:
        """A context for what may take seconds ("starting", "compiling"): a line that counts them is shown."""
        return waiting(f"{self.engine.title} is {doing}", self._hints(doing))

    def _hints(self, doing: str) -> list[str]:
        """Hints on what the user can do while waiting."""
        return []

    def listen(self) -> None:
        """Attributes what the engine prints and warns of from here on to the current call."""

    def tell(self) -> None:
        """Shows what the engine has printed since `listen`, and raises its warnings in the kernel."""

    def give_back(self) -> None:
        """Has an idle engine in a process of its own give the memory that it has freed back to the system."""

    def stop(self) -> None:
        """Ends the engine and gives its memory back; first the newest values that it has alone are fetched."""
        if self.holding and self.fetch is not None:
            self.fetch(list(self.holding.values()))
        self.end()

    def end(self) -> None:
        """Ends the engine and gives its memory back."""
        raise NotImplementedError

    def _welcome(self, hello: dict[str, Any]) -> None:
        self.facts = hello["facts"]
        self.ops = frozenset(hello["ops"])
        self.dtypes = frozenset(hello["dtypes"])
        self.specialises = hello["specialises"]
        self.can_keep = hello["keeps"] and self.fetch is not None
        self.overwrites = hello["overwrites"]
        self.profiler = hello["profiler"]

    def keeps(self, program: Program, feeds: list[Array]) -> bool:
        """Whether this call's updates stay with the engine; asked only where they can."""
        return True

    def must_fetch(self, feeds: list[Array]) -> bool:
        """Whether all that the engine has alone is to be fetched before a call that changes variables.

        Where a checkpoint is due that needn't come to the kernel, it is made here.
        """
        return False

    def fetched(self, seconds: float | None) -> None:
        """Notes that nothing lies with the engine alone any more; fetching it all at once has taken so long."""

    def read(self, variables: list[Slots]) -> None:
        """Notes that these newest values have been fetched, and others not, for a repetition to compare."""

    def seen(self, message: dict[str, Any], reply: dict[str, Any]) -> None:
        """Notes what somebody was told of newest values, for a repetition to compare: a request and its reply."""

    def note(self, recipe: Recipe, feeds: list[Array], counts: list[int], outputs: list[Any], seconds: float) -> None:
        """Notes the call that is committed next, for it to be repeated if the engine ends."""

    def hold(self, slots: Slots, version: int) -> None:
        """Notes that the last call's value is the newest, and that it lies with the engine alone."""
        self.confirmed = self.call
        self.holding[slots.number] = slots
        self.versions[slots.number] = version

    def confirm(self) -> None:
        """Lets the engine forget what the last committed call has replaced, or leaves that to the next request."""

    def let_go_of(self, slots: Slots) -> None:
        """Notes that the newest value lies with the kernel."""
        self.holding.pop(slots.number, None)

    def _forget(self) -> None:
        self.versions.clear()
        self.compiled.clear()
        self.maps.clear()
        self.building.clear()
        self.plans.clear()
        self.stages.clear()

    def loads(self, variables: list[Slots]) -> list[list[Any]]:
        """The [number, reference] of those variables whose present value the engine doesn't have."""
        if self.uncommitted is not None:
            # A call was cut short between its computation and its commit.
            self.forget(self.uncommitted)
            self.uncommitted = None
        return [
            [slots.number, slots.reference()] for slots in variables if self.versions.get(slots.number) != slots.version
        ]

    def loaded(self, variables: list[Slots]) -> None:
        """Notes that the engine has the present values."""
        for slots in variables:
            self.versions[slots.number] = slots.version

    def forget(self, variables: list[Slots]) -> None:
        """Notes that the engine's values of these aren't the committed ones: they are loaded again."""
        for slots in variables:
            self.versions.pop(slots.number, None)

    def remember(self, key: str, reply: dict[str, Any]) -> None:
        """Enters a compiled program, and drops the least recently used ones beyond the bound."""
        self.compiled[key] = reply["bytes"]
        self.maps[key] = reply["maps"]
        if reply["building"]:
            self.building.add(key)
        self.compile_count += 1
        self.recompile_count += key in self._dropped
        if reply.get("stages"):
            self.stages[key] = reply["stages"]
        dropped = []
        while len(self.compiled) > 1 and (
            sum(self.compiled.values()) > config.LIMITS.compiled_bytes or sum(self.maps.values()) > MOST_MAPS
        ):
            dropped.append(next(iter(self.compiled)))
            del self.compiled[dropped[-1]], self.maps[dropped[-1]]
        if dropped:
            self.dropped_count += len(dropped)
            self._dropped.update(dict.fromkeys(dropped))
            drop_oldest(self._dropped, MOST_DROPPED)
            self.release_programs(dropped)

    def finish_building(self) -> None:
        """Waits for the programs that are being built beside the calls; from here on these run."""
        if self.building:
            with self.waiting("compiling"):
                self.request({"do": "build"})

    def define(self, number: int, key: str) -> None:
        """Notes that the executor has this plan, and lets it forget the oldest ones beyond a bound."""
        self.plans[number] = key
        old = drop_oldest(self.plans, MOST_PLANS)
        if old:
            self._release(plans=old)

    def release_programs(self, keys: list[str]) -> None:
        """Lets the engine forget compiled programs and the plans that use them."""
        gone = set(keys)
        plans = [number for number, key in self.plans.items() if key in gone]
        for number in plans:
            del self.plans[number]
        for key in keys:
            self.compiled.pop(key, None)
            self.maps.pop(key, None)
            self.building.discard(key)
            self.stages.pop(key, None)
        if self.started:
            self._release(programs=keys, plans=plans)

    def release(self, variables: list[int], segments: list[int]) -> None:
        """Lets the engine forget variables and segments that are gone."""
        for number in variables:
            self.holding.pop(number, None)
        known = [number for number in variables if self.versions.pop(number, None) is not None]
        plans: list[int] = []
        if segments:
            # A plan holds views of the transfer segment; each is made again at its next call.
            plans = list(self.plans)
            self.plans.clear()
        if self.started and (known or segments or plans):
            self._release(variables=known, segments=segments, plans=plans)

    def release_timed(self, numbers: list[int]) -> None:
        """Lets the engine forget what it was given to time."""
        if self.started:
            self._release(timed=numbers)

    def _release(self, **gone: list[Any]) -> None:
        self.request({"do": "release", **{kind: [] for kind in RELEASED}, **gone})


def engine_error(engine: Engine, error: dict[str, Any], next_step: str = "") -> EngineError:
    """The executor's description of a failure as an exception; `details` keeps the engine's own traceback."""
    message = one_line(error["message"])
    made = EngineError(f"{engine.title} failed: {error['type']}: {message[:500]}", next_step=next_step)
    made.details = error  # type: ignore[attr-defined]
    return made


def refused_option(error: OptionError) -> ArgumentError:
    """A backend's refusal of an option as the user's error."""
    return ArgumentError(str(error), allowed=error.allowed, next_step=as_typed(error.next_step))


def cache_folder(engine: Engine) -> str:
    """The user's lasting folder for what this engine compiles; it need not exist."""
    import platformdirs

    return str(Path(platformdirs.user_cache_dir("kernelk")) / engine.name)
