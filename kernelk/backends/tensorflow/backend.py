"""The TensorFlow backend: a program is one traced function."""

import os
import re
import sys
from collections import Counter
from contextlib import contextmanager
from itertools import chain

import numpy as np

from ..base import Backend, hand_over
from ..choosing import (
    FLOAT32,
    SHARED_THREADS,
    check_environment,
    chosen_device,
    chosen_precision,
    positive_threads,
    precisions,
    settled_denormals,
    settled_threads,
    wanted_denormals,
)
from ..describing import type_of
from ..errors import OptionError
from ..lowering import InstructionError, lower
from ..products import round_factors
from . import elementwise, ops, windows
from .denormals import keep_denormals
from .profiler import TensorFlowProfiler

# Imported when the first TensorFlowBackend is made.
tf = None

# Constants up to this many bytes are part of the traced function; larger ones are arguments, held once.
EMBEDDED_BYTES = 1024

# An executor of TensorFlow's that computes node after node in the calling thread, each still on several if it is large.
# The default one hands nodes to other threads, which takes longer than a small node itself.
INLINE = "SINGLE_THREADED_EXECUTOR"

# Ops whose nodes take long enough to be handed over: a convolution's two gradients are computed beside each other.
LONG = {"conv", "conv_input", "conv_kernel", "depthwise_conv", "depthwise_conv_input", "depthwise_conv_kernel"}

# Nodes of a graph that compute nothing.
PASSIVE = ("Placeholder", "Const", "Identity", "NoOp")


def _import_tensorflow():
    """Imports TensorFlow, but not the Keras that it imports without needing it (2 s).

    `tensorflow.keras` stays there, and is imported when it is used.
    """
    skip = not {"tensorflow", "keras", "keras.src"} & set(sys.modules)
    if skip:
        # TensorFlow takes the ImportError for "not installed".
        sys.modules["keras.src"] = None
    try:
        import tensorflow
    finally:
        if skip:
            del sys.modules["keras.src"]
    return tensorflow


class TensorFlowBackend(Backend):
    """TensorFlow 2: native values are eager tensors, a program is one ConcreteFunction for all shapes.

    An option of its own: "denormals", "keep" or "flush" (what TensorFlow does by default). Without it they
    are kept if that can be had, and facts() tells which it is.
    oneDNN and everything else that decides on rounding is left as TensorFlow's user has it, but for TensorFloat-32.
    """

    name = "tensorflow"
    ops = ops.OPS

    def __init__(self, options):
        global tf
        Backend.__init__(self, options)
        denormals = wanted_denormals(options)
        threads = positive_threads(options)
        self._in_kernel = bool(options.get("in_kernel"))
        self.watched = False  # whether what is compiled is for the profiler, which sees the default executor's nodes
        self._notes = []
        if self._in_kernel:
            import tensorflow as tf

            if not tf.executing_eagerly():
                # tf.init_scope() leaves what the user is in the middle of, but not this.
                with tf.init_scope():
                    if not tf.executing_eagerly():
                        raise OptionError(
                            "TensorFlow's eager execution is disabled in this process",
                            next_step="restart it without tf.compat.v1.disable_eager_execution(), or use a worker",
                        )
        else:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
            # Without it a process takes a GPU's whole memory, and other engines' workers get none.
            os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
            # By default oneDNN's primitive of a convolution's gradient is made anew for each call, up to a third of a
            # small one's time. Those of the last 1024 shapes are kept instead: 0.1 MB to 1.5 MB each.
            os.environ.setdefault("TF_MKL_OPTIMIZE_PRIMITIVE_MEMUSE", "false")
            if denormals != "flush":
                keep_denormals(options.get("scratch"))
            tf = _import_tensorflow()
        hand_over([elementwise, ops, windows], tf=tf)
        self._set_threads(threads)
        self._devices = {}
        for device in tf.config.list_logical_devices():
            kind, number = device.name.split(":")[-2:]
            self._devices["%s:%s" % (kind.lower(), number)] = device.name
        default = "gpu:0" if "gpu:0" in self._devices else "cpu:0"
        self._device = chosen_device("TensorFlow", self.name, options, sorted(self._devices), default)
        self._device_name = self._devices[self._device]
        self._on_cpu = self._device.startswith("cpu")
        # What may be a view of an argument is copied (`_copied`). An error may leave a GPU, and all that lies there,
        # unusable.
        self.keeps_updates = self._on_cpu
        # In the kernel nothing could compute again what a call that fails has overwritten.
        self.can_overwrite = self._on_cpu and not self._in_kernel
        self._precisions = precisions(self._has_tf32())
        self._precision = chosen_precision("TensorFlow", self.name, options, self._device, self._precisions)
        if self._in_kernel:
            check_environment("TensorFlow", self.name, self._precision, self._device)
        else:
            tf.config.experimental.enable_tensor_float_32_execution(self._precision != FLOAT32[0])
        self._take_shortcuts()
        with tf.device("/device:CPU:0"):
            kept = float(self.to_numpy(tf.constant([1e-40]) * tf.constant([0.5]))[0]) > 0
            if not self._in_kernel:
                # The first one warns, once, that oneDNN has none for this processor: in the log, and not in a cell.
                tf.transpose(tf.constant([[True, False]]))
        self._denormals = settled_denormals("TensorFlow", denormals, kept, self._in_kernel, self._notes, "was loaded")

    def _set_threads(self, threads):
        if threads:
            try:
                tf.config.threading.set_intra_op_parallelism_threads(int(threads))
                if self._in_kernel:
                    self._notes.append(SHARED_THREADS % ("TensorFlow", int(threads), "TensorFlow"))
            except RuntimeError as error:
                # It has started already, and takes no other number in this process.
                if self._threads() != int(threads):
                    raise settled_threads("TensorFlow", self.name, self._threads(), threads) from error

    def _threads(self):
        configured = tf.config.threading.get_intra_op_parallelism_threads()
        if configured:
            return configured
        try:
            from_environment = int(os.environ.get("TF_NUM_INTRAOP_THREADS", "0"))
        except ValueError:
            from_environment = 0
        if from_environment:
            return from_environment
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    def _has_tf32(self):
        """Whether the device is a GPU of NVIDIA's that multiplies in TensorFloat-32."""
        kind, number = self._device.split(":")
        if kind != "gpu":
            return False
        details = tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[int(number)])
        return details.get("compute_capability", (0,)) >= (8, 0)

    def _at_precision(self, call):
        """The call of a function, in the kernel without the user's own choice between float32 and TensorFloat-32."""
        if not self._in_kernel:
            return call
        # What is rounded to bfloat16 has exact products in TensorFloat-32.
        wanted = self._precision != FLOAT32[0]
        enabled = tf.config.experimental.tensor_float_32_execution_enabled
        enable = tf.config.experimental.enable_tensor_float_32_execution

        def call_alone(arguments):
            before = enabled()
            if before == wanted:
                return call(arguments)
            try:
                enable(wanted)
                return call(arguments)
            finally:
                enable(before)

        return call_alone

    @contextmanager
    def _own_settings(self):
        """Without the user's callbacks for ops (tf.debugging.enable_check_numerics), which change what is traced."""
        engine = None
        if self._in_kernel:
            from tensorflow.python.eager import context

            engine = context.context()
        before = getattr(engine, "invoking_op_callbacks", None)
        if before is None:
            yield
            return
        try:
            engine.invoking_op_callbacks = True
            yield
        finally:
            engine.invoking_op_callbacks = before

    def _take_shortcuts(self):
        """Finds TensorFlow's inner entries for making a tensor and calling a function, 2-4 times as fast.

        Where a version lacks one of them, the public ones serve.
        """
        try:
            from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
            from tensorflow.python import pywrap_tfe
            from tensorflow.python.eager import context, core
            from tensorflow.python.framework import ops

            config = config_pb2.ConfigProto.FromString(context.context().function_call_options.config_proto_serialized)
            rewrites = config.graph_options.rewrite_options
            # These three compute something else: (x + 1e30) - 1e30 becomes x, log(x + 1) log1p(x), and a relu that is
            # fused with the product or convolution before it 0 of NaN. A fused depthwise one may end the process.
            rewrites.arithmetic_optimization = rewriter_config_pb2.RewriterConfig.OFF
            rewrites.constant_folding = rewriter_config_pb2.RewriterConfig.OFF
            rewrites.remapping = rewriter_config_pb2.RewriterConfig.OFF
            # These compute in half the bits, if the user has chosen that for their own programs.
            for name in ("", "_mkl", "_cpu", "_onednn_bfloat16"):
                if hasattr(rewrites, "auto_mixed_precision" + name):
                    setattr(rewrites, "auto_mixed_precision" + name, rewriter_config_pb2.RewriterConfig.OFF)
            settings = "config_proto", config.SerializeToString()
            engine = context.context()
            make = ops.EagerTensor
            failure, public_failure = core._NotOkStatusException, core._status_to_exception

            def prepare(concrete, inline=False):
                name = concrete._inference_function.name
                name = name.decode("utf-8") if isinstance(name, bytes) else name
                count = len(concrete.outputs)
                device = self._device_name
                execute = pywrap_tfe.TFE_Py_Execute
                attributes = ("executor_type", INLINE if inline else "") + settings

                def call(arguments):
                    try:
                        return execute(engine._handle, device, name, arguments, attributes, count)
                    except failure as error:
                        raise public_failure(error) from None

                # The function lives as long as `concrete`.
                call.keep = concrete
                return call

            probe = np.arange(3, dtype=np.float32)
            with tf.init_scope():
                concrete = tf.function(lambda x: [x], autograph=False).get_concrete_function(
                    tf.TensorSpec((None,), tf.float32)
                )
                (got,) = prepare(concrete)([make(probe, self._device_name, None)])
            if not np.array_equal(np.asarray(got._numpy()), probe):
                raise ValueError("a shortcut gave a wrong value")
        except (ImportError, AttributeError, TypeError, ValueError):
            self._prepare = None
            self._make = self._make_publicly
        else:
            self._prepare = prepare
            self._make = make

    def _make_publicly(self, array, device, dtype):
        with tf.device(device):
            return tf.constant(array)

    def facts(self):
        return {
            "version": tf.__version__,
            "device": self._device,
            "devices": sorted(self._devices),
            "threads": self._threads(),
            "precision": self._precision,
            "precisions": self._precisions,
            "interpreter": "Python " + sys.version.split()[0],
            "denormals": self._denormals,
            "notes": self._notes,
        }

    def load(self, array):
        # Memory aligned to 64 bytes is shared, other memory copied.
        return self._make(np.asarray(array), self._device_name, None)

    def to_numpy(self, value):
        try:
            return np.asarray(value._numpy())
        except AttributeError:
            return np.asarray(value.numpy())

    def native(self, value, fresh):
        if fresh:
            return value
        with tf.init_scope(), tf.device(self._device_name):
            return tf.raw_ops.DeepCopy(x=value)

    def own(self, value):
        with tf.init_scope(), tf.device(self._device_name):
            return tf.Variable(tf.raw_ops.DeepCopy(x=value if self._is_tensor(value) else value.value()))

    @staticmethod
    def _is_tensor(value):
        """Whether a variable's value is a tensor, and not a variable of TensorFlow's own, which `overwrite` changes."""
        return not isinstance(value, tf.Variable)

    def synchronize(self):
        if hasattr(tf.test.experimental, "sync_devices") and not self._on_cpu:
            tf.test.experimental.sync_devices()
        # Done at once unless the process asked for asynchronous eager execution.
        from tensorflow.python.eager import context

        context.async_wait()

    def profiler(self):
        return TensorFlowProfiler(self)

    def compile(self, program, constants):
        if self._precision == "bfloat16":
            round_factors(program)
        leaves = program.inputs + program.slots + program.draws
        embed = self._prepare is not None
        embedded = [embed and array.nbytes <= EMBEDDED_BYTES for array in constants]
        large = [array for array, small in zip(constants, embedded) if not small]
        specs = [tf.TensorSpec(shape, dtype) for dtype, shape in leaves]
        specs += [tf.TensorSpec(array.shape, array.dtype) for array in large]
        copied, is_tensor = self._copied(program), self._is_tensor
        outputs, first = len(program.outputs), len(program.leaves)

        def computed(arguments, numbers, copied):
            values, held = list(arguments[: len(leaves)]), list(arguments[len(leaves) :])
            for array, small in zip(constants, embedded):
                values.append(tf.constant(array) if small else held.pop(0))
            values = lower(program, values, ops.SCOPED)
            results = [values[number] for number in numbers]
            for position in copied:
                results[position] = tf.raw_ops.DeepCopy(x=results[position])
            return results

        kept = [self._make(np.array(array), self._device_name, None) for array in large]
        make, device = self._make, self._device_name

        def called(call, feeds, state, draws):
            arguments = [make(array, device, None) for array in feeds]
            arguments.extend(state)
            if draws:
                arguments.extend([make(array, device, None) for array in draws])
            if kept:
                arguments.extend(kept)
            try:
                return call(arguments)
            except Exception as error:
                located = _located(program, error)
                if located is None:
                    raise
                raise located from error

        kinds = set(instruction.op for instruction in program.instructions)
        # On a GPU one would have to wait for what the graph without guards says at the end.
        guards = _Guards(needed=not self._on_cpu or kinds.isdisjoint(windows.OPS))
        calls = {}

        def guarded_step(*given):
            return computed(given, program.results(), copied)

        def unguarded_step(*given):
            with windows.unguarded(program) as sums:
                return guarded_step(*given) + [windows.all_finite(sums)]

        def prepared(step):
            if step not in calls:
                run.concrete = self._traced(step, specs)
                again = None if kinds & LONG else lambda: self._traced(step, specs)
                calls[step] = self._call(run.concrete, again)
            return calls[step]

        def run(feeds, state, draws):
            if not all(map(is_tensor, state)):
                state = [value if is_tensor(value) else value.value() for value in state]
            tried = guards.dispensable(feeds, draws)
            if tried:
                try:
                    results = called(prepared(unguarded_step), feeds, state, draws)
                    if results.pop():
                        return results[:outputs], results[outputs:]
                except Exception:
                    # It may come of a maximum that passed over NaN. What doesn't is raised again below.
                    pass
            results = called(prepared(guarded_step), feeds, state, draws)
            # An error says nothing of the values.
            guards.needed = guards.needed or tried
            return results[:outputs], results[outputs:]

        if self.overwrites and self._prepare is not None and program.updates:
            run.overwrite = self._overwriting(program, computed, specs, copied, called, guards)
        else:
            prepared(guarded_step if guards.needed else unguarded_step)

        run.fresh = [
            i for i in program.computed() if self._computes_afresh(program.instructions[program.outputs[i] - first])
        ]
        if not program.results():

            def run(feeds, state, draws):
                return [], []

        return run

    def _traced(self, function, specs):
        with self._own_settings(), tf.init_scope(), tf.device(self._device_name):
            return tf.function(function, autograph=False).get_concrete_function(*specs)

    def _call(self, concrete, again=None):
        """The call of a traced function; `again` traces it once more, where a call that has failed may be repeated."""
        if self._prepare is None:
            return self._at_precision(_public_call(concrete))
        inline = again is not None and self._on_cpu and not self.watched and not _calls_functions(concrete)
        call = self._at_precision(self._prepare(concrete, inline))
        if not inline:
            return call

        def repeated(arguments):
            try:
                return call(arguments)
            except Exception:
                # Only the default executor's errors name the node.
                return self._at_precision(self._prepare(again()))(arguments)

        return repeated

    def _overwriting(self, program, computed, specs, copied, called, guards):
        """`run.overwrite`: the updated slots are variables of TensorFlow's own, which its ops add to in place.

        An op that would overwrite what something else still needs makes a copy first. Without guards, nothing is
        written unless what `windows.unguarded` tells is finite.
        """
        updated = sorted(set(slot for slot, _ in program.updates))
        start, outputs = len(program.inputs), len(program.outputs)
        specs = list(specs)
        for slot in updated:
            specs[start + slot] = tf.TensorSpec((), tf.resource)
        uses = Counter(number for instruction in program.instructions for number in instruction.inputs)
        uses.update(program.results())
        ways = [
            self._in_place(program, slot, number) if uses[number] == 1 else None for slot, number in program.updates
        ]
        # What a way in place needs instead of the new value, and what is copied
        numbers = program.outputs + [n if way is None else way[1] for way, (_, n) in zip(ways, program.updates)]
        copied = [position for position in copied if position < outputs or ways[position - outputs] is None]

        def guarded_step(*given):
            arguments = list(given)
            handles = {slot: arguments[start + slot] for slot in updated}
            for slot, handle in handles.items():
                dtype, shape = program.slots[slot]
                read = tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)
                read.set_shape(shape)
                arguments[start + slot] = read
            results = computed(arguments, numbers, copied)
            with tf.control_dependencies(windows.refusal()):
                for (slot, _), way, value in zip(program.updates, ways, results[outputs:]):
                    assign = tf.raw_ops.AssignVariableOp if way is None else way[0]
                    assign(resource=handles[slot], value=value)
            return results[:outputs]

        def unguarded_step(*given):
            with windows.unguarded(program):
                return guarded_step(*given)

        calls, is_tensor = {}, self._is_tensor

        def prepared(step):
            if step not in calls:
                calls[step] = self._call(self._traced(step, specs))
            return calls[step]

        def overwrite(feeds, state, draws, begin):
            given = [value if is_tensor(value) else value.value() for value in state]
            for slot in updated:
                given[slot] = state[slot].handle
            try:
                results = None
                if guards.dispensable(feeds, draws):
                    try:
                        results = called(prepared(unguarded_step), feeds, given, draws)
                    except Exception as error:
                        guards.needed = True
                        if not windows.refused(error):
                            raise
                if results is None:
                    results = called(prepared(guarded_step), feeds, given, draws)
            except Exception:
                # It doesn't say how far it came.
                begin()
                raise
            begin()
            return results, [state[slot] for slot, _ in program.updates]

        prepared(guarded_step if guards.needed else unguarded_step)
        return overwrite

    def _in_place(self, program, slot, number):
        """(an op that changes a variable, the number of what it takes) if that gives the new value; else None."""
        first, variable = len(program.leaves), len(program.inputs) + slot
        if number < first:
            return None
        instruction = program.instructions[number - first]
        kind = program.slots[slot]
        if instruction.op not in ("add", "subtract") or (instruction.dtype, instruction.shape) != kind:
            return None
        if kind[0] not in ("float32", "float64"):
            return None
        x, y = instruction.inputs
        if x == variable and program.values[y] == kind:
            return tf.raw_ops.AssignAddVariableOp if instruction.op == "add" else tf.raw_ops.AssignSubVariableOp, y
        if instruction.op == "add" and y == variable and program.values[x] == kind:
            return tf.raw_ops.AssignAddVariableOp, x
        return None

    def describe(self, program, run, names):
        concrete = getattr(run, "concrete", None)
        if concrete is None:
            return Backend.describe(self, program, run, names)
        definition = concrete.graph.as_graph_def()
        shapes = {tensor.op.name: tensor for op in concrete.graph.get_operations() for tensor in op.outputs[:1]}
        # Its arguments are the program's leaves, but for the constants that are part of it.
        given = {tensor.op.name: name for tensor, name in zip(concrete.inputs, names)}

        def lines(nodes, known):
            for node in nodes:
                if node.op in ("Placeholder", "NoOp"):
                    continue
                operands = [known.get(name.split(":")[0], name) for name in node.input]
                line = "%s = %s(%s)" % (node.name, node.op, ", ".join(operands))
                tensor = shapes.get(node.name) if known else None
                if tensor is not None:
                    dims = tensor.shape.as_list() if tensor.shape.rank is not None else ["?"]
                    line += " : " + type_of(tensor.dtype.name, dims)
                yield line

        listed = list(lines(definition.node, given))
        count = sum(node.op not in PASSIVE for node in definition.node)
        for function in definition.library.function:
            listed.append("function %s:" % function.signature.name)
            listed.extend("    " + line for line in lines(function.node_def, {}))
            count += sum(node.op not in PASSIVE for node in function.node_def)
        return {"kind": "the graph of a tf.function (its concrete function)", "ops": count, "text": "\n".join(listed)}

    def _copied(self, program):
        """Positions of results that are kept and may be views of an argument's memory, soon overwritten."""
        if not self._on_cpu:
            return []
        first, copied = len(program.leaves), []
        for position, (_, number) in enumerate(program.updates, len(program.outputs)):
            if number < first or not self._computes_afresh(program.instructions[number - first]):
                copied.append(position)
        return copied

    def _computes_afresh(self, instruction):
        """Whether the result lies in memory of its own."""
        # Without the shortcuts, TensorFlow may have rewritten x * 1 as x.
        return instruction.op in ops.FRESH and self._prepare is not None


class _Guards:
    """Whether a program's calls need the guards that `windows.unguarded` leaves out.

    Once a call's values weren't finite, those of the next ones aren't either as a rule.
    """

    def __init__(self, needed):
        self.needed = needed

    def dispensable(self, feeds, draws):
        """Whether a call may be tried without them."""
        return not self.needed and not any(0 in array.shape for array in chain(feeds, draws))


def _calls_functions(concrete):
    """Whether a graph has branches or loops, which the executor in the calling thread can't run."""
    definition = concrete.graph.as_graph_def()
    values = (value for node in definition.node for value in node.attr.values())
    return any(value.HasField("func") or value.list.func for value in values)


def _public_call(concrete):
    def call(arguments):
        return list(concrete(*arguments))

    return call


def _located(program, error):
    """An InstructionError of the instruction that TensorFlow names in its message; None if it names none."""
    # TensorFlow names it nowhere but in its message.
    match = re.search(r"node (?:[^ }]*/)?k(\d+)/", str(error))
    if match is None or int(match.group(1)) >= len(program.instructions):
        return None
    return InstructionError(program.instructions[int(match.group(1))], error)
