"""Checks a worker's replies: which fields each kind of request has to be answered with, and of what type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backends.serving.wire import Malformed


def check_reply(request: dict[str, Any], reply: dict[str, Any]) -> None:
    """Raises Malformed for a reply that can't be one to this request."""
    if "warnings" in reply:
        _need("warnings", _list_of(_is_warning)(reply["warnings"]))
    if "built" in reply:
        _need("built", _is_built(reply["built"]))
    if "error" in reply:
        error = reply["error"]
        _need("error", isinstance(error, dict))
        for name, fits in _ERROR.items():
            _need(f"error's {name}", fits(error.get(name)))
        return
    for name, fits in _FIELDS[request["do"]].items():
        _need(name, fits(reply.get(name)))
    if request["do"] == "load":
        _need("different", {number for number, _ in request["variables"]}.issuperset(reply["different"]))


def _need(field: str, fits: bool) -> None:
    if not fits:
        raise Malformed(f"its field '{field}' is missing or invalid")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_float(value: Any) -> bool:
    return type(value) is float


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_dict(value: Any) -> bool:
    return type(value) is dict


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: type(value) is list and all(map(fits, value))


def _is_warning(value: Any) -> bool:
    if type(value) is not list or len(value) != 4:
        return False
    names, text, file, line = value
    return _list_of(_is_text)(names) and bool(names) and _is_text(text) and _is_text(file) and _is_count(line)


def _is_built(value: Any) -> bool:
    return (
        _is_dict(value)
        and _is_count(value.get("programs"))
        and _is_count(value.get("left"))
        and _list_of(_is_text)(value.get("problems"))
    )


def _is_row(value: Any) -> bool:
    return (
        _is_dict(value)
        and _is_text(value.get("name"))
        and _is_number(value.get("calls"))
        and _is_number(value.get("seconds"))
        and _or_none(_is_count)(value.get("instruction"))
        and (value.get("key") is None or type(value["key"]) in (int, float, str))
    )


def _is_profiler(value: Any) -> bool:
    return (
        _is_dict(value)
        and _is_text(value.get("label"))
        and type(value.get("of_device")) is bool
        and _is_count(value.get("sees"))
        and _is_text(value.get("remark"))
    )


def _is_keeper(value: Any) -> bool:
    return value is None or (_list_of(_is_count)(value) and len(value) > 1)


def _are_facts(value: Any) -> bool:
    lists = ("devices", "precisions", "notes", "while_compiling")
    return (
        _is_dict(value)
        and _is_text(value.get("version"))
        and _or_none(_is_text)(value.get("device"))
        and _or_none(_is_count)(value.get("threads"))
        and _or_none(_is_text)(value.get("precision"))
        and all(_list_of(_is_text)(value.get(name, [])) for name in lists)
        and all(_is_text(value.get(name, "")) for name in ("machine", "machine_key", "processor"))
        and _is_count(value.get("cores", 0))
    )


def _is_histogram(value: Any) -> bool:
    return _is_dict(value) and _list_of(_is_count)(value.get("counts")) and _list_of(_is_number)(value.get("edges"))


def _are_figures(value: Any) -> bool:
    return (
        _is_dict(value)
        and all(_is_count(value.get(name)) for name in ("looked_at", "nans", "infinities"))
        and all(_or_none(_is_number)(value.get(name)) for name in ("minimum", "maximum", "mean", "std"))
        and _or_none(_is_histogram)(value.get("histogram"))
        and _list_of(_list_of(lambda one: type(one) in (bool, int, float)))(value.get("corner"))
    )


_ERROR: dict[str, Callable[[Any], bool]] = {
    "type": _is_text,
    "message": _is_text,
    "allowed": _is_text,
    "next_step": _is_text,
    "instruction": _or_none(_is_count),
    "inside": _list_of(_is_count),
    "trace": _is_text,
    "changed": lambda value: type(value) is bool,
    "device_lost": lambda value: type(value) is bool,
}

# A worker sends "facts" unasked once it has started. The methods of `Executor` document the fields.
_FIELDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "facts": {
        "facts": _are_facts,
        "ops": _list_of(_is_text),
        "dtypes": _list_of(_is_text),
        "specialises": _is_text,
        "keeps": lambda value: type(value) is bool,
        "overwrites": lambda value: type(value) is bool,
        "profiler": _or_none(_is_profiler),
    },
    "attach": {},
    "compile": {
        "seconds": _is_float,
        "bytes": _is_count,
        "maps": _is_count,
        "stages": _or_none(lambda value: type(value) is list),
        "building": lambda value: type(value) is bool,
    },
    "build": {"built": _is_built},
    "load": {"different": _list_of(_is_count)},
    "fetch": {},
    "checkpoint": {"problem": _is_text, "keeper": _is_keeper},
    "restore": {"cut": _is_text},
    "checksum": {"sums": _list_of(_is_count)},
    "summarise": {"figures": _are_figures},
    "give_back": {},
    "run": {"seconds": _is_float},
    "time": {"compile": _is_float, "first": _is_float},
    "describe": {"kind": _is_text, "ops": _is_count, "text": _is_text},
    "sample": {"samples": _list_of(_is_float)},
    "watch": {"rows": _list_of(_is_row), "seconds": _is_float},
    "transfers": {"load": _list_of(_is_float), "deliver": _list_of(_is_float), "commit": _list_of(_is_float)},
    "release": {},
}
