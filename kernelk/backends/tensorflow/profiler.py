"""TensorFlow's profiler on a call: the kernels that its executor ran, by the names of its nodes."""

import re
from contextlib import contextmanager

from ..serving.watching import Profiler, Rows
from ..xplane import on_device, own_times, trace_file, trace_folder

# "k3/MatMul:_MklMatMul": the node and the kernel; the executor's own events have other names.
_KERNEL = re.compile(r"^([^:\s]+):([A-Za-z_]\w*)$")
# The scope that names the instruction: see ops.SCOPED.
_INSTRUCTION = re.compile(r"^(?:.*/)?k(\d+)/")


def _schema():
    """The module of the trace's messages, which has moved from version to version."""
    try:
        from tensorflow.tsl.profiler.protobuf import xplane_pb2
    except ImportError:
        from tensorflow.core.profiler.protobuf import xplane_pb2
    return xplane_pb2


class TensorFlowProfiler(Profiler):
    """The nodes of the traced function, as Grappler has rewritten it; on a GPU, the kernels of its nodes."""

    label = "TensorFlow's profiler (XPlane)"
    # The executor keeps what it takes a node for, an expensive one at first, and traces cheap ones at level 3 alone,
    # which TensorFlow 2.21 takes from no option. A node is found to be cheap after some 90 runs.
    sees = 60
    remark = "of the ops that run often, those that TensorFlow's executor considers cheap are missing"

    @contextmanager
    def compiling(self):
        self.backend.watched = True
        try:
            yield
        finally:
            self.backend.watched = False

    @contextmanager
    def watching(self):
        from tensorflow import profiler

        schema = _schema()
        result = []
        with trace_folder(self.backend.options.get("scratch")) as folder:
            profiler.experimental.start(folder)
            try:
                yield result
            finally:
                profiler.experimental.stop()
            space = schema.XSpace()
            with open(trace_file(folder), "rb") as file:
                space.ParseFromString(file.read())
        rows = Rows()
        wanted = set(on_device({plane.name: [line.name for line in plane.lines] for plane in space.planes}))
        for plane in space.planes:
            for line in plane.lines:
                if (plane.name, line.name) in wanted:
                    for (name, index), seconds in own_times(self._events(plane, line)):
                        rows.add(name, seconds, instruction=index)
        result.extend(rows.all())

    def _events(self, plane, line):
        on_gpu = plane.name.startswith("/device:")
        kernels = {}
        for number, metadata in plane.event_metadata.items():
            kernels[number] = self._kernel(metadata.name)
        for event in line.events:
            kernel = kernels[event.metadata_id]
            if on_gpu:
                name = plane.event_metadata[event.metadata_id].name
                node = _KERNEL.match(self._node(plane, event) or "")
                kernel = name, node and _index(node.group(1))
            if kernel is not None:
                # Picoseconds.
                yield event.offset_ps / 1000.0, event.duration_ps / 1000.0, kernel

    def _kernel(self, name):
        match = _KERNEL.match(name)
        return (name, _index(match.group(1))) if match else None

    def _node(self, plane, event):
        for stat in event.stats:
            if plane.stat_metadata[stat.metadata_id].name == "tf_op":
                return stat.str_value or plane.stat_metadata[stat.ref_value].name
        return None


def _index(node):
    match = _INSTRUCTION.match(node)
    return int(match.group(1)) if match else None
