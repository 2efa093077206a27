"""Builds a function's C code beside the calls: a forked process fills the compile cache while numpy code answers."""

import contextlib
import os
import sys
import weakref

from ..serving.watcher import let_go

# Theano's lock of the cache lets one process at a time run the compiler; more would only wait, and take memory.
MOST_AT_ONCE = 3


class NotBuilt(BaseException):
    """Raised where the C compiler would run, and nobody waits for it. Not an Exception: Theano catches these."""


class Guard(object):
    """Stands before Theano's use of the C compiler; inside `closed`, what isn't in the cache raises NotBuilt."""

    def __init__(self, theano):
        self._cmodule = theano.gof.cmodule
        self._is_closed = False
        self._refreshed = False
        cache, guard = self._cmodule.ModuleCache, self
        opened = cache.module_from_key

        def module_from_key(self, key, lnk=None, keep_lock=False):
            if not guard._is_closed:
                return opened(self, key, lnk, keep_lock)
            module = guard._known(self, key, lnk)
            if module is None and not guard._refreshed:
                guard._refreshed = True
                guard._refresh()
                module = guard._known(self, key, lnk)
            if module is None:
                raise NotBuilt
            return module

        cache.module_from_key = module_from_key

    def _known(self, cache, key, lnk):
        """The module with this key, or with this source; Theano would wait for its lock to note the key."""
        module = cache._get_from_key(key)
        if module is None:
            data = cache.module_hash_to_key_data.get(self._cmodule.get_module_hash(lnk.get_src_code(), key))
            module = None if data is None else cache._get_from_key(None, data)
        return module

    def _refresh(self):
        """Makes modules known that other processes have built, without waiting for Theano's lock either."""
        self._cmodule.get_module_cache(self._cmodule.config.compiledir).refresh(cleanup=False)

    @contextlib.contextmanager
    def closed(self):
        """A context in which the C compiler doesn't run."""
        self._is_closed, self._refreshed = True, False
        try:
            yield
        finally:
            self._is_closed = False


class Switching(object):
    """A compiled program whose function is replaced between two calls."""

    def __init__(self, run):
        self.run = run
        if hasattr(run, "overwrite"):
            self.overwrite = self._overwrite

    def __call__(self, feeds, state, draws, into=None):
        return self.run(feeds, state, draws, into)

    def _overwrite(self, feeds, state, draws, begin):
        return self.run.overwrite(feeds, state, draws, begin)


class _Build(object):
    def __init__(self, make, use, switching):
        self.make = make
        self.use = use
        self.switching = weakref.ref(switching)
        self.pid = None


class Builds(object):
    """The functions whose C code is being built, in the order in which they were wanted."""

    def __init__(self, guard, scratch):
        self._guard = guard
        self._scratch = scratch
        self.pending = []

    def add(self, make, use, switching):
        """Has `make()`, which compiles a function with C, done in a process of its own.

        When it is there, `use(make())` is what `switching` runs.
        """
        self.pending.append(_Build(make, use, switching))
        self._start()

    def _start(self):
        running = sum(build.pid is not None for build in self.pending)
        for build in self.pending:
            if build.pid is None and running < MOST_AT_ONCE:
                try:
                    build.pid = self._forked(build)
                except OSError:
                    return  # Without memory or process numbers it is tried again at the next call.
                running += 1

    def _forked(self, build):
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            # The wire above all: while it is open here, nobody would notice the worker's end. What Theano prints of a
            # failure would come in some later cell.
            let_go(())
            for _ in range(3):
                os.open(os.devnull, os.O_RDWR)
            build.make()
            status = 0
        except BaseException as error:
            with contextlib.suppress(OSError), open(self._report(os.getpid()), "w") as file:
                file.write(_reason(error))
        finally:
            os._exit(status)

    def _report(self, pid):
        return os.path.join(self._scratch, "build-%d" % pid)

    def take_over(self, wait):
        """Lets functions run as C code whose build is over; `wait`: all of them, when they are built.

        Returns how many there were, and for each build that has failed its reason; numpy code goes on there.
        """
        switched, problems = 0, []
        for build in list(self.pending):
            if build.pid is not None:
                pid, status = os.waitpid(build.pid, 0 if wait else os.WNOHANG)
                if not pid:
                    continue
                if status:
                    self.pending.remove(build)
                    problems.append(self._ending(pid, status))
                    continue
            elif not wait:
                continue
            self.pending.remove(build)
            switching = build.switching()
            if switching is None:
                continue
            try:
                switching.run = build.use(self._made(build))
                switched += 1
            except Exception as error:
                problems.append(_reason(error))
        if self.pending:
            self._start()
        return switched, problems

    def _made(self, build):
        try:
            with self._guard.closed():
                return build.make()
        except NotBuilt:
            # Of some op the cache has nothing that another process can use.
            return build.make()

    def _ending(self, pid, status):
        if os.WIFSIGNALED(status):
            return "its process was ended by signal %d" % os.WTERMSIG(status)
        try:
            with open(self._report(pid)) as file:
                reason = file.read()
            os.unlink(self._report(pid))
            return reason
        except OSError:
            return "its process ended with status %d" % os.WEXITSTATUS(status)


def _reason(error):
    # Of Theano's own errors, the rest is its graph.
    text = str(error.args[0] if error.args else error).strip().split("\n")[0][:500]
    return text or type(error).__name__
