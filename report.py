"""Execute the notebook and export it: the PDF through pandoc and Typst, and one HTML file that needs no network.

`python report.py` does it all; `jupyter nbconvert --to report.TypstPDFExporter assignment1.ipynb` makes the PDF alone.

python report.py [NOTEBOOK]    default: assignment1.ipynb
--no-execute      export the outputs that the notebook already has
--profile NAME    REPORT_PROFILE for the cells: quick or full (default: full)
--output-dir DIR  where the files and figures go (default: beside the notebook)
--check           only compare the numbers in the text with the tables
Exit status: 0 done, 1 the report is not made (a cell fails, the disk is full) or a number in its text does not match
the tables, 2 invalid input, 130 interrupted.
"""

import sys
from pathlib import Path

from helpers import InputError
from lib.cli import Parser, answer, given_path, put


class NotMade(InputError):
    """Everything given can be used, and yet there is no report."""

    status = 1


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
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("notebook", nargs="?", type=given_path, default=Path("assignment1.ipynb"))
    parser.add_argument("--no-execute", action="store_true")
    parser.add_argument("--profile", choices=("quick", "full"))
    parser.add_argument("--output-dir", type=given_path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args(argv)
    idle = {"no_execute": args.check, "output_dir": args.check, "profile": args.check or args.no_execute}
    for flag, is_idle in idle.items():
        if is_idle and getattr(args, flag):
            other = "--check" if args.check else "--no-execute"
            raise InputError(f"--{flag.replace('_', '-')} is given with {other}; allowed: one of the two")
    args.profile = args.profile or "full"
    return args


def work(argv):
    """Make the report, or check it; return what there is to say of it."""
    args = parse(argv)
    from lib.export import make  # here, so that Ctrl-C while it is imported ends in a sentence, too

    notebook = make.read(args.notebook)
    try:
        if not args.check:
            return make.make(notebook, args)
        wrong = make.check(notebook, args.notebook.resolve().parent)
    except RuntimeError as error:  # a cell or a value that fails; what cannot be set; a full disk
        raise (InputError if args.check else NotMade)(str(error)) from None
    if not wrong:
        return "every number in the text is that of the tables"
    put("report.py", "\n".join(wrong))
    return {"agrees": False, "wrong": len(wrong)}


def main(argv=None):
    """Run the command line `argv` (sys.argv[1:] if None); return the exit status."""
    return answer("report.py", __doc__, argv, work, "no file has changed")


if __name__ == "__main__":
    sys.exit(main())
