"""The entry point for IPython: `%kbackend`, `%load_ext kernelk` and `%unload_ext kernelk`."""

from __future__ import annotations

import sys
from copy import deepcopy
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_magic, magics_class
from traitlets import TraitError

from .errors import ArgumentError
from .notebook import completion, statements
from .notebook.arguments import argument, magic_arguments, parse
from .notebook.graph_magics import GraphMagics
from .notebook.inspection_magics import InspectionMagics
from .notebook.measuring_magics import MeasuringMagics
from .session.current import stop_engines
from .source import CELL


@magics_class
class KernelKMagics(Magics):
    """kernelk's magics; each has a Python twin that does the work."""

    # The options of `%kbackend` that do something else than choosing an engine; each stands alone, or with `--on`.
    actions = ("list", "stop", "install", "doctor", "log", "keras3_back")
    actions_elsewhere = ("stop", "install", "doctor", "log")

    @staticmethod
    def _act(action: str, value: Any, on: str | None = None) -> Any:
        """Calls an action's Python twin; the options' values, if given, are the arguments."""
        # Imported when called, and never at the Tab key: `%load_ext kernelk` has to stay light.
        if action == "stop":
            from .session.swap import stop_backend

            return stop_backend(value[0] if len(value) == 1 else value, on)
        if action == "install":
            from .manage.install import install

            for name in value:
                install(name, on=on)
            return None
        if action == "doctor":
            from .manage.doctor_report import doctor

            return doctor(value, on)
        if action == "log":
            from .manage.logs import log

            return log(value or None, on)
        if action == "keras3_back":
            from .keras2 import disable_keras2

            return disable_keras2()
        from .manage.status import list_backends

        return list_backends()

    @magic_arguments("one engine's name", "%kbackend tensorflow")
    @argument("name", nargs="?", help="the engine; without it, options apply to the active one")
    @argument("--device", metavar="D", help="the device, as the engine lists it: cpu:0, cuda:0 ...; or default")
    @argument("--threads", metavar="N", help="how many threads it may use; or default")
    @argument("--precision", metavar="P", help="how it multiplies float32: float32, tf32 or bfloat16")
    @argument("--in-kernel", action="store_true", help="run it in the notebook's own process")
    @argument("--worker", action="store_true", help="run it in a process of its own (the default)")
    @argument("--no-compiler", action="store_true", help="Theano: compile no C: starts at once, runs slower")
    @argument("--compiler", action="store_true", help="Theano: use the C compiler again (the default)")
    @argument("--on", metavar="CLUSTER", help="run it on the machine of this ipyparallel cluster or profile")
    @argument("--save", action="store_true", help="save the choice in keras.json, for later sessions")
    @argument("--drop-calls", action="store_true", help="give up calls that were lost and that nothing can repeat")
    @argument("--list", action="store_true", help="show the table of engines")
    @argument("--stop", nargs="+", metavar="NAME", help="stop engines and free their memory")
    @argument("--install", nargs="+", metavar="NAME", help="install engines that need an environment of their own")
    @argument("--doctor", nargs="*", metavar="NAME", help="check these engines, or all")
    @argument("--log", nargs="?", const="", metavar="NAME", help="a worker's latest output (the active engine's)")
    @argument("--keras2", action="store_true", help="import keras gives Keras 2.3.1 on kernelk")
    @argument("--keras3-back", action="store_true", help="import keras gives the installed Keras again")
    @line_magic
    def kbackend(self, line: str) -> Any:
        """Shows or changes the engine under K, its device, its threads and its precision.

        Examples::

          %kbackend                         the table of engines, and which setting chose the active one
          %kbackend theano                  makes Theano the active engine: variables move, functions keep working
          %kbackend torch --threads 2       the same for PyTorch, with 2 threads, whether or not it is running
          %kbackend jax --device cuda:0     on that device
          %kbackend --precision tf32        float32 is multiplied in TensorFloat-32, on a GPU that has it
          %kbackend --threads default       lets the active engine decide again
          %kbackend torch --in-kernel       in the notebook's own process: tensors aren't copied
          %kbackend theano --no-compiler    compiles no C: the first result comes at once, later ones are slower
          %kbackend theano --compiler       undoes that
          %kbackend torch --on gpu-box      on the machine of the ipyparallel cluster gpu-box; it is torch@gpu-box then
          %kbackend torch --on hpc[2]       the same, by the cluster's engine number 2
          %kbackend tensorflow --save       and in every session from now on
          %kbackend numpy --drop-calls      if calls were lost with a worker and nothing can repeat them: without them
          %kbackend --stop torch            stops it and frees its memory; it starts again when needed
          %kbackend --stop theano cntk      both of them
          %kbackend --install theano cntk   builds their environments
          %kbackend --install theano --on gpu-box   on that cluster's machines; also with --doctor, --stop and --log
          %kbackend --doctor                checks every engine, and shows what is missing and the next command
          %kbackend --log cntk              the latest output of CNTK's worker, also after it ended
          %kbackend --keras2                `import keras` gives Keras 2.3.1, which runs on the active engine
          %kbackend theano --keras2         both in one line
          %kbackend --keras3-back           `import keras` gives the installed Keras again

        Python twins: kernelk.list_backends(), kernelk.set_backend("torch", device="cpu:0", threads=2, in_kernel=True,
        save=True), kernelk.set_backend("torch", precision="tf32"), kernelk.set_backend("theano", compiler=False),
        kernelk.set_backend("torch", on="gpu-box"),
        `with kernelk.using("torch"):`, kernelk.stop_backend("torch"), kernelk.install("theano"), kernelk.doctor(),
        kernelk.set_backend("numpy", drop_calls=True), kernelk.log("cntk"), kernelk.enable_keras2(),
        kernelk.disable_keras2().
        """
        given = parse(self.kbackend, line)
        words = [name for name, value in vars(given).items() if value not in (None, False)]
        chosen = [name for name in words if name in self.actions]
        if chosen:
            beside = {chosen[0], "on"} if chosen[0] in self.actions_elsewhere else {chosen[0]}
            if not beside.issuperset(words):
                option = chosen[0].replace("_", "-")
                raise ArgumentError(
                    f"%kbackend --{option} can't be combined with other options or names, as in {line.strip()!r}",
                    next_step=self._alone(chosen[0], getattr(given, chosen[0]), given.on),
                )
            return self._act(chosen[0], getattr(given, chosen[0]), given.on)
        if not words:
            return self._act("list", None)
        if words == ["keras2"]:
            return self._enable_keras2()
        in_kernel = self._either(given.in_kernel, given.worker, "--in-kernel and --worker", "torch --worker")
        compiler = self._either(
            given.compiler, given.no_compiler, "--compiler and --no-compiler", "theano --no-compiler"
        )
        from . import config
        from .engines import registry
        from .engines.options import requested_options
        from .remote.clusters import placed
        from .session.current import current
        from .session.swap import check_saved, drop_lost_calls, swap

        name = current().active if given.name is None else given.name
        name = placed(name, given.on)
        changes = requested_options(
            registry.engine(name), given.device, given.threads, in_kernel, compiler, given.precision
        )
        if given.save:
            check_saved(name)
        if given.keras2:
            # After all that can refuse the line; before the swap, as Keras may have to be fetched.
            self._enable_keras2()
        if given.drop_calls:
            drop_lost_calls(current())
        report = swap(current(), name, "%kbackend", changes)
        if given.save:
            report.saved = config.save_backend(name)
        return report

    @staticmethod
    def _enable_keras2() -> None:
        from .keras2 import enable_keras2

        enable_keras2()

    @staticmethod
    def _alone(action: str, value: Any, on: str | None) -> str:
        """The line that does this action alone."""
        if on is not None and action == "list":
            return f"%kbackend --doctor --on {on}, which shows what is there"
        names = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        return " ".join(["%kbackend", f"--{action.replace('_', '-')}", *names, *(["--on", on] if on else [])])

    @staticmethod
    def _either(yes: bool, no: bool, both: str, example: str) -> bool | None:
        """True, False, or None where neither of two options is given."""
        if yes and no:
            raise ArgumentError(f"%kbackend: {both} exclude each other", next_step=f"%kbackend {example}")
        return True if yes else False if no else None


class _Loaded:
    """The changes that `unload` undoes."""

    shell: InteractiveShell | None = None
    show_cell: Any = None
    settings: Any = None
    configuration: Any = None  # c.KernelK as it was before %config, which enters all that it sets


def load(shell: InteractiveShell) -> None:
    """Registers magics, settings and the cell counter, and reports problems in the settings' files."""
    if _Loaded.shell is not None:
        return
    from . import config
    from .display import messages
    from .notebook.settings import KernelK

    magics = KernelKMagics(shell)
    shell.register_magics(magics, MeasuringMagics(shell), InspectionMagics(shell), GraphMagics(shell))
    completion.load(shell, magics)
    shown = (MeasuringMagics, InspectionMagics, GraphMagics)
    statements.load(shell, {name for kind in shown for names in kind.magics.values() for name in names})
    problems = list(config.settings().problems)
    try:
        settings = KernelK(parent=shell)
    except TraitError as error:
        problems.append(f"c.KernelK in IPython's configuration: {error}; none of it is used until it is fixed")
        config.LIMITS = config.Limits()
        settings = KernelK()
    configurables: list[Any] = shell.configurables
    configurables.append(settings)
    settings.follow()

    def show_cell(info: Any = None) -> None:
        # Not `execution_count`: some versions of IPython raise it before this event, others after the cell.
        history = shell.history_manager
        CELL.number = len(history.input_hist_parsed) if history is not None else shell.execution_count

    shell.events.register("pre_run_cell", show_cell)
    show_cell()
    # The current cell's input is already in the history.
    CELL.number = max(CELL.number - 1, 1)
    _Loaded.shell, _Loaded.show_cell, _Loaded.settings = shell, show_cell, settings
    _Loaded.configuration = deepcopy(shell.config.get("KernelK"))
    for problem in problems:
        messages.say(f"kernelk: {problem}")


def unload(shell: InteractiveShell) -> None:
    """Undoes `load` and stops all workers; variables are kept, and the next use starts a worker again."""
    if _Loaded.shell is None:
        return

    widgets = sys.modules.get("kernelk.widgets")
    if widgets is not None:
        widgets.close_panels()
    shell.events.unregister("pre_run_cell", _Loaded.show_cell)
    keras2 = sys.modules.get("kernelk.keras2")
    if keras2 is not None:
        keras2.disable_keras2()
    completion.unload(shell)
    statements.unload(shell)
    ours: list[Any] = [_Loaded.settings]
    for kind_of_magics in (KernelKMagics, MeasuringMagics, InspectionMagics, GraphMagics):
        for kind, names in kind_of_magics.magics.items():
            for name in names:
                shell.magics_manager.magics[kind].pop(name, None)
        ours.append(shell.magics_manager.registry.pop(kind_of_magics.__name__, None))
    shell.configurables[:] = [one for one in shell.configurables if not any(one is other for other in ours)]
    _Loaded.settings.detach()
    shell.config.pop("KernelK", None)
    if _Loaded.configuration is not None:
        shell.config["KernelK"] = _Loaded.configuration
    _Loaded.shell = _Loaded.show_cell = _Loaded.settings = _Loaded.configuration = None
    CELL.number = 0
    stop_engines()
