"""The connection files of ipyparallel's controllers: where they lie, which clusters they name, and what they say."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, EngineError, did_you_mean
from ..twins import option


def files() -> dict[str, Path]:
    """The connection files in IPython's profiles, by the names that they can be called by."""
    alone: dict[str, list[Path]] = {}
    whole: dict[str, Path] = {}
    for file in sorted(_ipython().glob("profile_*/security/ipcontroller*-client.json")):
        if not os.access(file, os.R_OK):
            continue
        profile, identity = _profile_and_id(file)
        if identity:
            whole[f"{profile}:{identity}"] = file
            alone.setdefault(identity, []).append(file)
        else:
            whole[profile] = file
    ids = {name: same[0] for name, same in alone.items() if len(same) == 1}
    # Where a profile has one cluster and that one has an id, either name will do.
    for profile in {name.partition(":")[0] for name in whole}:
        same = [name for name in whole if name.partition(":")[0] == profile]
        if len(same) == 1:
            ids.setdefault(profile, whole[same[0]])
    return {**ids, **whole}


def file_of(name: str) -> Path:
    """The connection file of a cluster. Raises ArgumentError, EngineError."""
    found = files()
    if name in found:
        return found[name]
    same = [known for known in found if known.endswith(f":{name}")]
    if same:
        raise ArgumentError(
            f"{len(same)} clusters have the id '{name}'",
            allowed=f"allowed are {', '.join(same)}",
            next_step=option("on", same[0]),
        )
    listed = f"allowed are {', '.join(sorted(found))}" if found else "there is none"
    profile, _, identity = name.partition(":")
    wanted = f"ipcontroller-{identity}-client.json" if identity else "ipcontroller-client.json"
    raise ArgumentError(
        f"no cluster is named '{name}'",
        allowed=f"{did_you_mean(name, found)}{listed}",
        next_step=f"ipcluster start {cluster_options(name)}, or copy its {wanted} to {_security(profile)}",
    )


def cluster_options(name: str) -> str:
    """The options of ipcluster's commands that mean the cluster of this name."""
    file = files().get(name)
    profile, identity = _profile_and_id(file) if file is not None else name.partition(":")[::2]
    return f"--profile={profile} --cluster-id={identity}" if identity else f"--profile={profile}"


def _profile_and_id(file: Path) -> tuple[str, str]:
    """What a connection file's name says; the id is mostly ""."""
    identity = file.name.removeprefix("ipcontroller").removesuffix("client.json").strip("-")
    return file.parents[1].name.removeprefix("profile_"), identity


def _security(profile: str) -> Path:
    return _ipython() / f"profile_{profile}" / "security"


def _ipython() -> Path:
    from IPython.paths import get_ipython_dir

    return Path(get_ipython_dir())


def key_in(file: Path) -> str:
    """What tells the cluster that a connection file leads to from all others; "" where nothing does."""
    try:
        return key_of(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def key_of(connection: dict[str, Any]) -> str:
    """The key that its messages are signed with; with CURVE there is none, but the controller's public one."""
    # A client writes addresses where a file has ports.
    port = str(connection["registration"]).rpartition(":")[2]
    return str(connection["key"] or connection.get("curve_serverkey") or port)


def ssh_server(written: dict[str, Any]) -> str:
    """The server through which a connection file has the controller reached; "" for none, and on that machine."""
    return "" if written.get("location") == socket.gethostname() else str(written.get("ssh") or "")


def unknown_host(written: dict[str, Any]) -> str:
    """The name that a connection file has for the controller's machine, if this one knows no address of it; else ""."""
    host = str(written.get("interface", "")).partition("://")[2]
    if host in ("*", "0.0.0.0"):
        host = str(written.get("location") or "")
    if not host or host == socket.gethostname():
        return ""
    try:
        socket.gethostbyname(host)
    except OSError:
        return host
    return ""


def require_one_encryption(name: str, file: Path, written: dict[str, Any]) -> None:
    """Refuses ssh and CURVE together: no tunnel's socket gets CURVE's keys, so that answers never come."""
    if ssh_server(written) and written.get("curve_serverkey"):
        raise EngineError(
            f"cluster '{name}' can't be reached: {file} has \"ssh\" as well as CURVE's keys, and ipyparallel can't use "
            f"both at once",
            next_step=f"start it without enable_curve, since ssh encrypts: `ipcluster start {cluster_options(name)} -n "
            f"1 -- --nodb`; and copy {file.name} here again",
        )
