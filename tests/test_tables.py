"""Stored tables: a damaged one is never used, what is younger than a table has its default, and rows come out again."""

import csv
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_sweep import alone, definition, tiny, train_here, write  # noqa: F401

import lib.anova
import lib.replay
import lib.tables
import study
import sweep
from helpers import METRICS, Config, InputError
from lib.recipes import load_table

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data"
COMMITTED = [
    *DATA.glob("*.csv*"),
    *DATA.glob("sweeps/*.[cj]s*"),
    *DATA.glob("studies/*.csv"),
    *DATA.glob("towards95/*.csv"),
]
KINDS = {  # file: what reads it
    "sweeps/bayes.csv": lambda path: sweep.load_results("bayes", path.parent),
    "sweeps/bayes.json": lambda path: sweep.load_results("bayes", path.parent).attrs,
    "studies/deep.csv": lambda path: study.load_study("deep", path.parent),
    "grid.csv.gz": lib.anova.load_grid,
    "grid_seeds.csv": lambda path: lib.tables.read_table(path, lib.anova.SEEDED, unique=["number", "seed"]),
    "grid_replays.csv.gz": lambda path: lib.tables.read_table(
        path, lib.replay.REPLAYED, lib.replay._check, lib.replay.KEY
    ),
    "towards95/ablation.csv": load_table,
    "towards95/final.csv": load_table,
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder with the committed tables, and a part of the large ones."""
    folder = tmp_path_factory.mktemp("tables") / "data"
    shutil.copytree(DATA, folder, ignore=shutil.ignore_patterns("fashion_mnist", "mnist", "cache", "*.np*"))
    grid = lib.anova.load_grid(folder / "grid.csv.gz")
    grid = grid.groupby("state").head(30).assign(number=range(60))
    lib.tables.write_table(folder / "grid.csv.gz", grid)
    replays = KINDS["grid_replays.csv.gz"](folder / "grid_replays.csv.gz")
    lib.tables.write_table(folder / "grid_replays.csv.gz", replays[:60])
    return folder


@pytest.fixture
def stored(tmp_path, parts):
    """stored(file): its path in a folder of the test's own, with all that is beside it."""
    shutil.copytree(parts, tmp_path / "data")
    return (tmp_path / "data").joinpath


def same(one, other):
    return one.equals(other) if isinstance(one, pd.DataFrame) else one == other


def unlisted(path):
    """Take the file out of the checksums beside it, as if somebody had changed it on purpose."""
    sums = path.with_name(lib.tables.SUMS)
    lines = sums.read_text(encoding="utf-8").splitlines(keepends=True)
    sums.write_text("".join(line for line in lines if not line.endswith(f"  {path.name}\n")), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_every_committed_table_is_the_one_that_was_written(path):
    name = str(path.relative_to(DATA))
    lines = path.with_name(lib.tables.SUMS).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.endswith(f"  {path.name}")], f"{name} has no checksum"
    assert lib.tables.fetch(path)[1] is None


@pytest.mark.parametrize("name", KINDS)
def test_a_flipped_bit_a_missing_end_and_a_swapped_part_are_noticed(name, stored):
    path, read, rng = stored(name), KINDS[name], np.random.default_rng(14)
    right, data = read(path), path.read_bytes()
    sums = path.with_name(lib.tables.SUMS)
    for attempt in range(24):
        broken = bytearray(data)
        place = int(rng.integers(len(data)))
        match attempt % 4:
            case 0:
                del broken[place:]
            case 1:
                broken[place:place] = broken[place // 2 : place // 2 + 9]
            case _:
                broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        if bytes(broken) != data:
            with pytest.raises(InputError, match=name.split("/")[-1].split(".")[0]):
                read(path)
    path.write_bytes(data)
    lines = sums.read_bytes()
    for place in rng.integers(len(lines), size=12):
        broken = bytearray(lines)
        broken[place] ^= 1 << int(rng.integers(8))
        sums.write_bytes(broken)
        try:
            assert same(read(path), right)
        except InputError as error:
            assert "tables.sha256" in str(error)


@pytest.mark.parametrize("name", KINDS)
def test_without_a_checksum_a_damaged_file_is_read_or_refused_and_nothing_else(name, stored):
    path, read, rng = stored(name), KINDS[name], np.random.default_rng(15)
    unlisted(path)
    data = path.read_bytes()
    refused = 0
    for _ in range(24):
        broken = bytearray(data)
        for place in rng.integers(len(data), size=3):
            broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        try:
            read(path)
        except InputError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1
    assert refused > 4


def edited(path, change):
    """Write the table anew, its cells as `change(rows)` leaves them; rows: {column: text} each."""
    unlisted(path)
    text = path.read_bytes()
    text = (gzip.decompress(text) if path.suffix == ".gz" else text).decode()
    rows = list(csv.DictReader(text.splitlines()))
    change(rows)
    with open(path.with_suffix("" if path.suffix == ".gz" else path.suffix), "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))


CELLS = [  # file, column, what stands in row 3, and what the sentence says beside file and row
    ("sweeps/bayes.csv", "num_layers", "4.7", "num_layers is 4.7; allowed: a whole number"),
    ("sweeps/bayes.csv", "num_layers", "four", "num_layers is 'four'"),
    ("sweeps/bayes.csv", "hidden_size", "256 128", "num_layers is"),
    ("sweeps/bayes.csv", "hidden_size", "0", "hidden_size is 0"),
    ("sweeps/bayes.csv", "epochs", "9" * 5000, "epochs"),
    ("sweeps/bayes.csv", "optimizer", "adamm", "optimizer is 'adamm'"),
    ("sweeps/bayes.csv", "learning_rate", "nan", "learning_rate is"),
    ("sweeps/bayes.csv", "learning_rate", "1e999", "learning_rate is"),
    ("sweeps/bayes.csv", "learning_rate", "", "learning_rate is ''"),
    ("sweeps/bayes.csv", "seed", "-1", "seed is -1"),
    ("sweeps/bayes.csv", "state", "completed", "state is 'completed'; allowed: complete, pruned, not finite"),
    ("sweeps/bayes.csv", "epochs", "21", "state is 'complete' after 20 of 21 epochs"),
    ("sweeps/bayes.csv", "created", "yesterday", "created is 'yesterday'"),
    ("sweeps/bayes.csv", "created", "2026-11-23T16:16:38Z", "created is '2026-11-23T16:16:38Z'"),
    ("sweeps/bayes.csv", "created", "2026-W01", "created is '2026-W01'"),
    ("sweeps/bayes.csv", "seconds", "-1", "seconds is '-1'"),
    ("sweeps/bayes.csv", "seconds", "inf", "seconds is 'inf'"),
    ("sweeps/bayes.csv", "train_loss", "-0.5", "train_loss is '-0.5'; allowed: a finite number from 0"),
    ("sweeps/bayes.csv", "val_accuracy", "1.2", "val_accuracy is '1.2'; allowed: a number from 0 to 1"),
    ("sweeps/bayes.csv", "val_accuracy", "0.5", "val_accuracy is 0.5; allowed: .* as its history says"),
    ("sweeps/bayes.csv", "val_accuracy", "", "val_accuracy is missing"),
    ("sweeps/bayes.csv", "best_val_accuracy", "0.99", "best_val_accuracy is 0.99"),
    ("sweeps/bayes.csv", "best_epoch", "1", "best_epoch is 1"),
    ("sweeps/bayes.csv", "number", "7", "rows 3 and 7 have the same number"),
    ("sweeps/bayes.csv", "number", "3.5", "number is '3.5'"),
    ("sweeps/bayes.csv", "best_epoch", "-1", "best_epoch is '-1'"),
    ("sweeps/bayes.csv", "number", "99", "has 50 trials; allowed: 0 to 49, in order"),
    ("sweeps/bayes.csv", "machine", "a\x07b", "machine is"),
    ("sweeps/bayes.csv", "machine", "a\x00b", "machine is"),
    ("sweeps/bayes.csv", "val_accuracy_history", "[0.5, NaN, 0.5]", "a JSON list, each item a number from 0 to 1"),
    ("sweeps/bayes.csv", "val_accuracy_history", "[0.5, 2]", "val_accuracy_history is"),
    ("sweeps/bayes.csv", "val_accuracy_history", "[" * 100_000, "val_accuracy_history is"),
    ("sweeps/bayes.csv", "val_accuracy_history", "[0.5, true]", "val_accuracy_history is"),
    ("sweeps/bayes.csv", "val_accuracy_history", "[0.5]", "the histories have"),
    ("sweeps/bayes.csv", "val_accuracy_history", "", "the histories have"),
    ("studies/deep.csv", "epoch", "2", "epoch is 2; allowed: 1, as"),
    ("studies/deep.csv", "val_loss", "0.1", "val_loss is 0.1; allowed:"),
    ("studies/deep.csv", "test_accuracy", "1.01", "test_accuracy is '1.01'"),
    ("studies/deep.csv", "machine", "", "machine is ''"),
    ("studies/deep.csv", "epochs", "9", "at most 9"),
    ("studies/deep.csv", "num_layers", "6.0", "num_layers is 6.0"),
    ("grid.csv.gz", "num_layers", "6", "num_layers is '6'; allowed: 3, 4, 5"),
    ("grid.csv.gz", "val_accuracy_1", "", "number 3 has values of other epochs"),
    ("grid.csv.gz", "train_loss_2", "", "number 3 has values of other epochs"),
    ("grid.csv.gz", "state", "not finite", "number 3 has values of other epochs"),
    ("grid.csv.gz", "test_accuracy_5", "", "number 3 has values of other epochs"),
    ("grid.csv.gz", "train_loss_2", "inf", "train_loss_2 is 'inf'"),
    ("grid.csv.gz", "number", "2", "rows 2 and 3 have the same number"),
    ("grid_seeds.csv", "val_accuracy", "-0.1", "val_accuracy is '-0.1'"),
    ("grid_replays.csv.gz", "hyperband", "0", "hyperband is '0'; allowed: False, True"),
    ("grid_replays.csv.gz", "search", "grid", "search is 'grid'"),
    ("grid_replays.csv.gz", "epochs", "1.5", "epochs is '1.5'"),
    ("grid_replays.csv.gz", "runs", "0", "runs is 0 and epochs"),
    ("grid_replays.csv.gz", "epochs", "99999", "epochs 99999; allowed: at least a run"),
]


@pytest.mark.parametrize("name, column, text, said", CELLS)
def test_a_cell_that_cannot_be_is_named(name, column, text, said, stored):
    path = stored(name)
    if name == "grid.csv.gz":  # row 3 is to be a complete one
        table = KINDS[name](path).sort_values("state")
        lib.tables.write_table(path, table.assign(number=range(len(table))))
    edited(path, lambda rows: rows[3].update({column: text}))
    with pytest.raises(InputError, match=said) as error:
        KINDS[name](path)
    assert str(path) in str(error.value) and len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 900
    assert "restore the file" in str(error.value)


def renamed(old, new):
    def change(rows):
        for row in rows:
            row[new] = row.pop(old)

    return change


@pytest.mark.parametrize("name", [name for name in KINDS if not name.endswith("json")])
def test_a_table_with_other_columns_is_refused(name, stored):
    path = stored(name)
    right = path.read_bytes()
    columns = list(KINDS[name](path))
    for change, said in [
        (renamed(columns[1], "what"), "has the column 'what', which is not known; allowed: "),
        (lambda rows: [row.pop(columns[1]) for row in rows], f"does not have the column '{columns[1]}'"),
        (lambda rows: [row.update({"\ufeff": "1"}) for row in rows], "which is not known"),
    ]:
        edited(path, change)
        with pytest.raises(InputError, match=said):
            KINDS[name](path)
        path.write_bytes(right)
    for other in set(KINDS) - {name}:  # a table of another kind under this name
        if path.suffix == stored(other).suffix:
            path.write_bytes(stored(other).read_bytes())
            with pytest.raises(InputError, match="column"):
                KINDS[name](path)


def test_text_that_is_no_table_is_refused_and_other_ends_of_lines_are_read(stored, monkeypatch):
    path = stored("studies/deep.csv")
    unlisted(path)
    right, text = study.load_study("deep", path.parent), path.read_text(encoding="utf-8")
    header, *lines = text.splitlines()
    for data, said in [
        (b"", "ends in the middle"),
        (b"\n", "does not have the column"),
        (text.encode("utf-16"), "cannot be read .*allowed: CSV in UTF-8"),
        (text.replace("AMD", "\xc4MD").encode("latin-1"), "cannot be read"),
        (gzip.compress(text.encode())[:-9], "cannot be read"),
        (text[:-1].encode(), "ends in the middle of a line"),
        (f"{header},seed\n{lines[0]},0\n".encode(), "has the column 'seed', twice"),
        (f"{text}1,2\n".encode(), "row 5 has 2 cells; allowed: 30"),
        (f"{text}{lines[0]}\n".encode(), "rows 0 and 5 have the same dataset, epochs"),
        (text.replace('"[', "[").encode(), "cells; allowed: 30"),
    ]:
        path.write_bytes(data)
        with pytest.raises(InputError, match=said):
            study.load_study("deep", path.parent)
    for data in (text.encode("utf-8-sig"), text.replace("\n", "\r\n").encode(), gzip.compress(text.encode())):
        path.write_bytes(data)
        assert study.load_study("deep", path.parent).equals(right)
    monkeypatch.setattr(lib.tables, "LIMIT", 100_000)
    for data in (gzip.compress(b"0" * 100_001), b"0" * 100_001):
        path.write_bytes(data)
        with pytest.raises(InputError, match="more than 100,000 bytes"):
            study.load_study("deep", path.parent)
    with pytest.raises(InputError, match="cannot read .*none.csv: No such file"):
        lib.tables.read_table(path.with_name("none.csv"), study.COLUMNS)


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "is a JSON list"),
        ("{}", "definition: the file is "),
        ('{"definition": {"program": "train.py"}}', "definition: the file has no 'method'"),
        (None, "is of the sweep 'random'; allowed: 'bayes'"),
    ],
)
def test_what_stands_beside_a_sweep_is_checked_too(text, said, stored):
    path = stored("sweeps/bayes.json")
    unlisted(path)
    path.write_text(text if text is not None else stored("sweeps/random.json").read_text(), encoding="utf-8")
    with pytest.raises(InputError, match=said) as error:
        sweep.load_results("bayes", path.parent)
    assert str(path) in str(error.value)


def test_a_sweep_that_has_lost_its_last_trials_is_noticed(stored):
    path = stored("sweeps/bayes.csv")
    edited(path, lambda rows: rows.pop())
    with pytest.raises(InputError, match="has 49 trials; allowed: 0 to 49"):
        sweep.load_results("bayes", path.parent)


# ------------------------------------------------------------------------------------------------------------- checksums


def test_wherever_writing_stops_the_table_before_or_after_is_there(stored, monkeypatch):
    path, plain = stored("studies/deep.csv"), os.replace
    before = study.load_study("deep", path.parent)
    after = before.assign(seconds=1.0)
    for stop in range(1, 4):
        left = iter(range(1, stop))

        def replace_some(source, target, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            plain(source, target)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", replace_some)
            lib.tables.write_table(path, after)
        read = study.load_study("deep", path.parent)
        assert read.equals(before if stop < 3 else after), stop
        assert [one.name for one in path.parent.glob(".*")] == []
        lib.tables.write_table(path, before)
        lines = path.with_name(lib.tables.SUMS).read_text(encoding="utf-8").splitlines()
        assert len([line for line in lines if line.endswith("  deep.csv")]) == 1


def test_tables_written_side_by_side_all_have_their_checksum(tmp_path):
    def write_some(k):
        for i in range(9):
            lib.tables.store(tmp_path / f"{k}.csv", f"{k} {i}".encode())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write_some, range(8)))
    assert len((tmp_path / lib.tables.SUMS).read_text(encoding="utf-8").splitlines()) == 8
    for k in range(8):
        assert lib.tables.fetch(tmp_path / f"{k}.csv") == (f"{k} 8".encode(), None)


def test_a_table_that_is_not_listed_is_not_called_damaged(stored):
    path = stored("studies/deep.csv")
    for tidy in (lambda: unlisted(path), path.with_name(lib.tables.SUMS).unlink):
        tidy()
        changed = path.read_text(encoding="utf-8").replace("AMD", "ARM")
        path.write_text(changed, encoding="utf-8")
        assert study.load_study("deep", path.parent).machine.str.startswith("ARM").all()


def test_the_checksums_are_what_sha256sum_reads(stored):
    path = stored("sweeps/bayes.csv")
    lib.tables.write_table(path, sweep.load_results("bayes", path.parent))
    lines = path.with_name(lib.tables.SUMS).read_text(encoding="utf-8").splitlines()
    names = ("bayes.csv", "bayes.json", "random.csv", "random.json")
    assert lines == [f"{sha256(path.with_name(name).read_bytes()).hexdigest()}  {name}" for name in names]


# ----------------------------------------------------------------------------------------------------- values of a table


@pytest.mark.parametrize("name", [name for name in KINDS if not name.endswith("json")])
def test_no_bit_is_lost_on_the_way_through_a_file(name, stored):
    path = stored(name)
    table, before = KINDS[name](path), path.read_bytes()
    lib.tables.write_table(path, table)
    assert KINDS[name](path).equals(table)
    if path.suffix == ".csv" and name != "grid_seeds.csv":
        assert path.read_bytes() == before


def test_widths_of_each_layer_are_stored_as_they_are_read(tmp_path, monkeypatch):
    config = Config(num_layers=2, hidden_size=(24, 16), epochs=1, optimizer="sgd", batch_size=2000)
    plain = replace(config, hidden_size=16)
    table = study.study("widths", [config, plain], tmp_path, store=True)
    with open(tmp_path / "widths.csv", encoding="utf-8") as file:
        assert [row["hidden_size"] for row in csv.DictReader(file)] == ["24 16", "16"]
    stored = study.load_study("widths", tmp_path)
    assert stored.hidden_size.tolist() == table.hidden_size.tolist() == [(24, 16), 16]
    assert [lib.tables.config_of(row) for row in stored.to_dict("records")] == [config, plain]
    assert lib.tables.config_of({"hidden_size": "24 16"}) == lib.tables.config_of({"hidden_size": [24, 16]})
    assert study.rerun("widths", 0, tmp_path)["agrees"]


GROWN = {  # a line of helpers.py, and what it becomes: one more metric, and one more field of Config
    r"(METRICS = .*)\)\n": r'\1, "val_margin")\n',
    r"(    values = .*)\)\n": r"\1, val_loss - 9)\n",
    r"(    epsilon: float = .*\n)": r'    beta3: float = _setting(0.25, "[0, 1)", "of something new")\n\1',
}


def test_what_is_younger_than_a_table_has_its_default(stored, tmp_path):
    """With one more field in Config and one more metric each kind of table loads, is trained again, and is gone on with."""
    folder = stored("studies").parent
    for name in ("helpers.py", "lib", "study.py", "sweep.py", "grid.py", "sweeps"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    helpers = (tmp_path / "helpers.py").read_text(encoding="utf-8")
    for old, new in GROWN.items():
        helpers, count = re.subn(old, new, helpers)
        assert count == 1, old
    (tmp_path / "helpers.py").write_text(helpers, encoding="utf-8")
    for name in ("fashion_mnist", "mnist", "cache"):
        if (DATA / name).exists():
            (folder / name).symlink_to(DATA / name)
    code = """
import json
from dataclasses import replace
import grid, helpers, study, sweep, lib.tables
from lib.anova import load_grid
from lib.dataset import load_dataset
for name in ("bayes", "random"):
    table = sweep.load_results(name)
    assert set(table.beta3) == {0.25} and table.val_margin.isna().all() and table.val_margin_history.str.len().eq(0).all()
for name in (path.stem for path in study.FOLDER.glob("*.csv")):
    assert {lib.tables.config_of(row).beta3 for row in study.load_study(name).to_dict("records")} == {0.25}
quick = sweep.load_results("random")
quick = quick[quick.batch_size == 128].nsmallest(1, "seconds").number.iloc[0]
done = load_grid()
done = done[(done.state == "pruned") & (done.batch_size == 64)].nsmallest(1, "seconds").number.iloc[0]
again = [sweep.rerun("random", int(quick)), grid.rerun(int(done))]
first = helpers.Config(num_layers=0, batch_size=2000, epochs=1)
study.study("deep", [first], store=True)
again.append(study.rerun("deep", 5))
assert "val_margin" in again[0]["now"] and again[0]["then"]["val_margin"] is None and again[2]["then"]["val_margin"] < 0
other = replace(first, beta3=0.5)
assert study.study("deep", [other]).beta3.tolist() == [0.5] and len(study.load_study("deep")) == 6
print(json.dumps([one["agrees"] for one in again]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [True] * 3


# ---------------------------------------------------------------------------------------------------------- trained again


@pytest.mark.parametrize(
    "then, now, same_machine, agrees",
    [
        ([0.5, 0.8, 0.8], [0.5, 0.8, 0.8], True, True),
        ([0.5, 0.8, 0.8], [0.5, 0.8, 0.8 + 1e-16], True, False),
        ([0.5, 0.8, 0.8], [0.8, 0.8], True, False),
        ([0.5, 0.8, 0.8], [0.4, 0.7, 0.809], False, True),
        ([0.5, 0.8, 0.8], [0.5, 0.811, 0.811], False, False),
        ([0.1, 0.8, 0.8, 0.771], [0.1, 0.8, 0.80, 0.83], False, True),  # it moves by 0.03 itself
        ([0.1, 0.8, 0.8, 0.769], [0.1, 0.8, 0.80, 0.83], False, False),
        ([0.1, 0.8, 0.7, 0.73, 0.7], [0.1, 0.8, 0.7, 0.7, 0.75], False, True),  # it moved by 0.03 then
        ([0.1, 0.8, 0.8, 0.82], [0.1, 0.8, 0.8, 0.8], False, False),  # what was moved in the table does not count
        ([0.1, 0.8, 0.8, 0.82], [0.8, 0.1, 0.8, 0.8], False, False),  # nor what it moved at first
        ([0.5], [0.5], True, True),
        ([0.5], [0.52], False, False),
        ([], [], True, True),
        ([], [0.5], False, False),
    ],
)
def test_agree(then, now, same_machine, agrees):
    assert lib.tables.agree(then, now, same_machine) is agrees


HISTORY = {f"{name}_history": [0.4, 0.5, 0.5] for name in METRICS}
RESULT = {"val_accuracy": 0.5, "test_accuracy": 0.5, "train_share": 0.5, "epoch": 3, "stopped": "a"}


@pytest.mark.parametrize("name", ["test_accuracy", "train_share", *HISTORY])
def test_each_result_has_to_agree(name):
    then = RESULT | HISTORY
    assert lib.tables.differences(then, dict(then), True) == lib.tables.differences(then, dict(then), False) == []
    for by, elsewhere in [(1e-12, []), (0.009, []), (-0.009, []), (0.011, [name]), (-0.05, [name]), (0.1, [name])]:
        moved = [0.4 + by, 0.5 + by, 0.5 + by] if name in HISTORY else 0.5 + by
        assert lib.tables.differences(then, then | {name: moved}, True) == [name]
        assert lib.tables.differences(then, then | {name: moved}, False) == elsewhere
        assert lib.tables.differences(then | {name: moved}, then, False) == elsewhere
    if name not in HISTORY:
        assert lib.tables.differences(then, then | {name: None}, False) == [name]
        assert lib.tables.differences(then | {name: None}, then, False) == [name]
        assert lib.tables.differences(then | {name: None}, then | {name: None}, False) == []
        shorter = {one: history[:2] for one, history in HISTORY.items()}  # it ended earlier, before its test
        assert lib.tables.differences(then, then | shorter | {name: None}, False) == []
        assert name in lib.tables.differences(then, then | shorter | {name: None}, True)


def test_only_a_metric_that_the_table_does_not_have_yet_is_left_out(monkeypatch):
    monkeypatch.setattr(lib.tables, "YOUNG", {"margin"})
    now = RESULT | HISTORY | {"margin": 0.5, "margin_history": [0.5, 0.5, 0.5]}
    for same_machine in (True, False):
        missing = {"margin": None, "margin_history": []}
        assert lib.tables.differences(now | missing, now, same_machine) == []
        stored = {"margin": 0.0, "margin_history": [0.0, 0.0, 0.0]}
        assert "margin_history" in lib.tables.differences(now | stored, now, same_machine)
    assert lib.tables.differences(now | {"margin": 0.0}, now, True) == ["margin"]


def test_on_another_machine_another_epoch_may_be_the_last_or_the_best():
    then = RESULT | HISTORY
    now = then | {"epoch": 2, "stopped": "b", "val_accuracy": 0.7}  # of the best epoch, as in a study
    assert lib.tables.differences(then, now, False) == []
    assert lib.tables.differences(then, now, True) == ["val_accuracy", "epoch", "stopped"]


def test_rerun_compares_what_is_stored_with_what_comes_out_now():
    table = pd.DataFrame([RESULT | HISTORY | {"machine": lib.tables.machine()}] * 2, index=[4, 7])
    trained = []

    def again(row):
        trained.append(row)
        return RESULT | HISTORY | {"test_accuracy": np.float64(0.25), "stopped": np.nan}

    result = lib.tables.rerun("a.csv", table, 7, again)
    assert result["then"] == RESULT and result["now"] == RESULT | {"test_accuracy": 0.25, "stopped": None}
    assert (result["table"], result["row"], result["same_machine"], result["agrees"]) == ("a.csv", 7, True, False)
    assert json.loads(json.dumps(result, allow_nan=False)) == result and len(trained) == 1
    assert list(result) == ["table", "row", "then", "now", "same_machine", "agrees"]
    with pytest.raises(InputError, match="row is 5; allowed: .*4 to 7"):
        lib.tables.rerun("a.csv", table, 5, again)


def test_a_trial_that_was_made_up_is_found_out(write, capsys):  # noqa: F811
    table = train_here(write(definition(run_cap=2)))
    sweep._export(table, Path(), "small")
    argv = ["rerun", "small", "1", "--folder", "."]
    assert sweep.main(argv, load=tiny) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["table"] == "small.csv" and result["row"] == 1 and result["agrees"] and result["same_machine"]
    assert set(result["then"]) == {*METRICS, "stopped"} and result["then"] == result["now"]

    def status(**changes):
        sweep._export(table.assign(**changes), Path(), "small")
        return sweep.main(argv, load=tiny)

    def moved(metric, by, **others):
        """The exit status for a table whose `metric`, of the last epoch, is not what was trained."""
        changed = {metric: table[metric] + by} | others
        changed[f"{metric}_history"] = [[*one[:-1], one[-1] + by] for one in table[f"{metric}_history"]]
        if metric == "val_accuracy":
            best = [max(one) for one in changed["val_accuracy_history"]]
            epochs = [1 + one.index(max(one)) for one in changed["val_accuracy_history"]]
            changed |= {"best_val_accuracy": best, "best_epoch": epochs}
        return status(**changed)

    for metric in METRICS:
        assert moved(metric, -1e-9) == 1, metric
        assert moved(metric, -1e-9, machine="another") == 0, metric
    assert moved("val_accuracy", -0.1, machine="another") == 1
    assert status(val_accuracy=table.val_accuracy + 1e-9) == 2  # not what its own history says
    assert status(stopped="earlier") == 1
    assert sweep.main(["rerun", "small", "2", "--folder", "."], load=tiny) == 2
    capsys.readouterr()
