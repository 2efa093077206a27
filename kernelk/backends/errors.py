"""Errors that both sides of the contract know: the backend that raises them and the host that reports them."""


class CannotLower(Exception):
    """The engine has no way to do what an instruction asks; the message says what and why."""


class OptionError(ValueError):
    """An option that the engine can't honour: the message says what is allowed and the next command."""
