"""`make release`: builds kernelk's sdist, and of it the wheel, and tries each in a bare environment, in build/release.

Neither environment has more than what kernelk itself needs: `smoke.py` trains a model there in IPython's own shell, and
kernelk's command tells its version and looks at the engines. Nothing is uploaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]
BUILD = PROJECT / "build" / "release"
SMOKE = Path(__file__).with_name("smoke.py")


def bare_environment() -> dict[str, str]:
    """This process's environment without what names another Python or its packages."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}


def made(folder: Path, *packages: str) -> Path:
    """The Python of a new environment with these packages."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, env=bare_environment())
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--upgrade", "pip>=25.1"], check=True, env=bare_environment())
    subprocess.run([*pip, *packages], check=True, env=bare_environment())
    return python


def built() -> tuple[Path, Path]:
    """The sdist, and the wheel that was built from it."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for old in [*BUILD.glob("*.whl"), *BUILD.glob("*.tar.gz")]:
        old.unlink()
    python = made(BUILD / "tools", "build>=1.2", "twine>=6")
    # Without more said, it makes the wheel of the sdist.
    command = [str(python), "-m", "build", "--outdir", str(BUILD), str(PROJECT)]
    subprocess.run(command, check=True, env=bare_environment(), stdout=subprocess.DEVNULL)
    (sdist,), (wheel,) = BUILD.glob("*.tar.gz"), BUILD.glob("*.whl")
    subprocess.run([str(python), "-m", "twine", "check", "--strict", str(sdist), str(wheel)], check=True)
    return sdist, wheel


def main() -> int:
    """1 if one of the two can't be used as it is."""
    for number, package in enumerate(built()):
        folder = BUILD / f"bare-{number}"
        python = made(folder, str(package))
        home = BUILD / f"home-{number}"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        # An empty home, and a folder in which no checkout is found.
        environment = {**bare_environment(), "HOME": str(home), "XDG_DATA_HOME": "", "XDG_CACHE_HOME": ""}
        for command in (
            [str(python), "-P", str(SMOKE)],
            [str(folder / "bin" / "kernelk"), "--version"],
            [str(folder / "bin" / "kernelk"), "doctor", "numpy"],
        ):
            if subprocess.run(command, cwd=home, env=environment).returncode:
                print(f"{package.name}: {' '.join(command[1:])} failed in a bare environment")
                return 1
        print(f"{package.name}: works in a bare environment", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
