"""Prepare Fashion-MNIST and MNIST for TensorFlow Datasets (TFDS), without TensorFlow.

    python data/prepare.py ARCHIVES [--data-dir data]

ARCHIVES holds the folders fashion_mnist/ and mnist/ with the four official .gz files each; all are checked against
their published SHA-256. The result is what the stock `tfds.data_source(name, split=split, data_dir="data",
download=False)` reads, and SHA256SUMS of it. The same archives give the same bytes again.
"""

import argparse
import contextlib
import gzip
import hashlib
import io
import tempfile
import zlib
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.registered import skip_registration
from tensorflow_datasets.core.writer import ExampleWriter
from tensorflow_datasets.proto import tf_example_pb2

STOCK = {"fashion_mnist": tfds.image_classification.FashionMNIST, "mnist": tfds.image_classification.MNIST}
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
SOURCES = {
    "fashion_mnist": "https://github.com/zalandoresearch/fashion-mnist or Debian's package dataset-fashion-mnist",
    "mnist": "http://yann.lecun.com/exdb/mnist/ or its mirror https://ossci-datasets.s3.amazonaws.com/mnist/",
}
MOST = 16 + 60000 * 28 * 28 + 1  # one byte more than the largest has
CONTENT_SHA256 = {  # of the files inside the archives
    "fashion_mnist/train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "fashion_mnist/train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "fashion_mnist/t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "fashion_mnist/t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    "mnist/train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "mnist/train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "mnist/t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "mnist/t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
# Of the archives, as TFDS registers them. Not MNIST's: those are often found compressed anew.
ARCHIVE_SHA256 = {
    f"fashion_mnist/{Path(url).stem}": info.checksum for url, info in STOCK["fashion_mnist"].url_infos.items()
}


class ArchiveError(Exception):
    """An archive is missing or is not the published one; the message tells the user what to do."""


def sha256(data):
    """Return the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def read_idx(archives, dataset, file):
    """Return one archive's content as a uint8 array, (60000, 28, 28) for instance, after checking it."""
    name, path = f"{dataset}/{file}", archives / dataset / f"{file}.gz"
    if not path.is_file():
        raise ArchiveError(f"{path} is missing; get it from {SOURCES[dataset]}.")
    packed = path.read_bytes()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            content = file.read(MOST)  # no more: a few bytes may unpack to any number
    except (OSError, EOFError, zlib.error):
        content = b""  # whatever is wrong with the gzip, the checksum below says so
    for what, data, expected in (
        ("the archive", packed, ARCHIVE_SHA256.get(name)),
        ("its content", content, CONTENT_SHA256[name]),
    ):
        if expected and sha256(data) != expected:
            raise ArchiveError(
                f"{path} is corrupted: {what} should have the SHA-256 {expected}; get it from {SOURCES[dataset]}."
            )
    rank = content[3]  # IDX header: 0, 0, type (8 is uint8), rank, then every dimension as a big-endian int32
    shape = np.frombuffer(content, ">i4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


class DeterministicWriter(ExampleWriter):
    """TFDS's writer; but image and label, which protobuf stores in an order that changes between runs, are sorted."""

    def write(self, path, examples):
        """Write the (key, serialized example) pairs to path."""
        parse = tf_example_pb2.Example.FromString
        return super().write(path, ((key, parse(data).SerializeToString(deterministic=True)) for key, data in examples))


def prepare(dataset, splits, data_dir):
    """Write the data set into data_dir from splits = {split: (images, labels)}.

    The stock builder needs TensorFlow to unpack the archives and to encode PNG. Here the archives are unpacked
    already, and PIL images are what TFDS encodes without TensorFlow.
    """
    with skip_registration():  # the name stays with the stock class

        class Builder(STOCK[dataset]):
            """The stock data set fed from arrays: same name, version, features and keys, so the same order too."""

            name = dataset
            __module__ = STOCK[dataset].__module__  # recorded in dataset_info.json, where it should be the stock one

            def _split_generators(self, dl_manager):
                """Return the examples of each split; there is nothing to download."""
                return {split: self._generate_examples(*arrays) for split, arrays in splits.items()}

            def _generate_examples(self, images, labels):
                """Yield (key, example); TFDS orders the examples by a hash of the key."""
                for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                    yield index, {"image": Image.fromarray(image), "label": label}

            def _example_writer(self):
                """Return what writes the examples to disk."""
                return DeterministicWriter(self.info.file_format)

    with contextlib.redirect_stdout(None):  # TFDS would announce a download and the temporary path
        Builder(data_dir=data_dir, file_format="array_record").download_and_prepare(
            download_config=tfds.download.DownloadConfig(num_shards=1)
        )


def prepare_all(archives, data_dir):
    """Check the archives, prepare both data sets in a temporary folder, then put them in place of the old ones."""
    arrays = {
        dataset: {split: [read_idx(archives, dataset, file) for file in files] for split, files in FILES.items()}
        for dataset in STOCK
    }
    tfds.disable_progress_bar()  # its lines are made of temporary paths
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".prepare-", dir=data_dir) as scratch:  # same disk: rename, no copy
        scratch, sums = Path(scratch), ""
        for dataset, splits in arrays.items():
            print(f"{dataset}: encoding 70,000 images, about 15 seconds", flush=True)
            prepare(dataset, splits, scratch)
            for path in sorted(path for path in (scratch / dataset).rglob("*") if path.is_file()):
                sums += f"{sha256(path.read_bytes())}  {path.relative_to(scratch).as_posix()}\n"
        (scratch / "SHA256SUMS").write_text(sums)
        replace(scratch, data_dir)


def replace(scratch, data_dir):
    """Put what is new in place of the old, which goes with the temporary folder; all of it, or nothing."""
    moves = []
    try:
        for name in (*STOCK, "SHA256SUMS"):
            for old, new in ((data_dir / name, scratch / f"old-{name}"), (scratch / name, data_dir / name)):
                if old.exists():
                    moves.append((old, new))  # first: Ctrl-C may come between the two
                    old.rename(new)
    except BaseException:
        for old, new in reversed(moves):
            if new.exists() and not old.exists():
                new.rename(old)
        raise


def main():
    """The command line; what cannot be read or written is one sentence, and exit status 2; Ctrl-C is one, and 130."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain, allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")
    parser.add_argument("archives", type=Path, metavar="ARCHIVES")
    parser.add_argument("--data-dir", type=Path, default=Path(__file__).parent, help="default: this script's folder")
    args = parser.parse_args()
    try:
        prepare_all(args.archives, args.data_dir)
    except (ArchiveError, OSError) as error:
        parser.exit(2, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; no data are lost\n")


if __name__ == "__main__":
    main()
