"""What the tests on clusters share."""

from __future__ import annotations

import pytest

from kernelk.display import messages
from kernelk.session.current import current


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that the user is told, as they come."""
    lines: list[str] = []
    monkeypatch.setattr(messages, "say", lambda text, *_, **__: lines.append(text))
    for host in current().hosts.values():
        if hasattr(host, "_notify"):
            monkeypatch.setattr(host, "_notify", lines.append)
    return lines
