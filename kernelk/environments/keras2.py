"""Keras 2.3.1 and the two packages that its import needs, in a folder beside the environments, not in any of them."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

from ..display.progress import Progress, Report
from .install import one_at_a_time
from .places import root, roots
from .runner import Runner

VERSION = "2.3.1"
NAME = "keras2"
REQUIREMENTS = Path(__file__).parent / "locks" / "keras2.txt"


def _name() -> str:
    # A version of kernelk with other pins makes another folder, and breaks nothing that is in use.
    return f"{NAME}-{hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:10]}"


def found() -> Path | None:
    """The folder that has the packages; None if there is none."""
    return next((folder for place in roots() if (folder := place / _name()).is_dir()), None)


def install(report: Report | None = None, rebuild: bool = False) -> Path:
    """The folder that has the packages; they are fetched first where they aren't there, or again with `rebuild`.

    Each is checked by its hash. Raises InstallError; nothing is changed then.
    """
    folder = found()
    if folder is not None and not rebuild:
        return folder
    report = report or Progress()
    place = root()
    place.mkdir(parents=True, exist_ok=True)
    folder = place / _name()
    lock = place / f".{_name()}.lock"
    with one_at_a_time(lock, lambda: report(f"{NAME}: another process installs it; waiting")):
        if folder.is_dir() and not rebuild:
            return folder
        unfinished = Path(tempfile.mkdtemp(prefix=f".{_name()}-", dir=place))
        try:
            run = Runner(f"Keras {VERSION}", NAME, place / f"{_name()}.log", report, f"kernelk install {NAME}")
            run.say(f"fetching Keras {VERSION} (0.5 MB)")
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            command += ["--no-compile", "--require-hashes", "--only-binary", ":all:", "--target", str(unfinished)]
            run("pip install", [*command, "--requirement", str(REQUIREMENTS)])
            if folder.exists():
                shutil.rmtree(folder)
            unfinished.rename(folder)
            run.say(f"ready: Keras {VERSION} in {folder}")
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def removed() -> list[Path]:
    """Removes the packages, those of other pins too, from the folder that an install goes to."""
    gone = [path for path in root().glob(f"{NAME}-*") if path.is_dir()]
    for path in gone:
        shutil.rmtree(path)
    return gone
