"""Execute the notebook and export it: the PDF through pandoc and Typst, and one HTML file that needs no network.

`python report.py` does it all; `jupyter nbconvert --to report.TypstPDFExporter assignment1.ipynb` makes the PDF alone.
"""

import argparse
import contextlib
import sys
from pathlib import Path


def __getattr__(name):
    """Give nbconvert the exporters, and nobody else their imports, which take a second or two."""
    from lib.export import exporter

    return getattr(exporter, name)


def write(path, data):
    """Write a file by way of a rename, so that an interrupted run leaves the old one whole."""
    from lib.export.make import write_all

    write_all({path: data})


def parse(argv):
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description="Execute the notebook; write it, its PDF, its HTML and its figures.")
    parser.add_argument("notebook", nargs="?", type=Path, default=Path("assignment1.ipynb"))
    parser.add_argument("--no-execute", action="store_true", help="export the outputs that the notebook already has")
    parser.add_argument("--profile", choices=("quick", "full"), default="full", help="REPORT_PROFILE for the cells")
    parser.add_argument("--output-dir", type=Path, help="where the files and figures go (default: beside the notebook)")
    parser.add_argument("--check", action="store_true", help="only compare the numbers in the text with the tables")
    return parser.parse_args(argv)


def work(args):
    """Make the report or check it; return the exit status."""
    from lib.export import make  # here, so that Ctrl-C while it is imported ends in a sentence, too

    notebook = make.read(args.notebook)
    if not args.check:
        make.make(notebook, args)
        return 0
    wrong = make.check(notebook, args.notebook.resolve().parent)
    print("\n".join(wrong) or "every number in the text is that of the tables")
    return 1 if wrong else 0


def main(argv=None):
    """Execute the notebook, then write it, its PDF and its HTML; return the exit status.

    0 done, 1 it cannot be made or a number is wrong, 2 what is given cannot be used, 130 interrupted.
    """
    args = parse(argv)
    try:
        status = work(args)
        sys.stdout.flush()
        return status
    except (RuntimeError, OSError, ValueError) as error:
        print(f"report.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        print("report.py: interrupted; no file has changed", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold what the locale has no letters for
    status = main()
    with contextlib.suppress(OSError):
        sys.stdout.close()  # what a full disk or a reader who has gone did not take is said already
    sys.exit(status)
