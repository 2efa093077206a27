"""JAX's profiler on a call: the fusions and library calls that XLA has made of the program."""

from contextlib import contextmanager

from ..serving.watching import Profiler, Rows
from ..xplane import on_device, own_times, trace_file, trace_folder


class JaxProfiler(Profiler):
    """The operations of XLA's compiled program, as its runtime carries them out."""

    label = "JAX's profiler (XPlane)"
    of_device = True

    def settle(self):
        """A run waits for its own results; what `synchronize` runs would be among the rows."""

    @contextmanager
    def watching(self):
        from jax import profiler

        options = profiler.ProfileOptions()
        options.python_tracer_level, options.host_tracer_level = 0, 2
        result = []
        with trace_folder(self.backend.options.get("scratch")) as folder:
            profiler.start_trace(folder, profiler_options=options)
            try:
                yield result
            finally:
                profiler.stop_trace()
            data = profiler.ProfileData.from_file(trace_file(folder))
            planes = {plane.name: [line.name for line in plane.lines] for plane in data.planes}
            wanted, rows = set(on_device(planes)), Rows()
            for plane in data.planes:
                for line in plane.lines:
                    if (plane.name, line.name) in wanted:
                        for (name, program), seconds in own_times(_operations(line)):
                            rows.add(name, seconds, key=program)
        result.extend(rows.all())


def _operations(line):
    """(start, duration, (operation, program)) of what belongs to a compiled program, in nanoseconds."""
    for event in line.events:
        facts = dict(event.stats)
        if "hlo_op" in facts:
            yield event.start_ns, event.duration_ns, (facts["hlo_op"], facts.get("program_id"))
