"""lib/storage.py: which files and addresses are refused as a storage."""

import os
from pathlib import Path

import pytest
from test_sweep import alone, definition  # noqa: F401

import lib.ledger
import lib.sweepfile
from helpers import InputError


@pytest.mark.parametrize("content", [b"\n", b"x", b"to do", b"SQLite format 3\0", b"x" * 511, b"x" * 5000])
@pytest.mark.parametrize("begin", [True, False])
def test_a_file_that_is_not_empty_and_no_database_is_left_as_it_is(content, begin):
    Path("notes").write_bytes(content)
    given = lib.sweepfile.check_sweep({"name": "small", **definition()}) if begin else None
    with pytest.raises(InputError, match="notes is damaged, or no database of SQLite: .*; allowed: "):
        lib.ledger.Ledger("sqlite:///notes", "small", given)
    assert Path("notes").read_bytes() == content


def test_a_name_that_is_not_utf_8_is_refused(monkeypatch):
    name = os.fsdecode(b"\xff")
    with pytest.raises(InputError, match="--storage cannot be used: .* is not UTF-8; allowed: sqlite"):
        lib.ledger.Ledger(f"sqlite:///{name}.db", "small")
    Path(name).mkdir()
    monkeypatch.chdir(name)
    with pytest.raises(InputError, match="in a folder whose name is not UTF-8; allowed: sqlite"):
        lib.ledger.Ledger("sqlite:///a.db", "small")
