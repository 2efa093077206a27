"""The interface to an engine's own profiler, which reports a call as rows of operations and seconds."""

from contextlib import contextmanager


class Profiler(object):
    """The engine's own profiler for one call that is run again and again. `label` is what the engine calls it.

    `of_device`: whether its rows on a GPU are what ran there, and a program compiled for it is the one of any call.
    `sees`: in how many runs after the compilation it sees everything; 0 where it always does. `remark`: what a reader
    of its rows has to know.
    Subclasses define `watching`, and `compiling` where functions have to be compiled for it.
    """

    label = ""
    of_device = False
    sees = 0
    remark = ""

    def __init__(self, backend):
        self.backend = backend

    @contextmanager
    def compiling(self):
        """Marks the compilation of the program that will be watched."""
        yield

    @contextmanager
    def watching(self):
        """Profiles what runs within; gives a list that has the rows once it is left.

        A row is a dict: "name" (the engine's own word for what ran), "calls" and "seconds" (of all calls together,
        without what ran inside), "instruction" (its index in the program where the profile tells it, or None),
        "key" (None, or a number that tells apart what has the same name).
        """
        raise NotImplementedError

    def facts(self):
        """A JSON-able dict of what it says of itself."""
        return {"label": self.label, "of_device": self.of_device, "sees": self.sees, "remark": self.remark}

    def settle(self):
        """Waits until all runs are done; doesn't appear in the rows itself."""
        self.backend.synchronize()


class OfFunctions(Profiler):
    """The profiler of an engine that has to know each function: the backend records those that it compiles."""

    def __init__(self, backend):
        Profiler.__init__(self, backend)
        self.functions = []  # as the backend puts them into its `watched`

    @contextmanager
    def compiling(self):
        self.backend.watched = self.functions
        try:
            yield
        finally:
            self.backend.watched = None


class Rows(object):
    """Sums a profiler's events into rows."""

    def __init__(self):
        self._rows = {}

    def add(self, name, seconds, calls=1, instruction=None, key=None):
        row = self._rows.setdefault(
            (name, instruction, key),
            {"name": name, "calls": 0, "seconds": 0.0, "instruction": instruction, "key": key},
        )
        row["calls"] += calls
        row["seconds"] += seconds

    def all(self):
        return list(self._rows.values())
