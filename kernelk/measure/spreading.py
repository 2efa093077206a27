"""Has recorded calls compared in other processes: each point of a sweep on one machine, several machines at once.

Between `comparison`, which records the calls here, and `there`, which measures. A cluster's machines get one
point at a time, through one of their ipyparallel engines, or the next one if that ends; an executor gets them all, and
sees to the rest.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import replace
from pkgutil import resolve_name
from typing import Any, NamedTuple

from .. import config
from .._version import __version__
from ..display.progress import waiting
from ..engines import registry
from ..errors import ArgumentError, BackendNotInstalledError, EngineError, KernelKError, joined, one_line
from ..remote import machines
from ..remote.clusters import STEP, Connection, Place, Unsent, connected
from ..remote.remote_worker import Silence
from ..session.session import Session
from ..twins import option, typed_name
from . import there
from .comparison_results import CompareResult, Side
from .estimates import Estimate
from .parcel import Ability, Parcel, encode
from .recording import Recording, restoring
from .timing import CallTime, Conditions

# Once an engine of a cluster has said where it is, the others have so many seconds to do so.
_OTHERS_WITHIN = 5.0
# After so many seconds a call is followed by another one, whose reply can't come before its own, and by more of them.
_FOLLOWED_AFTER, _FOLLOWED_EVERY = 2.0, 60.0


class Wanted(NamedTuple):
    """A side that is wanted: its label, its engine's name there, and its options; or why it can't be had."""

    label: str
    name: str
    options: dict[str, Any]
    failure: str = ""


class Spread(NamedTuple):
    """The comparisons, in order, and what else is to be said."""

    results: list[CompareResult]
    notes: list[str]


class _Gone(Exception):
    """Nothing can be measured there any more, for this reason."""


class _Failed(Exception):
    """A call has failed there, and the next one may not."""


class _Lane:
    """A way to where points are measured, `most` of them at once. What is called replies with JSON."""

    most = 1
    name = ""  # the machine's
    written = ""  # as in `on`

    def __init__(self) -> None:
        self.running: set[Future[Any]] = set()
        self.abilities: list[Ability | str] = []  # of each wanted side, or why it has none

    def call(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Has a function of `there` called. Raises _Gone."""
        raise NotImplementedError

    def silence(self) -> str:
        """Why there will be no answer, in words; "" as long as there may be one."""
        return ""

    def give_up(self, token: str) -> None:
        """Ends what runs there."""
        raise NotImplementedError

    def finish(self, token: str) -> None:
        """Ends the workers there."""
        raise NotImplementedError

    def heir(self) -> _Lane | None:
        """Another way to the same machine, once nobody answers by this one; None where there is none."""
        return None

    def hang_up(self) -> None:
        """Called when nobody is left who answers."""

    def reply(self, future: Future[Any]) -> dict[str, Any]:
        """The reply to a call that is done. Raises _Gone, _Failed and KernelKError."""
        found: dict[str, Any] = json.loads(self.text(future))
        if "failure" in found:
            raise _Failed(found["failure"])
        return found

    def text(self, future: Future[Any]) -> str:
        """What a call that is done has returned. Raises as `reply`."""
        self.running.discard(future)
        try:
            text = future.result()
        except Exception as error:
            raise self._explained(error) from error
        if not isinstance(text, str):
            raise ArgumentError(
                f"compare: the executor replies {type(text).__name__} to one call",
                allowed="it has to make each call once",
                next_step="of ipyparallel, client.executor() does",
            )
        return text

    def _explained(self, error: Exception) -> Exception:
        raise NotImplementedError


class _EngineLane(_Lane):
    """One ipyparallel engine, which speaks for its machine."""

    def __init__(self, connection: Connection, number: int) -> None:
        super().__init__()
        self.number = number
        self.written = f"{connection.name}[{number}]"
        self.name = self.written
        self.others: list[_EngineLane] = []  # those of the same machine that may speak for it next
        self._connection = connection
        self._silence = Silence(connection, number)
        self._silent = False

    def call(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        try:
            future: Future[Any] = self._connection.call(self.number, function, *arguments)
        except Unsent as error:
            left = not self._connection.closed and self.number not in self._connection.client.ids
            raise _Gone(self._ended() if left else f"{self.name} is gone: {one_line(error)}") from error
        self._silence.begin()
        self._begin, self._follow_at = time.monotonic(), _FOLLOWED_AFTER
        self._follower: Future[Any] | None = None
        self._overtaken = False
        self.running.add(future)
        return future

    def silence(self) -> str:
        if self._connection.closed:
            return f"{self.name} is out of reach: the cluster's controller has ended"
        if not self.running:
            return ""
        if self._overtaken:
            return f"{self.name} has answered, and its reply was lost on the way"
        # Both may come at once where it has left the cluster.
        self._overtaken = self._follower is not None and self._follower.done()
        waited = time.monotonic() - self._begin
        if waited > self._follow_at:
            # The last one may be lost as well.
            self._follow_at = waited + min(waited, _FOLLOWED_EVERY)
            with contextlib.suppress(Unsent):
                self._follower = self._connection.call(self.number, there.here)
        words = self._silence.broken_off()
        self._silent = bool(words)
        return words and f"{self.name} {words}"

    def give_up(self, token: str) -> None:
        self._connection.abort(self.number, token)

    def finish(self, token: str) -> None:
        with contextlib.suppress(Unsent):
            self._connection.call(self.number, there.finish, token)

    def heir(self) -> _Lane | None:
        # Where it has gone silent, its machine is out of reach: each of the others would be waited for as long.
        if not self.others or self._silent or self._connection.closed:
            return None
        heir, *others = self.others
        heir.others = others
        return heir

    def hang_up(self) -> None:
        # The next one finds out what is still there.
        self._connection.close()

    def _explained(self, error: Exception) -> Exception:
        kind = str(getattr(error, "ename", type(error).__name__))
        message = one_line(getattr(error, "evalue", error))
        if kind in ("ModuleNotFoundError", "ImportError") and "kernelk" in message:
            return BackendNotInstalledError(
                f"the ipyparallel engine {self.written} has no kernelk of this version ({message})",
                next_step=f"there: `pip install kernelk=={__version__}`",
            )
        if kind == "EngineError":
            return _Gone(self._ended())
        return _Failed(f"its ipyparallel engine, {self.written}, raised {kind}: {message}")

    def _ended(self) -> str:
        where = "" if self.name == self.written else f" on {self.name}"
        return f"the ipyparallel engine {self.written}{where} ended"


class _ExecutorLane(_Lane):
    """Any executor of Python's kind: it decides where and when."""

    def __init__(self, executor: Executor, most: int) -> None:
        super().__init__()
        self.most = most
        self._executor = executor

    def call(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        try:
            # A function of Python's own is there in any case.
            own = function if function is resolve_name else there.Called(function)
            future = self._executor.submit(own, *arguments)
        except Exception as error:
            raise self._explained(error) from error
        self.running.add(future)
        return future

    def give_up(self, token: str) -> None:
        for future in self.running:
            future.cancel()

    def finish(self, token: str) -> None:
        # Those of other processes end by themselves.
        there.finish(token)

    def _explained(self, error: Exception) -> Exception:
        kind = str(getattr(error, "ename", type(error).__name__))
        message = one_line(getattr(error, "evalue", error))
        if kind in ("ModuleNotFoundError", "ImportError", "AttributeError") and "kernelk" in message:
            return BackendNotInstalledError(
                f"compare: the executor's processes have no kernelk of this version ({message})",
                next_step=f"`pip install kernelk=={__version__}` where they run, and start them again",
            )
        if "after shutdown" in message or "closed" in message or kind.startswith("Broken"):
            return EngineError(
                f"compare: the executor takes no work any more ({kind}: {message})",
                next_step="with ThreadPoolExecutor(1) as executor: kernelk.compare(f, 'torch', on=executor)",
            )
        return _Failed(f"the executor raised {kind}: {message}")


def on_executor(executor: Executor, points: int) -> list[_Lane]:
    """An executor, which has kernelk of this version. Raises KernelKError."""
    lane = _ExecutorLane(executor, points)
    try:
        with _settled([lane]):
            future = lane.call(resolve_name, "kernelk._version:__version__")
            _wait_for([lane])
            found = lane.text(future)
    except (_Gone, _Failed) as error:
        raise EngineError(f"compare: {error}", next_step="leave on out, and it runs here") from error
    if found != __version__:
        raise EngineError(
            f"compare: kernelk is {found} in the executor's processes, and {__version__} in this notebook",
            next_step=f"`pip install kernelk=={__version__}` where they run, and start them again",
        )
    return [lane]


def on_cluster(place: Place, notes: list[str]) -> list[_Lane]:
    """One engine of each machine of a cluster, which knows the others of that machine. Raises KernelKError.

    `notes` takes lines on engines that aren't used.
    """
    connection = connected(place.cluster)
    numbers = sorted(connection.engines(place.engines))
    lanes = [_EngineLane(connection, number) for number in numbers]
    asked: list[tuple[_EngineLane, Future[Any]]] = []
    with _settled(lanes):
        for lane in lanes:
            with contextlib.suppress(_Gone):
                asked.append((lane, lane.call(there.here)))
        _wait_for(lanes, _OTHERS_WITHIN)
    found: dict[str, list[tuple[_EngineLane, machines.Machine]]] = {}
    problem: Exception | None = None
    for lane, future in asked:
        if not future.done():
            notes.append(f"{lane.written} isn't used: it is busy with something else, or gone")
            continue
        try:
            told = lane.reply(future)
            version = told.pop("version")
            if version != __version__:
                raise EngineError(
                    f"kernelk is {version} on {told['name']}, and {__version__} in this notebook",
                    next_step=f"on {told['name']}: `pip install kernelk=={__version__}`, and restart its engines",
                )
            found.setdefault(told["key"], []).append((lane, machines.Machine(**told)))
        except (_Gone, _Failed, KernelKError) as error:
            problem = error
            notes.append(f"{lane.written} isn't used: {one_line(error)}")
    if not found:
        if isinstance(problem, KernelKError):
            raise problem
        raise EngineError(
            f"no engine of the cluster '{place.cluster}' answers: {'; '.join(notes)}", next_step="ipcluster list"
        )
    engines = sum(len(same) for same in found.values())
    if len(found) < engines:
        where = "one machine: it takes" if len(found) == 1 else f"{len(found)} machines: each takes"
        notes.append(f"{engines} engines of {place.cluster} are on {where} one point at a time")
    names = [same[0][1].name for same in found.values()]
    for same in found.values():
        for lane, machine in same:
            # Namespaces of one system may share its name.
            lane.name = machine.name if names.count(machine.name) == 1 else f"{machine.name} ({lane.written})"
        same[0][0].others = [lane for lane, _ in same[1:]]
    return [same[0][0] for same in found.values()]


@contextlib.contextmanager
def _settled(lanes: Sequence[_Lane]) -> Iterator[None]:
    """Nothing is waited for any more after the block, however it ends."""
    try:
        yield
    finally:
        for lane in lanes:
            lane.running.clear()


def _wait_for(lanes: Sequence[_Lane], others_within: float = float("inf")) -> None:
    """Waits for all that runs, or for so many seconds after the first that is done; not for what is gone."""
    left = others_within
    while True:
        running = [future for lane in lanes for future in lane.running if not (future.done() or lane.silence())]
        done = any(future.done() for lane in lanes for future in lane.running)
        if not running or (done and left <= 0):
            return
        wait(running, timeout=STEP, return_when=FIRST_COMPLETED)
        left -= STEP if done else 0


def spread(
    session: Session,
    lanes: list[_Lane],
    wanted: list[Wanted],
    record: Sequence[Callable[[], Recording]],
    budget: float,
    notes: list[str],
) -> Spread:
    """Records one point after the other here, and has them compared by the lanes, for `budget` seconds of running each.

    Called with the session's lock held, to which nothing happens beside the recording. Raises KernelKError where nobody
    can measure, and what a body raises.
    """
    __tracebackhide__ = True  # in an error of a body
    work = _Work(session, lanes, wanted, budget)
    work.notes += notes
    try:
        with work.leash():
            with waiting("starting engines there", ["Ctrl-C cancels"]):
                work.welcome()
            # All of them, before anything is measured: what runs here may be on one of these machines.
            # No comprehension: older Pythons would show its frame.
            for one in record:
                recording = one()
                work.add(recording)
            with waiting(work.progress, ["Ctrl-C cancels"]):
                work.run()
    except BaseException:
        work.give_up()
        raise
    finally:
        work.finish()
    return Spread([point.result for point in work.points], work.notes)


class _Point:
    def __init__(self, result: CompareResult, parcels: dict[Any, Parcel]) -> None:
        self.result = result
        self.parcels = parcels  # by what the engines can


class _Work:
    """Points that are measured by lanes."""

    def __init__(self, session: Session, lanes: list[_Lane], wanted: list[Wanted], budget: float) -> None:
        self.points: list[_Point] = []
        self.notes: list[str] = []
        self._session = session
        self._all = list(lanes)
        self._lanes = list(lanes)
        self._wanted = wanted
        self._budget = budget
        self._token = f"kernelk-{uuid.uuid4().hex}"
        self._setup: dict[str, Any] = {
            "token": self._token,
            "version": __version__,
            "machine": machines.here().key,
            "engines": {side.name: side.options for side in wanted if not side.failure},
            "stuck_seconds": config.LIMITS.stuck_seconds,
        }
        self._left: deque[_Point] = deque()
        self._running: dict[Future[Any], tuple[_Lane, _Point]] = {}
        # Heirs whose engines are being started, and why they are needed.
        self._coming: dict[Future[Any], tuple[_Lane, str]] = {}
        self._done = 0

    @contextlib.contextmanager
    def leash(self) -> Iterator[None]:
        """A file that is there inside: by it, this user's processes see whether they are still waited for."""
        with tempfile.NamedTemporaryFile(prefix="leash-", dir=machines.folder()) as file:
            self._setup["leash"] = file.name
            yield

    def progress(self) -> str:
        """How far it is, in words."""
        count, machines = len(self.points), len(self._lanes)
        where = f" on {machines} machines" if machines > 1 else ""
        return f"comparing {count} point{'' if count == 1 else 's'}{where}, {self._done} done"

    def welcome(self) -> None:
        """Has the engines started on every machine, which say what they can. Raises KernelKError if nobody is left."""
        problem: Exception | None = None
        lanes = list(self._lanes)
        while lanes:
            asked: list[tuple[_Lane, Future[Any]]] = []
            gone: list[_Lane] = []
            for lane in lanes:
                try:
                    asked.append((lane, self._ask(lane)))
                except _Gone as error:
                    problem = error
                    gone.append(lane)
                    self._drop(lane, f"{error}; it isn't used")
            _wait_for(lanes)
            for lane, future in asked:
                try:
                    if not future.done():
                        raise _Gone(lane.silence())
                    self._meet(lane, future)
                except (_Gone, _Failed, KernelKError) as error:
                    problem = error
                    if isinstance(error, _Gone):
                        gone.append(lane)
                    self._drop(lane, f"{one_line(error)}; it isn't used")
            lanes = [heir for lane in gone if (heir := lane.heir()) is not None]
            self._lanes += lanes
            self._all += lanes
        if not self._lanes:
            if isinstance(problem, KernelKError):
                raise problem
            raise EngineError(
                f"{typed_name('compare')}: {problem}", next_step=f"leave {option('on')} out, and it runs here"
            )
        # A row of failures is no use where another machine can do it.
        most = max(len(_abilities(lane)) for lane in self._lanes)
        for lane in [lane for lane in self._lanes if len(_abilities(lane)) < most]:
            failures = [words for words in lane.abilities if isinstance(words, str)]
            self._drop(lane, f"{lane.name} isn't used: {failures[0]}")

    def _ask(self, lane: _Lane) -> Future[Any]:
        """Has the engines started there. Raises _Gone."""
        return lane.call(there.welcome, json.dumps(self._setup))

    def _meet(self, lane: _Lane, future: Future[Any]) -> None:
        """Notes what they can. Raises as `reply`."""
        engines = lane.reply(future)["engines"]
        lane.abilities = [_ability(side, engines.get(side.name, {})) for side in self._wanted]

    def add(self, recording: Recording) -> None:
        """A point, encoded for each kind of machine while its state can be had."""
        result = CompareResult([Side(side.label) for side in self._wanted], recording.python_seconds, self._budget)
        parcels: dict[Any, Parcel] = {}
        with restoring(self._session, [recording]) as rewind:
            for lane in self._lanes:
                able = _abilities(lane)
                if able not in parcels:
                    parcels[able] = encode(self._session, recording, rewind, able)
        self.points.append(_Point(result, parcels))

    def run(self) -> None:
        """Has all points measured. One that an engine or a machine was lost with isn't tried again."""
        self._left.extend(self.points)
        while self._left or self._running:
            for lane in list(self._lanes):
                while self._left and len(lane.running) < lane.most and lane in self._lanes:
                    self._send(lane, self._left.popleft())
            if not (self._running or self._coming):
                words = joined("no machine is left", next_step="run it again with others")
                while self._left:
                    self._fail(self._left.popleft(), words)
                return
            done, _ = wait([*self._running, *self._coming], timeout=STEP, return_when=FIRST_COMPLETED)
            for future in done:
                if future in self._coming:
                    self._welcome_heir(future)
                elif future in self._running:  # or it has failed with another one of its lane
                    lane, point = self._running.pop(future)
                    self._take(lane, point, future)
            for future, (heir, why) in list(self._coming.items()):
                if words := heir.silence():
                    del self._coming[future]
                    self._pass_over(heir, words, why)
            for lane in list(self._lanes):
                words = lane.silence()
                if words:
                    self._lose(lane, words)

    def _send(self, lane: _Lane, point: _Point) -> None:
        point.result.machine = lane.name
        parcel = point.parcels[_abilities(lane)]
        able = [side for side, ability in zip(point.result.sides, lane.abilities) if isinstance(ability, Ability)]
        for side, ability in zip(point.result.sides, lane.abilities):
            side.failure = ability if isinstance(ability, str) else ""
        for position, words in parcel.refused.items():
            able[position].failure = words
        names = {side.label: side.name for side in self._wanted}
        engines = {side.label: names[side.label] for side in able if not side.failure}
        if not engines:
            self._done += 1
            return
        head = {"setup": self._setup, "engines": engines, "budget": self._budget, **parcel.head}
        try:
            future = lane.call(there.measure, json.dumps(head), *parcel.arrays)
        except _Gone as error:
            # It has ended between two points.
            self._left.appendleft(point)
            if not self._lose(lane, str(error)):
                self.notes.append(f"{error}; it isn't used any more")
            return
        except (_Failed, KernelKError) as error:
            self._lose(lane, one_line(error))
            self._fail(point, one_line(error))
            return
        self._running[future] = lane, point

    def _take(self, lane: _Lane, point: _Point, future: Future[Any]) -> None:
        try:
            reply = lane.reply(future)
        except (_Gone, KernelKError) as error:
            self._lose(lane, one_line(error))
            self._fail(point, one_line(error))
            return
        except _Failed as error:
            self._fail(point, str(error))
            return
        self._done += 1
        point.result.machine = machine = lane.name or reply["machine"]
        point.result.notes += reply["notes"]
        measured = {sent["label"]: _side(machine, sent) for sent in reply["sides"]}
        point.result.sides = [measured.get(side.label, side) for side in point.result.sides]

    def _fail(self, point: _Point, words: str) -> None:
        self._done += 1
        for side in point.result.sides:
            side.failure = side.failure or words

    def _drop(self, lane: _Lane, words: str) -> None:
        self._lanes.remove(lane)
        self.notes.append(words)

    def _lose(self, lane: _Lane, words: str) -> bool:
        """Goes on without a lane, whose points under way have failed; whether its machine may have an heir."""
        if lane in self._lanes:
            self._lanes.remove(lane)
        for future, (its, point) in list(self._running.items()):
            if its is lane:
                del self._running[future]
                self._fail(point, words)
        return self._call_heir(lane, words)

    def _call_heir(self, lane: _Lane, why: str) -> bool:
        """Has the next engine of its machine get ready; False where there is none."""
        heir = lane.heir()
        while heir is not None:
            try:
                self._coming[self._ask(heir)] = heir, why
            except _Gone:
                heir = heir.heir()
                continue
            self._all.append(heir)
            return True
        if not self._lanes and not self._coming:
            lane.hang_up()
        return False

    def _welcome_heir(self, future: Future[Any]) -> None:
        """Takes an engine in another one's place, if it can be sent what was recorded for those that there were."""
        heir, why = self._coming.pop(future)
        try:
            self._meet(heir, future)
        except (_Gone, _Failed, KernelKError) as error:
            self._pass_over(heir, one_line(error), why)
            return
        if all(_abilities(heir) in point.parcels for point in self._left):
            self._lanes.append(heir)
            self.notes.append(f"{why}; {heir.written} goes on there")
        else:
            self._pass_over(heir, f"{heir.written} has other engines than those before it", why)

    def _pass_over(self, heir: _Lane, words: str, why: str) -> None:
        """Does without an heir, for the next one of its machine."""
        self.notes.append(f"{words}; it isn't used")
        self._call_heir(heir, why)

    def give_up(self) -> None:
        """Ends all that runs there."""
        for lane in self._all:
            lane.give_up(self._token)

    def finish(self) -> None:
        """Ends the workers there."""
        for lane in self._all:
            lane.finish(self._token)


def _abilities(lane: _Lane) -> tuple[Ability, ...]:
    """Those of the sides that it can have."""
    return tuple(one for one in lane.abilities if isinstance(one, Ability))


def _ability(side: Wanted, told: dict[str, Any]) -> Ability | str:
    engine = registry.engine(side.label)
    if side.failure:
        return side.failure
    if engine.recipe is not None and engine.on and "absent" in told:
        # It can be installed from here.
        return joined(str(told["absent"]), next_step=engine.get)
    if "failure" in told:
        return str(told["failure"])
    title = engine.title
    return Ability(title, frozenset(told["ops"]), frozenset(told["dtypes"]), told["specialises"])


def _side(machine: str, sent: dict[str, Any]) -> Side:
    """A side as it was measured there."""
    label, conditions = sent["label"], sent["conditions"]
    if conditions is not None:
        known = Conditions(**conditions)
        conditions = replace(known, engine=label, title=registry.engine(label).title, machine=machine)
    made = {
        "conditions": conditions,
        "calls": [CallTime(**call) for call in sent["calls"]],
        "ratio": None if sent["ratio"] is None else Estimate(*sent["ratio"]),
    }
    return Side(**{**sent, **made})
