"""Whatever is in a file is a result or one line: some hundred changes to valid files for each reader, by a fixed seed.

`make fuzz` searches on, led by the code that a change reaches.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.engines import activate
from helpers.readers import Reader, mutated, readers

# Files that are read whole, and below them what checksums keep from changes to the whole.
NAMES = [
    "npz", "npz_part", "npy", "about", "bundle", "bundle_json", "keras_json", "marker", "log", "name",
]  # fmt: skip
CHANGES = 200


@pytest.fixture
def all_readers(tmp_path: Path) -> Iterator[dict[str, Reader]]:
    activate("numpy")
    yield readers(tmp_path)
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_file_gives_a_result_or_one_line(name: str, all_readers: dict[str, Reader]) -> None:
    assert list(all_readers) == NAMES
    reader = all_readers[name]
    generator = random.Random(f"{name} 1")
    for seed in reader.seeds:
        reader.read(seed)
        for length in range(0, len(seed), 1 + len(seed) // 20):
            reader.read(seed[:length])
    for _ in range(CHANGES):
        reader.read(mutated(generator.choice(reader.seeds), generator))
