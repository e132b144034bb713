"""The data sets: read by TensorFlow Datasets, checked, decoded once, kept as one memory-mapped file."""

import re
import warnings
import zlib
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np

from helpers import DATASETS, InputError, choice, number
from lib.families import as_array, check_labels, shown, trying
from lib.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
DATA_DIR = ROOT / "data"
N_TRAIN, N_VAL, N_TEST = 54_000, 6_000, 10_000
N = N_TRAIN + N_VAL + N_TEST
SUM = re.compile(r"([0-9a-fA-F]{64})\s+\*?(?:\./)?(\S.*)")  # a line of sha256sum, with or without -b
LOADED = re.compile(r"[^.].*(\.json|\.labels\.txt|\.array_record.*)")  # what TFDS reads of a data set


@dataclass(frozen=True)
class Dataset:
    """Images x (n, n_in), uint8 or floating point, and labels y (n,), whole numbers: to train, to validate, to test.

    x_test and y_test may both be None, if nothing is tested. Raises InputError, naming the field, unless all are
    NumPy arrays that fit one another and class_names, a text for each class.
    """

    name: str
    class_names: tuple
    x_train: np.ndarray
    y_train: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    def __post_init__(self):
        if not isinstance(self.name, str):
            raise InputError(f"name is {shown(self.name)}; allowed: a text")
        names = self.class_names
        several = isinstance(names, tuple | list | np.ndarray) and len(np.shape(names)) == 1
        if not (several and len(names) and all(isinstance(one, str) for one in names)):
            raise InputError(f"class_names is {shown(names)}; allowed: a tuple of texts, one for each class")
        object.__setattr__(self, "class_names", tuple(map(str, names)))
        for part in ("train", "val") if self.x_test is self.y_test is None else ("train", "val", "test"):
            self._check_images(f"x_{part}", getattr(self, f"x_{part}"))
            self._check_labels(f"y_{part}", getattr(self, f"y_{part}"), len(getattr(self, f"x_{part}")))

    def _check_images(self, name, x):
        as_array(name, x)
        if not (isinstance(x, np.ndarray) and x.ndim > 1 and x.size and x.dtype in (np.uint8, np.float32, np.float64)):
            allowed = "an array (n, n_in) of uint8, float32 or float64, an image in each row"
            raise InputError(f"{name} is {shown(x)}; allowed: {allowed}")
        if x.shape[1:] != self.x_train.shape[1:]:
            raise InputError(f"{name} is {shown(x)}; allowed: images like those of x_train, {shown(self.x_train)}")
        if x.dtype != np.uint8 and not np.isfinite(x).all():
            raise InputError(f"{name} is {shown(x)} with numbers that are not finite; allowed: finite numbers")

    def _check_labels(self, name, y, n):
        if not isinstance(y, np.ndarray):
            raise InputError(f"{name} is {shown(y)}; allowed: an array ({n},) of whole numbers, one for each image")
        check_labels(name, y, n, len(self.class_names))


def load_dataset(name="fashion_mnist", seed=0, data_dir=DATA_DIR):
    """Return the data set `name`; `seed` draws the 10 % of the training images that are held out to validate.

    It is what the function in DATASETS returns or, for None, what TFDS reads from `data_dir`. That is decoded once and
    kept in data_dir/cache as one memory-mapped file that all processes share. Its name has the state of the prepared
    files it was made from and its own checksum: a stale or damaged cache is built anew. Raises InputError if the data
    set is missing and cannot be downloaded, if a file is damaged, or if that function returns no Dataset.
    """
    name = choice("dataset", name, DATASETS)
    seed = number("seed", seed, int, "[0, inf)")
    if DATASETS[name] is not None:
        if seed:
            raise InputError(f"seed is {seed}; allowed with {name!r}, whose function holds out images itself: 0")
        return _made(name, DATASETS[name])
    folder = Path(data_dir) / name
    cache = Path(data_dir) / "cache"
    if not folder.is_dir():
        _download(name, data_dir)
    names = _class_names(folder)
    state = [(p.relative_to(folder).as_posix(), p.stat().st_size, p.stat().st_mtime_ns) for p in _files(folder)]
    prefix = f"{name}-split{seed}-{zlib.crc32(repr(state).encode()):08x}-"
    found = [flat for flat in map(_open_cache, cache.glob(f"{prefix}*.npy")) if flat is not None]
    flat = found[0] if found else _build_cache(name, seed, folder, cache, prefix)
    images = flat[: N * 784].reshape(N, 784)
    labels = flat[N * 784 :]
    parts = slice(0, N_TRAIN), slice(N_TRAIN, N_TRAIN + N_VAL), slice(N_TRAIN + N_VAL, N)
    return Dataset(name, names, *(both[part] for part in parts for both in (images, labels)))


def _made(name, make):
    what = f"the function of dataset {name!r}"
    allowed = "a function without arguments that returns a Dataset"
    if not callable(make):
        raise InputError(f"{what} is {shown(make)}; allowed: {allowed}")
    with trying(what, allowed):
        data = make()
    if not isinstance(data, Dataset):
        raise InputError(f"{what} returns {shown(data)}; allowed: a Dataset")
    return data


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _class_names(folder):
    for path in folder.glob("*/label.labels.txt"):
        try:
            return tuple(filter(None, path.read_text(encoding="utf-8").split("\n")))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {error}; restore it with git checkout") from None
    return tuple("0123456789")  # MNIST has no such file: its classes are the digits


def _open_cache(path):
    """Return the flat array in a cache file, or None if its size or its checksum is not what it should be."""
    try:
        flat = np.asarray(np.load(path, mmap_mode="r"))  # still mapped, but a plain array: faster to index
    except Exception:  # a damaged header raises whatever its bytes lead NumPy into
        return None
    whole = flat.shape == (N * 785,) and flat.dtype == np.uint8
    return flat if whole and path.stem.endswith(f"{zlib.crc32(flat):08x}") else None


def _check_sums(name, data_dir):
    """Raise InputError if a file of the data set is missing, not listed in SHA256SUMS, or not the one listed.

    Without SHA256SUMS nothing is checked, nor is a version that it does not list if it lists another one.
    """
    sums = data_dir / "SHA256SUMS"
    if not sums.exists():
        return
    expected = _read_sums(sums, name)
    there = {key: data_dir / key for key in expected if (data_dir / key).is_file()}
    versions = {(data_dir / key).parent for key in expected}
    for path in _files(data_dir / name):
        listed = path.relative_to(data_dir).as_posix() in there
        if LOADED.fullmatch(path.name) and not listed and (path.parent in versions or not versions):
            allowed = "a line for each file, as sha256sum writes it; restore it with git checkout, or add yours"
            raise InputError(f"{sums} has no checksum that can be read of {path}; allowed: {allowed}")
    for key, path in there.items():
        if sha256(path.read_bytes()).hexdigest() != expected[key]:
            raise InputError(f"{path} is corrupted: its SHA-256 is not the one in {sums}; restore it with git checkout")
    missing = sorted(expected.keys() - there.keys())
    if there and missing:
        raise InputError(f"{data_dir / missing[0]} is missing; restore it with git checkout")


def _read_sums(path, name):
    """Return what a list of checksums says of the files of a data set, {NAME/VERSION/FILE: checksum}."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; restore it with git checkout") from None
    found = (SUM.fullmatch(line.rstrip()) for line in lines)
    return {one[2]: one[1].lower() for one in found if one and re.match(f"{re.escape(name)}/[^/]+/[^/]", one[2])}


def _build_cache(name, seed, folder, cache, prefix):
    """Check the prepared files, decode them, and write all images, then all labels, in the order train, val, test."""
    _check_sums(name, folder.parent)
    try:
        images, labels = _decode(name, folder.parent)
    except MemoryError:
        raise
    except Exception as error:  # array_record, protobuf, Pillow and TFDS have no common one
        raise InputError(f"{folder} cannot be read as {name}: {error}; restore it with git checkout") from None
    order = np.random.default_rng(seed).permutation(N_TRAIN + N_VAL)
    order = np.concatenate([order, np.arange(N_TRAIN + N_VAL, N)])
    flat = np.concatenate([images[order].ravel(), labels[order]])
    path = cache / f"{prefix}{zlib.crc32(flat):08x}.npy"
    try:
        cache.mkdir(exist_ok=True)
        with write_atomically(path) as file:
            np.save(file, flat)
    except OSError as error:
        warnings.warn(f"{name} will be decoded again next time: cannot write {path}: {error.strerror}", stacklevel=3)
        return flat
    for old in set(cache.glob(f"{name}-split{seed}-*.npy")) - {path}:
        with suppress(OSError):  # gone, or somebody else's
            old.unlink()  # a process that has it mapped keeps it
    mapped = _open_cache(path)
    return flat if mapped is None else mapped  # another process may have taken ours for old


def _decode(name, data_dir):
    """Return images (N, 784) and labels (N,), uint8, in the order of TFDS: training images, then test images."""
    import tensorflow_datasets as tfds
    from PIL.PngImagePlugin import PngImageFile
    from tensorflow_datasets.proto import tf_example_pb2

    raw = tfds.decode.DeserializeMethod.RAW_BYTES  # without TensorFlow, TFDS takes three times as long to decode
    images = np.empty((N, 784), np.uint8)
    labels = np.empty(N, np.uint8)
    n = 0
    for split in ("train", "test"):
        source = tfds.data_source(name, split=split, data_dir=data_dir, download=False, deserialize_method=raw)
        for record in source.__getitems__(range(len(source))):
            feature = tf_example_pb2.Example.FromString(record).features.feature
            png = feature["image"].bytes_list.value[0]
            images[n] = np.frombuffer(PngImageFile(BytesIO(png)).tobytes(), np.uint8)
            labels[n] = feature["label"].int64_list.value[0]
            n += 1
    if n != N:
        raise ValueError(f"it has {n} images, not {N}")
    return images, labels


def _download(name, data_dir):
    """Let TFDS download and prepare the data set; fail fast if TensorFlow or a network connection is missing."""
    sentence = f"{Path(data_dir) / name} is missing: restore it with git checkout, or rebuild it as data/README.md says"
    try:
        import tensorflow as _  # noqa: F401  TFDS prepares with it
        import tensorflow_datasets as tfds

        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        urlopen(builder.info.homepage, timeout=5).close()
    except ImportError:
        raise InputError(f"{sentence} (to download it instead, install tensorflow)") from None
    except HTTPError:
        pass  # an answer, so a network
    except OSError as error:
        raise InputError(f"{sentence} (no network to download it: {error})") from None
    try:
        builder.download_and_prepare()
    except Exception as error:  # TFDS has no common one
        raise InputError(f"{sentence} (it cannot be downloaded: {error})") from None
