"""The data sets: what is in them, and what happens when a file is stale, damaged or missing."""

import dataclasses
import hashlib
import re
import shutil
import subprocess
import sys
import time
import types
import urllib.error
from pathlib import Path

import numpy as np
import pytest

import helpers
import lib.dataset
from helpers import InputError
from lib.dataset import Dataset, load_dataset

ROOT = Path(helpers.__file__).parent


@pytest.fixture
def copy(tmp_path):
    """A data directory of our own with MNIST in it, and no cache."""
    shutil.copytree(ROOT / "data" / "mnist", tmp_path / "mnist")
    shutil.copy(ROOT / "data" / "SHA256SUMS", tmp_path)
    return tmp_path


@pytest.fixture
def fake_decode(monkeypatch):
    """Decoding counted, and made cheap: image i is all i mod 251, label i mod 10."""
    calls = []

    def decode(name, data_dir):
        calls.append(name)
        i = np.arange(lib.dataset.N)
        return np.repeat((i % 251).astype(np.uint8), 784).reshape(-1, 784), (i % 10).astype(np.uint8)

    monkeypatch.setattr(lib.dataset, "_decode", decode)
    return calls


# Sums over all pixels of the official archives (60,000 images, then 10,000), computed from the IDX files themselves
PIXELS = {"fashion_mnist": (3431114169, 573469082), "mnist": (1567298545, 264923200)}


def is_mapped(array):
    """Whether the pixels lie in a file that all processes share."""
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array is not None


@pytest.mark.parametrize("name", helpers.DATASETS)
def test_sizes_types_and_content(name):
    data = load_dataset(name)
    assert data.x_train.shape == (54000, 784) and data.x_val.shape == (6000, 784) and data.x_test.shape == (10000, 784)
    for array in (data.x_train, data.y_train, data.x_val, data.x_test):
        assert array.dtype == np.uint8 and not array.flags.writeable and is_mapped(array)
    y = np.concatenate([data.y_train, data.y_val])
    expected = [6000] * 10 if name == "fashion_mnist" else [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(y).tolist() == expected
    train_sum, test_sum = PIXELS[name]
    assert int(data.x_train.sum(dtype=np.int64) + data.x_val.sum(dtype=np.int64)) == train_sum
    assert int(data.x_test.sum(dtype=np.int64)) == test_sum
    assert len(data.class_names) == 10 and data.class_names[9] == {"fashion_mnist": "Ankle boot", "mnist": "9"}[name]


def test_images_belong_to_their_labels(fashion):
    """The mean image of each class finds its own class: labels and images were not shuffled apart."""
    means = np.stack([fashion.x_train[fashion.y_train == k].mean(axis=0) for k in range(10)])
    distances = ((fashion.x_val[:1000, None] - means) ** 2).sum(axis=2)
    assert np.mean(distances.argmin(axis=1) == fashion.y_val[:1000]) > 0.6


def test_validation_is_held_out_and_depends_on_the_seed_alone(fake_decode, copy):
    zero, again, one = (load_dataset("mnist", seed, copy) for seed in (0, 0, 1))
    assert (zero.x_val == again.x_val).all() and (zero.x_val != one.x_val).any()
    order = np.random.default_rng(0).permutation(60000)
    assert (zero.y_val == order[54000:] % 10).all() and (zero.x_test[:, 0] == np.arange(60000, 70000) % 251).all()
    together = np.concatenate([zero.x_train[:, 0], zero.x_val[:, 0]])
    assert (np.bincount(together) == np.bincount(np.arange(60000) % 251)).all()


def test_no_image_is_in_two_parts(fashion):
    seen = [
        {hashlib.md5(row.tobytes()).digest() for row in x} for x in (fashion.x_train, fashion.x_val, fashion.x_test)
    ]
    assert len(seen[0] & seen[1]) < 5 and len(seen[0] & seen[2]) < 5  # the originals hold a few duplicates themselves


def test_the_cache_is_used_and_rebuilt_when_stale_truncated_or_damaged(fake_decode, copy):
    load_dataset("mnist", 0, copy)
    load_dataset("mnist", 0, copy)
    assert len(fake_decode) == 1
    (path,) = (copy / "cache").iterdir()
    whole = path.read_bytes()
    for damage in (whole[:-1], whole[:1000], b"", b"x" * len(whole), whole[:5_000_000] + b"\xff" + whole[5_000_001:]):
        before = len(fake_decode)
        path.write_bytes(damage)
        assert (load_dataset("mnist", 0, copy).x_test[:, 5] == np.arange(60000, 70000) % 251).all()
        assert len(fake_decode) == before + 1 and path.read_bytes() == whole
    prepared = copy / "mnist" / "3.0.1" / "features.json"
    prepared.write_text(prepared.read_text())  # same bytes, but touched
    before = len(fake_decode)
    load_dataset("mnist", 0, copy)
    assert len(fake_decode) == before + 1 and len(list((copy / "cache").iterdir())) == 1


@pytest.mark.parametrize("file", ["mnist-train.array_record-00000-of-00001", "features.json", "dataset_info.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_corrupted_prepared_file_is_named_and_never_trained_on(fake_decode, copy, file, damage):
    load_dataset("mnist", 0, copy)  # a cache of the whole files is there, and must not hide it
    path = copy / "mnist" / "3.0.1" / file
    content = path.read_bytes()
    if damage == "delete":
        path.unlink()
    else:
        i = len(content) // 2
        path.write_bytes(
            content[:i] if damage == "truncate" else content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :]
        )
    with pytest.raises(InputError, match=f"{file} is (corrupted|missing)"):
        load_dataset("mnist", 0, copy)
    assert fake_decode == ["mnist"]


def test_files_that_are_not_listed_are_not_called_corrupted(fake_decode, copy):
    (copy / "mnist" / ".DS_Store").write_bytes(b"extra")
    load_dataset("mnist", 0, copy)
    shutil.rmtree(copy / "mnist" / "3.0.1")
    (copy / "mnist" / "9.0.0").mkdir()
    (copy / "mnist" / "9.0.0" / "dataset_info.json").write_text("{}")  # a version of one's own, none of it listed
    load_dataset("mnist", 0, copy)
    assert len(fake_decode) == 2


def test_files_that_cannot_be_decoded_are_named(copy):
    (copy / "SHA256SUMS").unlink()
    (record,) = (copy / "mnist").glob("*/mnist-train.array_record*")
    record.write_bytes(record.read_bytes()[: 2**20])
    with pytest.raises(InputError, match="mnist cannot be read as mnist: .*; restore it"):
        load_dataset("mnist", 0, copy)


def test_missing_data_fails_within_seconds_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as where it is not installed
    began = time.perf_counter()
    with pytest.raises(InputError, match="mnist is missing: restore it with git checkout.*install tensorflow") as error:
        load_dataset("mnist", 0, tmp_path)
    assert time.perf_counter() - began < 5 and "\n" not in str(error.value)


@pytest.mark.parametrize("network", [True, False, "answers 403", "other data"])
def test_missing_data_is_downloaded_where_tensorflow_and_a_network_are_there(
    tmp_path, monkeypatch, fake_decode, network
):
    import tensorflow_datasets as tfds

    class Builder:
        info = types.SimpleNamespace(homepage="https://example.org")

        def download_and_prepare(self):
            if network == "other data":
                raise RuntimeError("a checksum is wrong")
            (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
            (tmp_path / "mnist" / "3.0.1" / "features.json").write_text("{}")

    def urlopen(address, timeout):
        if network in (False, "answers 403"):
            code = urllib.error.HTTPError(address, 403, "Forbidden", {}, None)
            raise code if network else urllib.error.URLError("no route")
        return types.SimpleNamespace(close=lambda: None)

    monkeypatch.setitem(sys.modules, "tensorflow", types.ModuleType("tensorflow"))
    monkeypatch.setattr(tfds, "builder", lambda name, data_dir, file_format: Builder())
    monkeypatch.setattr(lib.dataset, "urlopen", urlopen)
    refusals = {False: "no network to download it", "other data": r"\(it cannot be downloaded: a checksum is wrong\)$"}
    if network in refusals:
        with pytest.raises(InputError, match=refusals[network]):
            load_dataset("mnist", 0, tmp_path)
    else:
        assert load_dataset("mnist", 0, tmp_path).x_train.shape == (54000, 784)


def test_a_folder_that_cannot_be_written_costs_time_only(fake_decode, copy):
    (copy / "cache").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="will be decoded again next time: cannot write .*cache"):
        data = load_dataset("mnist", 0, copy)
    assert data.x_train.shape == (54000, 784)


@pytest.mark.parametrize("arguments, named", [(("cifar10",), "dataset is 'cifar10'"), (("mnist", -1), "seed is -1")])
def test_bad_arguments(arguments, named):
    with pytest.raises(InputError, match=named):
        load_dataset(*arguments)


def test_two_processes_may_load_for_the_first_time_at_once(copy):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import lib.dataset; d = lib.dataset.load_dataset('mnist', 0, {str(copy)!r}); print(int(d.x_train.sum()))"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sums = [process.communicate(timeout=300)[0] for process in both]
    data = load_dataset("mnist", 0, copy)
    assert sums[0] == sums[1] == f"{int(data.x_train.sum())}\n"
    assert len(list((copy / "cache").iterdir())) == 1


@pytest.mark.parametrize("race", ["removed", "damaged"])
def test_a_cache_that_is_gone_before_it_is_opened_costs_memory_only(race, fake_decode, copy, monkeypatch):
    """As when another process sees files of another state: it takes our cache for an old one."""
    right = lib.dataset._open_cache

    def too_late(path):
        path.unlink() if race == "removed" else path.write_bytes(b"x")
        return right(path)

    monkeypatch.setattr(lib.dataset, "_open_cache", too_late)
    data = load_dataset("mnist", 0, copy)
    assert (data.x_test[:, 5] == np.arange(60000, 70000) % 251).all() and not is_mapped(data.x_test)


def test_the_stock_reader_of_tfds_reads_the_same_images():
    import tensorflow_datasets as tfds

    source = tfds.data_source("fashion_mnist", split="test", data_dir=ROOT / "data", download=False)
    data = load_dataset("fashion_mnist")
    assert len(source) == 10000
    for i in (0, 17, 9999):
        assert (source[i]["image"].ravel() == data.x_test[i]).all() and source[i]["label"] == data.y_test[i]


def test_odd_lines_in_the_list_of_checksums_are_no_traceback(fake_decode, copy):
    sums = copy / "SHA256SUMS"
    sums.write_bytes(b"\xff\n\n# a comment\none\nabc  a b c\n" + sums.read_bytes())
    load_dataset("mnist", 0, copy)
    record = next((copy / "mnist").glob("*/features.json"))
    record.write_text("{}")
    with pytest.raises(InputError, match="features.json is corrupted"):
        load_dataset("mnist", 0, copy)


def test_an_old_cache_that_cannot_be_removed_and_unreadable_class_names(fake_decode, copy):
    (copy / "cache" / "mnist-split0-00000000-0.npy").mkdir(parents=True)  # not a file
    load_dataset("mnist", 0, copy)
    labels = next((copy / "mnist").glob("*")) / "label.labels.txt"
    labels.write_bytes(b"\xff")
    with pytest.raises(InputError, match="label.labels.txt cannot be read"):
        load_dataset("mnist", 0, copy)


class Frame:
    """What holds numbers, as a table of pandas does, but is no array."""

    shape = (60, 784)


NAMES = tuple("abcdefghij")
ODD = {
    "a list of images": ("x_train", lambda x: x.tolist(), "x_train is a list; allowed: an array"),
    "a list of labels": ("y_val", lambda y: y.tolist(), "y_val is a list; allowed: an array"),
    "a table": ("x_val", lambda x: Frame(), "x_val is a Frame; allowed: an array"),
    "nothing": ("x_test", lambda x: None, "x_test is a NoneType; allowed: an array"),
    "no labels": ("y_test", lambda y: None, "y_test is a NoneType; allowed: an array"),
    "int64": ("x_train", lambda x: x.astype(int), "x_train is int64 .*; allowed: an array"),
    "truth": ("x_test", lambda x: x > 9, "x_test is bool .*; allowed: an array"),
    "objects": ("x_val", lambda x: x.astype(object), "x_val is object .*; allowed: an array"),
    "a row": ("x_val", lambda x: x[0], r"x_val is uint8 \(784,\); allowed: an array"),
    "no images": ("x_val", lambda x: x[:0], r"x_val is uint8 \(0, 784\); allowed: an array"),
    "other images": ("x_test", lambda x: x[:, 1:], "x_test is uint8 .*; allowed: images like those of x_train"),
    "squares": ("x_val", lambda x: x.reshape(-1, 28, 28), "x_val is uint8 .*; allowed: images like those of x_train"),
    "nan": ("x_val", lambda x: x * np.float32("nan"), "x_val is float32 .* not finite; allowed: finite"),
    "fewer labels": ("y_test", lambda y: y[1:], r"y_test is uint8 .*; allowed: .*, here \(60,\)"),
    "labels with a point": ("y_train", lambda y: y * 1.0, "y_train is float64 .*; allowed: a whole number"),
    "one hot": ("y_val", lambda y: np.eye(10, dtype=int)[y], "y_val is int64 .*; allowed: a whole number"),
    "from 1": ("y_train", lambda y: y + 1, "y_train has labels from 1 to 10; allowed: 0 to 9"),
    "a text of names": ("class_names", lambda names: "abcdefghij", "class_names is a str; allowed: a tuple"),
    "numbers for names": ("class_names", lambda names: range(10), "class_names is a range; allowed: a tuple"),
    "a tuple of numbers": (
        "class_names",
        lambda names: tuple(range(10)),
        "class_names is a tuple; allowed: a tuple of",
    ),
    "no names": ("class_names", lambda names: (), "class_names is a tuple; allowed: a tuple of texts"),
    "a number of names": ("class_names", lambda names: 10, "class_names is a int; allowed: a tuple of texts"),
    "too few names": ("class_names", lambda names: names[:9], "y_train has labels from 0 to 9; allowed: 0 to 8"),
    "no name": ("name", lambda name: None, "name is a NoneType; allowed: a text"),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_data_set_of_ones_own_is_checked_when_it_is_made(kind, small):
    field, change, words = ODD[kind]
    with pytest.raises(InputError, match=f"^{words}[^\n]*$"):
        dataclasses.replace(small, **{field: change(getattr(small, field))})


def test_a_data_set_of_lists_is_refused_in_a_sentence(small):
    parts = [getattr(small, field.name) for field in dataclasses.fields(small)[2:]]
    with pytest.raises(InputError, match="^x_train is a list; allowed: "):
        Dataset("mine", NAMES, *(part.tolist() for part in parts))


def test_a_split_seed_is_not_ignored_by_a_data_set_of_ones_own(small, monkeypatch):
    monkeypatch.setitem(helpers.DATASETS, "mine", lambda: small)
    assert load_dataset("mine") is small
    with pytest.raises(InputError, match="^seed is 1; allowed with 'mine', whose function holds out images itself: 0$"):
        load_dataset("mine", seed=1)


def test_a_data_set_may_have_names_in_an_array_and_no_test_part(small, tiny_config):
    names = dataclasses.replace(small, class_names=np.array(NAMES), x_test=None, y_test=None)
    assert names.class_names == NAMES and {type(one) for one in names.class_names} == {str}
    assert len(helpers.train(tiny_config(), names).history) == 3
    with pytest.raises(InputError):
        helpers.train(tiny_config(), names).network.predict(names.x_test)


@pytest.mark.parametrize("returned", [None, (1, 2), Dataset])
def test_a_function_that_returns_no_data_set_is_named(returned, monkeypatch):
    monkeypatch.setitem(helpers.DATASETS, "mine", lambda: returned)
    with pytest.raises(InputError, match="^the function of dataset 'mine' returns a .*; allowed: a Dataset$"):
        load_dataset("mine")


# ------------------------------------------------------------------------------------------------------------ checksums


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
    "BSD": lambda lines: "".join(re.sub("(.*)  (.*)", r"SHA256 (\2) = \1", line) for line in lines),
}


@pytest.mark.parametrize("how", SILENT)
def test_a_list_that_does_not_name_a_file_is_refused(fake_decode, copy, how):
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
def test_other_ways_to_write_a_checksum_are_read(fake_decode, copy, how):
    sums = copy / "SHA256SUMS"
    sums.write_bytes("".join(map(OTHERS[how], lines_of(sums))).encode())
    load_dataset("mnist", 0, copy)
    next((copy / "mnist").glob("*/features.json")).write_text("{}")
    with pytest.raises(InputError, match="features.json is corrupted"):
        load_dataset("mnist", 0, copy)


def test_a_list_that_cannot_be_read_is_refused(fake_decode, copy):
    (copy / "SHA256SUMS").unlink()
    (copy / "SHA256SUMS").mkdir()
    with pytest.raises(InputError, match="SHA256SUMS cannot be read: Is a directory; restore it"):
        load_dataset("mnist", 0, copy)
