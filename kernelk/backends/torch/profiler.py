"""torch.profiler on a call: the ATen operators that ran on the CPU, or the kernels that ran on the GPU."""

import os
from contextlib import contextmanager

from ..serving.watching import Profiler, Rows


class TorchProfiler(Profiler):
    """Operators by their own time, those that they call apart. On a GPU its kernels and copies count instead."""

    label = "torch.profiler"
    of_device = True

    @contextmanager
    def watching(self):
        from torch import profiler

        kinds = [profiler.ProfilerActivity.CPU]
        on_cpu = self.backend.facts()["device"].startswith("cpu")
        if not on_cpu:
            kinds.append(profiler.ProfilerActivity.CUDA)
        if not self.backend.options.get("in_kernel"):
            # It says on standard error when it starts and stops.
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        result = []
        with profiler.profile(activities=kinds, acc_events=True) as profile:
            yield result
        rows = Rows()
        for event in profile.key_averages():
            there = event.device_type.name == "CPU"
            if there is on_cpu:
                microseconds = event.self_cpu_time_total if on_cpu else event.self_device_time_total
                rows.add(event.key, microseconds * 1e-6, event.count)
        result.extend(rows.all())
