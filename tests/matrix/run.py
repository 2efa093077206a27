"""`make matrix`: kernelk's wheel with the lowest and the highest versions of what it needs, on each Python it names.

Each combination is an environment of its own in build/matrix, in which the fast tests run against the installed wheel,
with numpy (and JAX, in its highest version). `--python 3.12` and `--versions lowest` choose some.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import release
from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[2]
BUILD = PROJECT / "build" / "matrix"
# JAX asks for a newer numpy than kernelk itself, so that it is no part of the lowest versions.
EXTRAS = {"lowest": ("panel", "notebooks", "keras2"), "highest": ("panel", "notebooks", "keras2", "jax")}
# What needs a worker of another Python, a browser or hours isn't about versions.
FAST = "not (worker or kernel or browser or slow or soak)"


def described() -> dict[str, Any]:
    """The table [project] of pyproject.toml."""
    with (PROJECT / "pyproject.toml").open("rb") as file:
        found: dict[str, Any] = tomllib.load(file)["project"]
    return found


def pythons(project: dict[str, Any]) -> list[str]:
    """The versions of Python that the classifiers name."""
    return re.findall(r"Programming Language :: Python :: (3\.\d+)", "\n".join(project["classifiers"]))


def interpreter(version: str) -> str:
    """A Python of this version: on PATH, or pyenv's. Exits if there is none."""
    candidates = [
        shutil.which(f"python{version}"),
        *map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python")),
    ]
    for candidate in candidates:
        # A shim of pyenv's is there whether or not its version is.
        if candidate and not subprocess.run([candidate, "-c", ""], capture_output=True).returncode:
            return candidate
    sys.exit(f"there is no Python {version}; next: put python{version} on PATH, or --python with what there is")


def lowest(project: dict[str, Any], version: str) -> list[str]:
    """What is needed, each pinned to the lowest version that pyproject.toml allows on this Python."""
    extras: dict[str, list[str]] = project["optional-dependencies"]
    named = [*project["dependencies"], *(text for extra in EXTRAS["lowest"] for text in extras[extra])]
    pins = set()
    for requirement in map(Requirement, named):
        if requirement.marker and not requirement.marker.evaluate({"python_version": version}):
            continue
        bounds = [one.version for one in requirement.specifier if one.operator == ">="]
        if len(bounds) != 1:
            sys.exit(f"pyproject.toml gives {requirement.name} no lowest version")
        pins.add(f"{requirement.name}=={bounds[0]}")
    return sorted(pins)


def run(python: str, version: str, which: str, project: dict[str, Any], wheel: Path) -> str:
    """Installs one combination and runs the tests in it; returns what came of it."""
    folder = BUILD / f"{version}-{which}"
    shutil.rmtree(folder, ignore_errors=True)
    log = BUILD / f"{version}-{which}.log"
    bare = release.bare_environment()
    with log.open("w") as output:

        def done(*command: str, **environment: str) -> bool:
            return not subprocess.run(
                command, cwd=PROJECT, stdout=output, stderr=subprocess.STDOUT, env={**bare, **environment}
            ).returncode

        inside = str(folder / "bin" / "python")
        pip = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        constraints = BUILD / f"{version}-{which}.txt"
        constraints.write_text("\n".join(lowest(project, version)) if which == "lowest" else "")
        made = done(python, "-m", "venv", str(folder)) and done(*pip, "--upgrade", "pip>=25.1")
        wanted = f"kernelk[{','.join(EXTRAS[which])}] @ {wheel.as_uri()}"
        if not made or not done(*pip, "--only-binary", ":all:", "-c", str(constraints), wanted, "--group", "dev"):
            return f"can't be installed, see {log.relative_to(PROJECT)}"
        # -P: the installed kernelk, and not the checkout's.
        command = [inside, "-P", "-m", "pytest", "--quiet", "-p", "no:cacheprovider", "-m", FAST, "tests"]
        command += ["--numprocesses", "2", "--dist", "loadfile"]
        # These are about the checkout.
        command += ["--ignore", "tests/project", "--ignore", "tests/engines/test_third_party.py"]
        passed = done(
            *command, KERNELK_REQUIRE="jax" if "jax" in EXTRAS[which] else "", PYTHONPATH=str(PROJECT / "tests")
        )
    last = log.read_text(errors="replace").strip().splitlines()[-1].strip("= ")
    return last if passed else f"FAILED, see {log.relative_to(PROJECT)}: {last}"


def main() -> int:
    """1 if a combination can't be installed, or fails a test."""
    project = described()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=pythons(project), choices=pythons(project))
    parser.add_argument("--versions", nargs="+", default=list(EXTRAS), choices=EXTRAS)
    chosen = parser.parse_args()
    found = {version: interpreter(version) for version in chosen.python}
    BUILD.mkdir(parents=True, exist_ok=True)
    _, wheel = release.built()
    failed = False
    for version, python in found.items():
        for which in chosen.versions:
            result = run(python, version, which, project, wheel)
            failed = failed or "passed" not in result or result.startswith("FAILED")
            print(f"Python {version}, {which} versions: {result}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
