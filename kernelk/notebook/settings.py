"""Takes settings from `%config KernelK` and ipython_config.py (`c.KernelK`); each takes effect at once."""

from __future__ import annotations

import contextlib
from typing import Any

from traitlets import Bool, Float, Integer, TraitError, Unicode, observe, validate
from traitlets.config import Configurable

from .. import config
from ..errors import ArgumentError, KernelKError, did_you_mean, joined
from ..session.current import PROCESS, current

_AMOUNTS = (
    *("compiled_bytes", "reevaluation_seconds", "log_bytes", "stuck_seconds"),
    *("commit_bytes", "repeat_seconds", "repeat_bytes"),
)


class KernelK(Configurable):
    """kernelk's settings. They hold until `%unload_ext kernelk`."""

    backend = Unicode(
        "",
        help="The engine's name. Set by %config, it swaps at once, as %kbackend does; in ipython_config.py it is the "
        "engine that a session starts with, unless KERNELK_BACKEND or KERAS_BACKEND is set. Always the active one.",
    ).tag(config=True)
    quiet = Bool(
        False,
        help="Keeps kernelk's own messages, and what engines print, out of the cells (as KERNELK_QUIET=1 does).",
    ).tag(config=True)
    compiled_bytes = Integer(
        config.LIMITS.compiled_bytes,
        help="How many bytes of compiled programs to keep per engine; the next compilation drops the oldest.",
    ).tag(config=True)
    reevaluation_seconds = Float(
        config.LIMITS.reevaluation_seconds,
        help="Seconds that a swap may spend evaluating again the tensors you have seen; 0 turns this off.",
    ).tag(config=True)
    log_bytes = Integer(
        config.LIMITS.log_bytes,
        help="How many bytes of an engine's output to keep for %kbackend --log.",
    ).tag(config=True)
    stuck_seconds = Float(
        config.LIMITS.stuck_seconds,
        help="Seconds after which a worker that makes no progress is ended, for runs where nobody is there to press "
        "Ctrl-C; 0 waits for ever.",
    ).tag(config=True)
    commit_bytes = Integer(
        config.LIMITS.commit_bytes,
        help="A call whose new values take more bytes than this leaves them with its worker, if the engine can: they "
        "are fetched when they are needed, and the call is repeated if the worker ends before that. 0: each call does.",
    ).tag(config=True)
    repeat_seconds = Float(
        config.LIMITS.repeat_seconds,
        help="After so many seconds of such calls all new values are fetched, or after 50 times as long as that takes, "
        "whichever is longer.",
    ).tag(config=True)
    repeat_bytes = Integer(
        config.LIMITS.repeat_bytes,
        help="How many bytes may be held to repeat such calls, their feeds above all; beyond it all new values are "
        "fetched.",
    ).tag(config=True)
    build_beside = Bool(
        config.LIMITS.build_beside,
        help="Whether Theano computes by numpy code while the C compiler builds a program that it hasn't built before. "
        "Without it, and after K.set_random_seed, and where times are measured, the compiler is waited for.",
    ).tag(config=True)

    def __init__(self, **kwargs: Any) -> None:
        self._following = True  # nothing is swapped while a file's settings are read
        self._session: Any = None
        super().__init__(**kwargs)
        self._following = False
        config.LIMITS.backend = self.backend

    def update_config(self, given: Any) -> None:
        """Called by `%config`. Sets only what it is given: an engine that it chose earlier mustn't come back."""
        known = self.traits(config=True)
        for name, value in given.get("KernelK", {}).items():
            if name not in known:
                hint = did_you_mean(name, known)
                raise ArgumentError(
                    f"KernelK has no setting '{name}'", allowed=f"{hint}it has {', '.join(sorted(known))}"
                )
            setattr(self, name, value)

    @validate(*_AMOUNTS)
    def _not_negative(self, proposal: Any) -> Any:
        if not 0 <= proposal["value"] < float("inf"):
            name, value = proposal["trait"].name, proposal["value"]
            example = getattr(config.Limits(), name)
            raise TraitError(
                joined(f"KernelK.{name} must be at least 0, not {value!r}", "", f"%config KernelK.{name} = {example}")
            )
        return proposal["value"]

    @validate("backend")
    def _known(self, proposal: Any) -> Any:
        if self._session is not None and proposal["value"] == self._session.active:
            # Shown as it is; an unknown name in an environment variable is reported at the first use.
            return proposal["value"]
        from ..engines import registry

        try:
            registry.engine(proposal["value"])
        except KernelKError as error:
            raise TraitError(f"KernelK.backend: {error}") from None
        return proposal["value"]

    @observe("quiet", "build_beside", *_AMOUNTS)
    def _put(self, change: Any) -> None:
        setattr(config.LIMITS, change["name"], change["new"])

    @observe("backend")
    def _swap(self, change: Any) -> None:
        if self._following:
            return
        from ..session.swap import swap

        session = current()
        try:
            swap(session, change["new"], "%config KernelK.backend")
        finally:
            # A swap that was refused has left the old engine active.
            self._show(session.active)

    def _show(self, active: str) -> None:
        self._following = True
        try:
            self.backend = active
        finally:
            self._following = False

    def _on_active(self, change: Any) -> None:
        self._show(change["new"])

    def follow(self) -> None:
        """Makes `backend` follow the active engine of the process's session, as soon as there is one."""
        PROCESS.observe(self._on_made, "session")
        if PROCESS.session is not None:
            self._attach(PROCESS.session)

    def _on_made(self, change: Any) -> None:
        self._attach(change["new"])

    def _attach(self, session: Any) -> None:
        self._session = session
        if not session.announced:
            # Nothing has been computed, and the user hasn't chosen an engine.
            session.active, session.chosen_by = config.chosen_backend()
        session.observe(self._on_active, "active")
        self._show(session.active)

    def detach(self) -> None:
        """Forgets the session and resets every setting to its default."""
        with contextlib.suppress(ValueError):
            # One that follows no session isn't among its observers.
            PROCESS.unobserve(self._on_made, "session")
        if self._session is not None:
            self._session.unobserve(self._on_active, "active")
            self._session = None
        vars(config.LIMITS).update(vars(config.Limits()))
