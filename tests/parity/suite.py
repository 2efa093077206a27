"""All cases, and the account of every name: it has cases, or a reason why it needs none."""

from __future__ import annotations

import csv
from pathlib import Path

from kernelk import backend as K

from . import arranging, elementwise, loops, networks, reductions, state, windows
from .case import Case

FAMILIES: dict[str, list[Case]] = {
    family.__name__.rpartition(".")[2]: family.CASES  # type: ignore[attr-defined]
    for family in (elementwise, reductions, arranging, networks, windows, loops, state)
}

_SETTING = "a setting of the session, the same for all engines"
_PROCESS_SETTING = "a setting of the process, the same for all engines"
_FACT = "tells what the graph knows; no engine is involved"
_NAMES = "handles names; no engine is involved"
_COMPUTES = "runs in every case here"
_MEANINGLESS = "means nothing here, and computes nothing"
# Names without cases, and why.
WITHOUT = {
    "Function": _COMPUTES,
    "backend": _SETTING,
    "batch_get_value": "reads committed values; an engine is asked only where it alone has them",
    "batch_set_value": "writes committed values; no engine is involved",
    "clear_session": _SETTING,
    "control_dependencies": _MEANINGLESS,
    "count_params": _FACT,
    "dtype": _FACT,
    "eager": _MEANINGLESS,
    "epsilon": _PROCESS_SETTING,
    "eval": _COMPUTES,
    "floatx": _PROCESS_SETTING,
    "function": _COMPUTES,
    "get_uid": _NAMES,
    "get_value": "reads committed values; an engine is asked only where it alone has them",
    "get_variable_shape": _FACT,
    "image_data_format": _PROCESS_SETTING,
    "int_shape": _FACT,
    "is_keras_tensor": _FACT,
    "is_placeholder": _FACT,
    "is_symbolic": _FACT,
    "is_tensor": _FACT,
    "is_variable": _FACT,
    "learning_phase": "fed in the cases of in_train_phase and in_test_phase",
    "manual_variable_initialization": _MEANINGLESS,
    "name_scope": _NAMES,
    "ndim": _FACT,
    "normalize_data_format": "checks a name; no engine is involved",
    "reset_uids": _NAMES,
    "set_epsilon": _PROCESS_SETTING,
    "set_floatx": _PROCESS_SETTING,
    "set_image_data_format": _PROCESS_SETTING,
    "set_learning_phase": _SETTING,
    "set_random_seed": _SETTING,
    "set_value": "writes committed values; no engine is involved",
    "symbolic": _MEANINGLESS,
}


def cases(family: str | None = None) -> list[Case]:
    """Every case (of one family) whose function is there."""
    chosen = FAMILIES.values() if family is None else [FAMILIES[family]]
    return [case for table in chosen for case in table]


def tested() -> list[str]:
    """The names that have cases."""
    return sorted({case.function for case in cases()})


def keras_names() -> list[str]:
    """The names of the Keras 2.3.1 backend."""
    with open(Path(__file__).parent.parent / "data" / "k_api.tsv", encoding="utf-8") as file:
        return [row["name"] for row in csv.DictReader(file, delimiter="\t")]


def names() -> list[str]:
    """The names of Keras and those that K has."""
    return sorted({*keras_names(), *K.__all__})
