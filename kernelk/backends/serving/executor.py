"""Carries out a host's requests on one backend, and keeps its compiled programs and the variables' values.

Arrays in requests are references [segment, offset, dtype, shape] into shared memory. A request that fails changes
nothing: neither a variable's value nor what is compiled. A call that keeps its updates is the exception: its error says
whether their variables have lost their values, which the kernel then has computed again.
"""

import gc
import mmap
import time
import traceback

import numpy as np

from ..base import STAGED
from ..bits import checksum
from ..describing import described
from ..errors import CannotLower
from ..figures import figures
from ..lowering import InstructionError, Program
from ..staged import compile_program
from . import freed
from .timed import Timed

# Draws of a plan's next call, up to so many bytes of them, are made before it comes: more would keep another request
# waiting.
_AHEAD_BYTES = 1 << 20


def resident_bytes(process="self"):
    """The resident memory of a process (its id), or of this one, in bytes; 0 where the system doesn't tell it so."""
    try:
        with open("/proc/%s/statm" % process) as statm:
            return int(statm.read().split()[1]) * mmap.PAGESIZE
    except (OSError, ValueError):
        return 0


def describe(error):
    """The exception as a JSON-able dict.

    `instruction` is set where an op of the program is to blame; `inside` is where in the bodies of loops it stands.
    """
    cause, path = error, []
    while isinstance(cause, InstructionError):
        path.append(cause.index)
        cause = cause.cause
    text = str(cause).strip() or repr(cause)
    return {
        "type": type(cause).__name__,
        "message": text,
        "allowed": getattr(cause, "allowed", ""),
        "next_step": getattr(cause, "next_step", ""),
        "instruction": path[0] if path else None,
        "inside": path[1:],
        "unsupported": isinstance(cause, CannotLower),
        # Whether variables' values are gone: see `do_run`.
        "changed": getattr(error, "changed", False),
        # Whether the device, and what lies there, can't be used any more: see `handle`.
        "device_lost": False,
        "trace": "".join(traceback.format_exception(type(error), error, error.__traceback__)),
    }


class Plan(object):
    """One program with fixed variables and fixed locations of its feeds and results: all that its calls share.

    `definition` has key (of the compiled program), feeds and outputs (references), slots (variable ids), draws
    ([kind, dtype, shape, seed]...) and into (for each update, the references of both its slots).
    """

    def __init__(self, executor, definition):
        program, self.run = executor.compiled[definition["key"]]
        self.feeds = [executor.array(reference) for reference in definition["feeds"]]
        self.outputs = [executor.array(reference) for reference in definition["outputs"]]
        self.slots = definition["slots"]
        self.draws = definition["draws"]
        self.into = [[executor.array(reference) for reference in pair] for pair in definition["into"]]
        self.updated = [self.slots[slot] for slot, _ in program.updates]
        drawn = [np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64) for _, dtype, shape, _ in self.draws]
        self.draws_ahead = 0 < sum(drawn) <= _AHEAD_BYTES


class Executor(object):
    """Serves requests, one at a time, each a dict with "do"; see the methods named `do_...` for their fields."""

    def __init__(self, backend):
        self.backend = backend
        self.segments = {}
        self.state = {}  # variable id -> native value
        self.own = set()  # the ids of those whose memory nothing else holds, so that a kept call may write there
        # The values that the last call which kept them made: (number of the call, variable id -> native value). They
        # count once a later request confirms that call.
        self.pending = None
        self.compiled = {}  # key -> (program, run)
        self.plans = {}  # number -> Plan
        self.timed = {}  # number -> Timed
        # The plan of the last call, and the counts of its draws; and what `draw_ahead` has made: (plan, counts, draws).
        self.drawn, self.ahead = None, None
        # What has come of builds since it was last replied, and whether there is something to reply.
        self.built, self.has_news = {"programs": 0, "problems": []}, False

    def handle(self, request):
        """Executes a request and returns the reply: a dict, with "error" if it failed."""
        try:
            if "confirmed" in request:
                self.confirm(request["confirmed"])
            if request["do"] == "run":
                self.pending = None
            return getattr(self, "do_" + request["do"])(request) or {}
        except Exception as error:
            described = describe(error)
            described["device_lost"] = self.backend.keeps_updates and not self.backend.usable()
            return {"error": described}

    def array(self, reference):
        """The ndarray behind a reference."""
        segment, offset, dtype, shape = reference
        return self.segments[segment].array(offset, dtype, shape)

    def attach(self, number, segment):
        """Makes a mapped segment known under its number."""
        self.segments[number] = segment
        self.backend.lock_pages(segment.memory)

    def do_facts(self, request):
        """Replies with what the engine says of itself, and with what it takes."""
        backend = self.backend
        profiler = backend.profiler()
        return {
            "facts": backend.facts(),
            "ops": sorted(set(backend.ops).union(STAGED)),
            "dtypes": list(backend.dtypes),
            "specialises": backend.specialises,
            # Whether a call may leave its updates here, to be fetched later.
            "keeps": backend.keeps_updates,
            # Whether such a call may overwrite the values before it.
            "overwrites": backend.keeps_updates and backend.can_overwrite,
            "profiler": profiler.facts() if profiler else None,
            "resident": resident_bytes(),
        }

    def do_compile(self, request):
        """Fields: key, program (encoded), constants (references), wait (False: a slower program may answer at once),

        keeps (whether its updates will stay here, as a rule).

        Replies with seconds, bytes and maps taken, and whether a faster program is being built beside the calls.
        """
        before, maps, start = resident_bytes(), self.backend.maps(), time.perf_counter()
        program = Program(request["program"])
        constants = [np.array(self.array(reference)) for reference in request["constants"]]
        building = self.backend.building
        self.backend.waits = request.get("wait", True)
        self.backend.overwrites = self.backend.can_overwrite and request.get("keeps", False)
        try:
            run = compile_program(self.backend, program, constants)
        finally:
            self.backend.waits, self.backend.overwrites = True, False
        self.compiled[request["key"]] = (program, run)
        held = sum(constant.nbytes for constant in constants) + 2000 * len(program.instructions)
        return {
            "seconds": time.perf_counter() - start,
            "bytes": max(held, resident_bytes() - before),
            "maps": max(0, self.backend.maps() - maps),
            "stages": getattr(run, "stages", None),
            "building": self.backend.building > building,
        }

    def do_build(self, request):
        """Waits for what is being built beside the calls. Replies, under "built", with what has come of it:

        programs: how many run otherwise from here on, left: how many are still being built, problems: why some aren't.
        """
        self._take_over(True)
        return {"built": self._news()}

    def _take_over(self, wait):
        programs, problems = self.backend.take_over(wait)
        self.built["programs"] += programs
        self.built["problems"] += problems
        self.has_news = bool(self.has_news or programs or problems or not self.backend.building)

    def _news(self):
        news = dict(self.built, left=self.backend.building)
        self.built, self.has_news = {"programs": 0, "problems": []}, False
        return news

    def do_load(self, request):
        """Fields: variables ([id, reference]...), verify. Replies with the ids that were not read back bit for bit."""
        backend, numbers = self.backend, [number for number, _ in request["variables"]]
        sources = [self.array(reference) for _, reference in request["variables"]]
        values = backend.load_all(sources)
        different = [numbers[position] for position in backend.differing(values, sources)] if request["verify"] else []
        if not different:
            self._load(numbers, values)
        return {"different": different}

    def confirm(self, call):
        """Makes the pending values count, if they are those of this call. The next run forgets those of any other."""
        if self.pending is not None and self.pending[0] == call:
            self.state.update(self.pending[1])
            if self.backend.writes_in_place:
                self.own.update(self.pending[1])
            self.pending = None

    def _set(self, numbers, values):
        """Sets variables to values in memory that may not be written to."""
        self.state.update(zip(numbers, values))
        self.own.difference_update(numbers)

    def _load(self, numbers, values):
        """Sets variables to what the backend has loaded for them."""
        self._set(numbers, values)
        if self.backend.loads_copies:
            self.own.update(numbers)

    def do_fetch(self, request):
        """Fields: variables ([id, reference]...). Writes their values there."""
        values = [self.state[number] for number, _ in request["variables"]]
        self.backend.read_all(values, [self.array(reference) for _, reference in request["variables"]])

    def do_checksum(self, request):
        """Fields: variables (ids). Replies with a checksum of each value, which is the kernel's `checksum` of it."""
        return {"sums": [checksum(self.backend.to_numpy(self.state[number])) for number in request["variables"]]}

    def do_summarise(self, request):
        """Fields: variable (its id), most. Replies with the figures of its value: see `figures`."""
        return {"figures": figures(np.asarray(self.backend.to_numpy(self.state[request["variable"]])), request["most"])}

    def do_run(self, request):
        """Fields: plan (its number), define (what the plan is, the first time), load ([id, reference]...),

        sides (for each update, which of its two slots to write), counts (for each draw, how often it was made).
        In place of sides: keep (the number of the call), whose updates stay here, pending, and confirmed (that of the
        last call whose pending values count; any other request may have it); apart, if it is set: its updates are
        thrown away. A kept call may overwrite the values before it; if it fails then, its error says "changed".
        Within one process also: feeds (ndarrays, in place of the plan's), results: "arrays" or "native", if they are
        to come with the reply, and not in the plan's memory.
        Replies with the seconds that the run itself took, and with "built" as `do_build` where there is something new.
        """
        backend, state = self.backend, self.state
        if backend.building:
            self._take_over(False)
        if request["define"] is not None:
            self.plans[request["plan"]] = Plan(self, request["define"])
        plan = self.plans[request["plan"]]
        if request["load"]:
            arrays = [self.array(reference) for _, reference in request["load"]]
            self._load([number for number, _ in request["load"]], backend.load_all(arrays))
        feeds = request.get("feeds", plan.feeds)
        draws = self._draw(plan, request["counts"]) if plan.draws else []
        keep = request.get("keep")
        into = [pair[side] for pair, side in zip(plan.into, request["sides"])] if keep is None else None
        if keep is not None and "apart" not in request and hasattr(plan.run, "overwrite"):
            return self._overwrite(plan, feeds, draws, request)
        values = [state[number] for number in plan.slots]
        start = time.perf_counter()
        if backend.writes_in_place:
            outputs, updated = plan.run(feeds, values, draws, into)
        else:
            outputs, updated = plan.run(feeds, values, draws)
        seconds = time.perf_counter() - start
        delivered = self._deliver(plan, outputs, request.get("results"))
        if self.has_news:
            delivered["built"] = self._news()
        if keep is not None:
            if "apart" not in request:
                if backend.writes_in_place:
                    # What comes of `overwrite` alone is in memory of its own.
                    updated = [backend.own(value) for value in updated]
                self.pending = keep, dict(zip(plan.updated, updated))
            return dict(delivered, seconds=seconds)
        if updated:
            self._set(plan.updated, backend.commit_all(updated, into))
        return dict(delivered, seconds=seconds)

    def _draw(self, plan, counts):
        # A list or a tuple, as the message came.
        counts, ahead, self.ahead = tuple(counts), self.ahead, None
        self.drawn = (plan, counts) if plan.draws_ahead else None
        if ahead is not None and ahead[0] is plan and ahead[1] == counts:
            return ahead[2]
        return [self.backend.draw(*how, counter=n) for how, n in zip(plan.draws, counts)]

    def draw_ahead(self):
        """After a call's reply: makes the draws of the next one like it, while the kernel prepares that."""
        if self.drawn is None:
            return
        (plan, counts), self.drawn = self.drawn, None
        try:
            following = tuple(n + 1 for n in counts)
            draws = [self.backend.draw(*how, counter=n) for how, n in zip(plan.draws, following)]
        except Exception:
            # If that call comes, it fails by itself.
            return
        self.ahead = plan, following, draws

    def _overwrite(self, plan, feeds, draws, request):
        """A call whose new values take the place of the old ones: if anything fails from there on, these are gone."""
        backend, state = self.backend, self.state
        for number in plan.updated:
            if number not in self.own:
                state[number] = backend.own(state[number])
                self.own.add(number)
        begun = []
        try:
            start = time.perf_counter()
            values = [state[number] for number in plan.slots]
            outputs, updated = plan.run.overwrite(feeds, values, draws, lambda: begun.append(True))
            seconds = time.perf_counter() - start
            delivered = self._deliver(plan, outputs, request.get("results"))
        except Exception as error:
            if begun:
                error.changed = True
                for number in plan.updated:
                    state.pop(number, None)
                self.own.difference_update(plan.updated)
            raise
        state.update(zip(plan.updated, updated))
        if self.has_news:
            delivered["built"] = self._news()
        return dict(delivered, seconds=seconds)

    def do_give_back(self, request):
        """Gives memory that the engine has freed back to the system at once."""
        freed.give_back()

    def do_time(self, request):
        """Fields: timed (its number), program (encoded), constants, feeds, variables (references), draws, counts,

        profiled (whether the engine's own profiler is to be asked).
        Makes a `Timed`. Replies with the seconds of its compilation and of its first run.
        """
        arrays = [
            [self.array(reference) for reference in request[name]] for name in ("constants", "feeds", "variables")
        ]
        profiler = self.backend.profiler() if request["profiled"] else None
        rest = {"draws": request["draws"], "counts": request["counts"], "profiler": profiler}
        made = Timed(self.backend, request["program"], *arrays, **rest)
        self.timed[request["timed"]] = made
        return {"compile": made.compile_seconds, "first": made.first_seconds}

    def do_describe(self, request):
        """Fields: program (encoded), constants (references), names (of its leaves). Replies as `described` says.

        It is compiled for this, and forgotten.
        """
        program = Program(request["program"])
        constants = [np.array(self.array(reference)) for reference in request["constants"]]
        run = compile_program(self.backend, program, constants)
        return described(self.backend, program, run, request["names"])

    def do_sample(self, request):
        """Fields: timed, loops, times, before. Replies with samples: see `Timed.samples`."""
        timed = self.timed[request["timed"]]
        return {"samples": timed.samples(request["loops"], request["times"], request["before"])}

    def do_watch(self, request):
        """Fields: timed (made with `profiled`), loops. Replies with rows and seconds: see `Timed.watched`."""
        rows, seconds = self.timed[request["timed"]].watched(request["loops"])
        return {"rows": rows, "seconds": seconds}

    def do_transfers(self, request):
        """Fields: timed, times. Replies with load, deliver and commit: see `Timed.transfers`."""
        load, deliver, commit = self.timed[request["timed"]].transfers(request["times"])
        return {"load": load, "deliver": deliver, "commit": commit}

    def do_release(self, request):
        """Fields: variables (ids), plans, programs (keys), segments (numbers), timed (numbers). Forgets them."""
        for number in request["variables"]:
            self.state.pop(number, None)
            self.own.discard(number)
        for number in request["plans"]:
            self.plans.pop(number, None)
            self.drawn, self.ahead = None, None
        for key in request["programs"]:
            self.compiled.pop(key, None)
        for number in request["timed"]:
            self.timed.pop(number, None)
        if request["programs"] or request["timed"]:
            gc.collect()
        for number in request["segments"]:
            segment = self.segments.pop(number, None)
            if segment is not None:
                self.backend.unlock_pages(segment.memory)

    def _deliver(self, plan, outputs, how):
        """Puts outputs into the plan's memory; or replies with a list of what the user may keep: see `do_run`."""
        backend = self.backend
        if how == "native":
            fresh = getattr(plan.run, "fresh", ())
            return {"results": [backend.native(value, position in fresh) for position, value in enumerate(outputs)]}
        if how == "arrays":
            return {"results": backend.copy_all(outputs, plan.outputs)}
        backend.read_all(outputs, plan.outputs)
        return {}

    def close(self):
        """Forgets everything, and lets the library give back what it can."""
        backend, self.backend = self.backend, None
        self.state, self.compiled, self.plans, self.timed = {}, {}, {}, {}
        backend.close()
        # Compiled programs contain reference cycles.
        del backend
        gc.collect()
