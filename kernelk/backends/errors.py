"""Errors that both sides of the contract know: the backend that raises them and the host that reports them."""


class CannotLower(Exception):
    """The engine can't do what an instruction asks; the message says what and why."""


class OptionError(ValueError):
    """An option that the engine can't honour; `allowed` and `next_step` go into the kernel's own error."""

    def __init__(self, problem, allowed="", next_step=""):
        ValueError.__init__(self, problem)
        self.allowed = allowed
        self.next_step = next_step
