"""data/prepare.py: the old data are replaced by the new ones whole, or not at all."""

import gzip
import importlib.util
import tracemalloc
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[1] / "data" / "prepare.py"


@pytest.fixture
def prepare(monkeypatch, tmp_path):
    """The program, which takes no time, with old data in the folder `data`."""
    spec = importlib.util.spec_from_file_location("prepare", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def fake(dataset, splits, folder):
        (folder / dataset).mkdir()
        (folder / dataset / "file").write_text("new")

    monkeypatch.setattr(module, "read_idx", lambda *args: None)
    monkeypatch.setattr(module, "prepare", fake)
    monkeypatch.chdir(tmp_path)
    for dataset in module.STOCK:
        Path("data", dataset).mkdir(parents=True)
        Path("data", dataset, "file").write_text("old")
    Path("data", "SHA256SUMS").write_text("old")
    return module


def contents():
    return {str(path): path.read_text() for path in sorted(Path("data").rglob("*")) if path.is_file()}


def main(prepare, monkeypatch, *argv):
    """Run it: the exit status, 0 if it returns."""
    monkeypatch.setattr("sys.argv", ["prepare.py", *argv])
    try:
        return prepare.main() or 0
    except SystemExit as end:
        return end.code


def failing(stop, error, done):
    """A rename whose call number `stop` fails, after it is done or before."""
    rename, calls = Path.rename, []

    def call(path, target):
        calls.append(path)
        if len(calls) != stop or done:
            rename(path, target)
        if len(calls) == stop:
            raise error

    return call


def test_an_archive_that_unpacks_to_anything_is_not_unpacked(prepare, tmp_path):
    spec = importlib.util.spec_from_file_location("prepare_again", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # whose read_idx is no fake
    path = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    path.parent.mkdir()
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(300):
            file.write(bytes(2**20))
    tracemalloc.start()
    with pytest.raises(module.ArchiveError, match="its content should have the SHA-256"):
        module.read_idx(tmp_path, "mnist", "train-images-idx3-ubyte")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 * 2**20


@pytest.mark.parametrize("error, status", [(OSError(5, "Input/output error"), 2), (KeyboardInterrupt(), 130)])
@pytest.mark.parametrize("done", [False, True])
def test_what_stops_it_between_two_renames_leaves_the_old_data(prepare, monkeypatch, capsys, error, status, done):
    before = contents()
    for stop in range(1, 7):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", failing(stop, error, done))
            assert main(prepare, monkeypatch, "archives", "--data-dir", "data") == status
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and contents() == before and not list(Path("data").glob(".prepare-*")), stop


def test_the_new_data_take_the_place_of_the_old_and_no_flag_is_guessed(prepare, monkeypatch, capsys):
    assert main(prepare, monkeypatch, "archives", "--data", "data") == 2
    assert "unrecognized arguments: --data" in capsys.readouterr().err
    assert main(prepare, monkeypatch, "archives", "--data-dir", "data") == 0
    assert contents()["data/mnist/file"] == "new" and "mnist/file" in contents()["data/SHA256SUMS"]
