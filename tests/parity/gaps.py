"""The known gaps of engines: the tables in tests/known_gaps, one for each engine that has gaps."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from .case import Trial

FOLDER = Path(__file__).parent.parent / "known_gaps"
# Over all engines, counted by cause.
MOST = 10


@dataclass(frozen=True)
class Gap:
    """Cases that an engine refuses. `function`, `label` and `dtype` are patterns as for file names.

    `cause` is one or two words, `reason` says why the engine can't, `proof` how that was seen, and `message` is what
    its refusal must say.
    """

    engine: str
    function: str
    label: str
    dtype: str
    cause: str
    reason: str
    proof: str
    message: str

    def covers(self, trial: Trial) -> bool:
        """Whether this trial is one of them."""
        case = trial.case
        pairs = ((case.function, self.function), (case.label, self.label), (trial.dtype, self.dtype))
        return all(fnmatchcase(value, pattern) for value, pattern in pairs)


def load() -> list[Gap]:
    """All gaps of all engines."""
    found = []
    for file in sorted(FOLDER.glob("*.toml")):
        for entry in tomllib.loads(file.read_text(encoding="utf-8"))["gap"]:
            found.append(Gap(engine=file.stem, **{"label": "*", "dtype": "*", **entry}))
    return found


GAPS = load()


def gap_of(engine: str, trial: Trial) -> Gap | None:
    """The gap that this trial falls into, if it does."""
    return next((gap for gap in GAPS if gap.engine == engine and gap.covers(trial)), None)
