"""keras.json and environment variables: floatx, epsilon, image_data_format, and which setting chooses the engine."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import files
from .errors import ArgumentError, joined, one_line, printable
from .twins import as_typed, as_usable
from .visitors import PerVisitor

DEFAULTS: dict[str, Any] = {
    "image_data_format": "channels_last",
    "epsilon": 1e-07,
    "floatx": "float32",
    "backend": "tensorflow",
}
FLOATX = ("float16", "float32", "float64")
DATA_FORMATS = ("channels_last", "channels_first")

# A keras.json that has more bytes than this is none.
_MOST_BYTES = 1 << 20


def path() -> Path:
    """Returns the path of keras.json: in `$KERAS_HOME` if that is set, else in `$HOME/.keras`."""
    home = os.environ.get("KERAS_HOME")
    # Not Path.home, which raises for a user without a home, as containers have them.
    return (Path(home) if home else Path(os.path.expanduser("~"), ".keras")) / "keras.json"


def _check(field: str, value: Any) -> str | None:
    """Returns what is wrong with a field's value; None if nothing."""
    if field == "floatx" and value not in FLOATX:
        return f"allowed are {', '.join(FLOATX)}"
    if field == "image_data_format" and value not in DATA_FORMATS:
        return f"allowed are {', '.join(DATA_FORMATS)}"
    if field == "epsilon" and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1):
        return "allowed is a number between 0 and 1"
    if field == "backend" and not (isinstance(value, str) and value and value.isprintable() and len(value) < 100):
        return f"allowed is the name of a backend ({as_usable('%kbackend')} lists them)"
    return None


class _Fields(dict[str, Any]):
    """A JSON object that remembers which of its keys appeared more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        names = [name for name, _ in pairs]
        self.repeated = {name for name in names if names.count(name) > 1} if len(self) < len(names) else set()


def _parsed(content: bytes) -> _Fields:
    """Parses keras.json. Raises ValueError, in one line, if it isn't a valid file."""
    try:
        fields = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_Fields)
    except (RecursionError, MemoryError):
        raise ValueError("it is nested too deeply") from None
    if not isinstance(fields, _Fields):
        raise ValueError("it contains no JSON object")
    return fields


def _shown(value: Any) -> str:
    """A value as JSON on one line, its middle left out if it is long."""
    try:
        return printable(json.dumps(value), 60)
    except (RecursionError, ValueError):
        return f"a {type(value).__name__} that is nested too deeply"


class Config:
    """The settings, read once from keras.json; `problems` has a line for each field not taken."""

    def __init__(self) -> None:
        self.values = dict(DEFAULTS)
        self.problems: list[str] = []
        self.from_file: set[str] = set()

    def read(self) -> Config:
        """Reads keras.json, or creates it with the defaults where there is none; never overwrites one.

        Whatever is in its place, the defaults hold then, and one line says so.
        """
        file = path()
        shown = printable(file, 300)
        try:
            fields = _parsed(files.read_small(file, _MOST_BYTES))
        except FileNotFoundError:
            self._create(file)
            return self
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it isn't UTF-8"
            self.problems.append(f"{shown} can't be read ({reason}): the defaults are used; fix or delete the file")
            return self
        except ValueError as error:
            reason = printable(one_line(error), 120)
            self.problems.append(f"{shown} isn't valid JSON ({reason}): the defaults are used; fix or delete the file")
            return self
        for field, value in fields.items():
            if field not in DEFAULTS:
                continue
            wrong = _check(field, value)
            if field in fields.repeated:
                self.problems.append(
                    f'{shown}: "{field}" comes more than once; {json.dumps(DEFAULTS[field])} is used until it is fixed'
                )
            elif wrong:
                self.problems.append(
                    f'{shown}: "{field}" is {_shown(value)}, {wrong}; '
                    f"{json.dumps(DEFAULTS[field])} is used until it is fixed"
                )
            else:
                self.values[field] = value
                self.from_file.add(field)
        return self

    def _create(self, file: Path) -> None:
        if str(file).startswith("~"):
            return  # a user without a home
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # "x": a file that another process has just made is left alone.
            with file.open("x", encoding="utf-8") as handle:
                json.dump(DEFAULTS, handle, indent=4)
                handle.write("\n")
        except OSError:
            pass  # A read-only home is no reason to stop: the defaults hold.

    def save(self, field: str, value: Any) -> None:
        """Writes one field into keras.json and leaves everything else in it as it is.

        The file is replaced as a whole, or not at all. Raises OSError or ValueError with the reason.
        """
        file = path()
        fields: dict[str, Any] = dict(DEFAULTS)
        with contextlib.suppress(FileNotFoundError):
            fields = _parsed(files.read_small(file, _MOST_BYTES))
        fields[field] = value
        try:
            text = json.dumps(fields, indent=4)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        file.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(file) as new:
            new.write(f"{text}\n".encode())
        self.values[field] = value
        self.from_file.add(field)


_config: Config | None = None


def settings() -> Config:
    """The settings of the process, or a marimo visitor's copy of them; the file is read at the first call."""
    global _config
    if _config is None:
        _config = Config().read()
    return _config if _VISITORS is None else _VISITORS.get() or _config


def _copied() -> Config:
    assert _config is not None
    made = Config()
    made.values, made.problems, made.from_file = dict(_config.values), _config.problems, set(_config.from_file)
    return made


# marimo is there before the notebooks that it runs.
_VISITORS = PerVisitor("settings", _copied) if "marimo" in sys.modules else None


def reload() -> Config:
    """Discards all settings and reads the file again."""
    global _config
    _config = None
    return settings()


def _keras() -> Any:
    """The module with Keras 2's settings, if Keras runs on kernelk in this process: then only these count."""
    loader = sys.modules.get("keras.backend.load_backend")
    return sys.modules.get("keras.backend.common") if getattr(loader, "_BACKEND", "") == "kernelk.backend" else None


def _get(field: str) -> Any:
    keras = _keras()
    return getattr(keras, field)() if keras else settings().values[field]


def floatx() -> str:
    """The default float dtype."""
    return str(_get("floatx"))


def set_floatx(floatx: str) -> None:
    """Sets the default float dtype: float16, float32 or float64. Raises ArgumentError."""
    _set("floatx", str(floatx))


def epsilon() -> float:
    """The small number that keeps divisions and logarithms finite."""
    return float(_get("epsilon"))


def set_epsilon(e: float) -> None:
    """Sets epsilon. Raises ArgumentError unless it lies between 0 and 1."""
    _set("epsilon", e)


def image_data_format() -> str:
    """channels_last or channels_first."""
    return str(_get("image_data_format"))


def set_image_data_format(data_format: str) -> None:
    """Sets the default layout of images. Raises ArgumentError."""
    _set("image_data_format", data_format)


def _set(field: str, value: Any) -> None:
    wrong = _check(field, value)
    if wrong:
        raise ArgumentError(f"set_{field}: {value!r} isn't allowed", allowed=wrong)
    settings().values[field] = value
    keras = _keras()
    if keras:
        getattr(keras, f"set_{field}")(value)


def chosen_backend() -> tuple[str, str]:
    """(name, which setting chose it), before any swap.

    In this order: KERNELK_BACKEND, KERAS_BACKEND, c.KernelK.backend, keras.json, the default.
    """
    for variable in ("KERNELK_BACKEND", "KERAS_BACKEND"):
        name = os.environ.get(variable, "").strip()
        # Keras 2 is told to use kernelk by this very name: it says nothing about the engine.
        if name and name != "kernelk.backend":
            return name, f"environment variable {variable}"
    if LIMITS.backend:
        return LIMITS.backend, "c.KernelK.backend (IPython's configuration)"
    config = settings()
    name = str(config.values["backend"])
    if "backend" in config.from_file and name != "kernelk.backend":
        return name, f"keras.json ({path()})"
    return str(DEFAULTS["backend"]), "the default"


def save_backend(name: str) -> str:
    """Writes `name` into keras.json as the engine to start with; returns the outcome in one line. Raises nothing."""
    try:
        settings().save("backend", name)
    except (OSError, ValueError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else f"it isn't valid JSON: {error}"
        return joined(
            f"not saved: {printable(path(), 300)} can't be written ({printable(reason, 120)})",
            next_step=f"fix it, choose another folder with KERAS_HOME, or set KERNELK_BACKEND={name}",
        )
    saved = f'saved: {path()} has "backend": "{name}"'
    for variable in ("KERNELK_BACKEND", "KERAS_BACKEND"):
        chosen = os.environ.get(variable, "").strip()
        if chosen and chosen not in ("kernelk.backend", name):
            saved += f"; {variable}={chosen} takes precedence: unset it for this to take effect"
            break
    return saved + _stops_keras(name)


def _stops_keras(name: str) -> str:
    """Returns why an installed Keras 3 can't use this backend name; "" if it can. Doesn't import Keras."""
    from importlib import metadata

    try:
        version = metadata.version("keras")
        spec = importlib.util.find_spec("keras")
    except (metadata.PackageNotFoundError, ValueError):
        return ""
    if int(version.partition(".")[0]) < 3 or spec is None or not spec.submodule_search_locations:
        return ""
    folder = Path(spec.submodule_search_locations[0]) / "src" / "backend"
    # Each backend of Keras 3 is a package of this folder.
    if not folder.is_dir() or (folder / name / "__init__.py").exists():
        return ""
    return (
        f"; the installed Keras {version} doesn't know '{name}' and fails at `import keras`: "
        f"undo it with {as_typed('%kbackend tensorflow --save')} (KERNELK_BACKEND={name} chooses it for kernelk alone)"
    )


@dataclass
class Limits:
    """The settings that aren't in keras.json; `notebook.settings` describes and checks them."""

    compiled_bytes: int = 2 << 30
    reevaluation_seconds: float = 2.0
    log_bytes: int = 1 << 20
    stuck_seconds: float = 0.0
    commit_bytes: int = 1 << 20
    repeat_seconds: float = 3.0
    repeat_bytes: int = 256 << 20
    build_beside: bool = True
    quiet: bool = False
    backend: str = ""


LIMITS = Limits()
