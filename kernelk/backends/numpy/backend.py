"""The numpy backend: runs in the notebook's kernel, op by op by the table of definitions."""

import ctypes
import glob
import os
import sys

import numpy as np

from ..base import Backend
from ..choosing import FLOAT32, chosen_device, chosen_precision, positive_threads
from ..errors import OptionError
from .ops import OPS, Plan


def _blas_threads():
    """The number of threads of the OpenBLAS that numpy came with; None with another BLAS."""
    folder = os.path.dirname(np.__file__)
    for path in glob.glob(os.path.join(folder + ".libs", "*openblas*")) + glob.glob(
        os.path.join(folder, ".dylibs", "*openblas*")
    ):
        library = ctypes.CDLL(path)  # numpy has loaded it: this is the same one
        for name in ("scipy_openblas_get_num_threads64_", "openblas_get_num_threads64_", "openblas_get_num_threads"):
            if hasattr(library, name):
                return int(getattr(library, name)())
    return None


class NumpyBackend(Backend):
    """numpy itself; native values are ndarrays, and a variable's value is its shared-memory slot."""

    name = "numpy"
    ops = OPS

    def __init__(self, options):
        Backend.__init__(self, options)
        chosen_device("numpy", self.name, options, ["cpu:0"], "cpu:0")
        chosen_precision("numpy", self.name, options, "cpu:0", FLOAT32)
        # In the kernel nothing is saved by it: a value is committed with one copy, which it would need here.
        self.keeps_updates = not options.get("in_kernel")
        if positive_threads(options) is not None:
            raise OptionError(
                "numpy's threads are those of its BLAS, which are fixed when it loads: set OPENBLAS_NUM_THREADS before"
                " the notebook's kernel starts",
                next_step="%kbackend numpy --threads default",
            )

    def facts(self):
        return {
            "version": np.__version__,
            "device": "cpu:0",
            "devices": ["cpu:0"],
            "threads": _blas_threads(),
            "precision": FLOAT32[0],
            "precisions": list(FLOAT32),
            "interpreter": "Python " + sys.version.split()[0],
        }

    def load(self, array):
        return array

    def to_numpy(self, value):
        return np.asarray(value)

    def commit(self, value, destination):
        destination[...] = value
        return destination

    def compile(self, program, constants):
        plan = Plan(program)
        outputs, keeps = len(program.outputs), self.keeps_updates

        def run(feeds, state, draws):
            with np.errstate(all="ignore"):
                results = plan.run(list(feeds) + list(state) + list(draws) + list(constants))
            if not keeps:
                return results[:outputs], results[outputs:]
            # Copies: some are views of a feed or of a variable's slot.
            return results[:outputs], [np.array(value) for value in results[outputs:]]

        return run
