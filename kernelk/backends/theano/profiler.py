"""Theano's profile=True on a call: the apply nodes of the optimised graph, fused and in place as it runs them."""

from contextlib import contextmanager

from ..serving.watching import OfFunctions, Rows


class TheanoProfiler(OfFunctions):
    """Functions have to be compiled with a profile; the thunks' clocks run while they are watched, and else stand.

    `functions` are pairs: which instruction a node belongs to, as a function of the node, and the compiled function.
    """

    label = "Theano's profile=True"

    @contextmanager
    def compiling(self):
        with OfFunctions.compiling(self):
            yield
        self._time(False)

    def _time(self, wanted):
        for _, function in self.functions:
            function.fn.time_thunks = wanted

    @contextmanager
    def watching(self):
        result = []
        self._time(True)
        try:
            yield result
        finally:
            self._time(False)
            rows, number = Rows(), 0
            for instruction_of, function in self.functions:
                profile = function.profile
                profile.apply_time.clear()
                profile.apply_callcount.clear()
                # Takes over what the nodes' counters have, and sets them to 0.
                function.fn.update_profile(profile)
                for node in function.fn.nodes:
                    calls = profile.apply_callcount.get(node)
                    if calls:
                        # Of parts of a program the instructions' numbers are their own.
                        index = instruction_of(node) if len(self.functions) == 1 else None
                        rows.add(str(node.op), profile.apply_time[node], int(calls), index, key=number)
                    number += 1
            result.extend(rows.all())
