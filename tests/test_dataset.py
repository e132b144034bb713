"""SHA256SUMS: a list that says nothing of a file is refused, however it came to that."""

import re

import pytest
from test_data import copy, fake_decode  # noqa: F401

from helpers import InputError
from lib.dataset import load_dataset


def lines_of(sums):
    """The lines of the list that are MNIST's."""
    return [line for line in sums.read_text().splitlines(keepends=True) if "  mnist/" in line]


SILENT = {
    "empty": lambda lines: "",
    "of another": lambda lines: "".join(lines).replace("mnist/", "kmnist/"),
    "cut in the first line": lambda lines: lines[0][:77],
    "cut in a path": lambda lines: lines[0][:72],
    "cut in a line": lambda lines: "".join(lines)[:-30],
    "without a line": lambda lines: "".join(lines[:-1]),
    "short checksums": lambda lines: "".join(line[1:] for line in lines),
    "BSD": lambda lines: "".join(re.sub("(.*)  (.*)", r"SHA256 (\\2) = \\1", line) for line in lines),
}


@pytest.mark.parametrize("how", SILENT)
def test_a_list_that_does_not_name_a_file_is_refused(fake_decode, copy, how):  # noqa: F811
    sums = copy / "SHA256SUMS"
    sums.write_text(SILENT[how](lines_of(sums)))
    with pytest.raises(InputError, match="SHA256SUMS has no checksum that can be read of .*; allowed: a line for each"):
        load_dataset("mnist", 0, copy)
    assert not fake_decode


OTHERS = {
    "upper case": lambda line: line[:64].upper() + line[64:],
    "binary": lambda line: line.replace("  ", " *"),
    "from here": lambda line: line.replace("  ", "  ./"),
    "carriage return": lambda line: line.replace("\n", "\r\n"),
}


@pytest.mark.parametrize("how", OTHERS)
def test_other_ways_to_write_a_checksum_are_read(fake_decode, copy, how):  # noqa: F811
    sums = copy / "SHA256SUMS"
    sums.write_bytes("".join(map(OTHERS[how], lines_of(sums))).encode())
    load_dataset("mnist", 0, copy)
    next((copy / "mnist").glob("*/features.json")).write_text("{}")
    with pytest.raises(InputError, match="features.json is corrupted"):
        load_dataset("mnist", 0, copy)


def test_a_list_that_cannot_be_read_is_refused(fake_decode, copy):  # noqa: F811
    (copy / "SHA256SUMS").unlink()
    (copy / "SHA256SUMS").mkdir()
    with pytest.raises(InputError, match="SHA256SUMS cannot be read: Is a directory; restore it"):
        load_dataset("mnist", 0, copy)
