"""Make the report: execute the notebook, fill in what its text states, export it, write all files at once."""

import contextlib
import copy
import datetime
import tempfile
import time
from pathlib import Path

import nbformat

from helpers import InputError
from lib.export import kernel, literals
from lib.export.exporter import PageExporter, TypstPDFExporter
from lib.files import write_atomically


def execute(nb, folder, profile, figures):
    """Run every cell in `folder`, save the figures in `figures`, and write the values that the text states."""
    expressions = literals.expressions(nb)
    with kernel.running(nb, folder, REPORT_PROFILE=profile, REPORT_FIGURES=str(figures)) as client:
        kernel.run_cells(client, lambda cell: True)
        values = kernel.evaluate(client, expressions)
    literals.fill(nb, values)
    nb.metadata["date"] = datetime.date.today().isoformat()


def check(nb, folder):
    """Return a sentence for each value or number in the text that is not what the stored tables say.

    Only the cells with the tag `setup` are run; the expressions may use what these make.
    """
    nb = copy.deepcopy(nb)
    with kernel.running(nb, folder) as client:
        kernel.run_cells(client, lambda cell: "setup" in cell.metadata.get("tags", []), progress=False)
        values = kernel.evaluate(client, literals.expressions(nb))
    return literals.fill(nb, values) + literals.number(nb)


def write_all(files):
    """Write {path: bytes}: all of it beside the old files, then rename; a full disk leaves the old files alone."""
    path = None
    try:
        with contextlib.ExitStack() as stack:
            for path, data in files.items():
                path.parent.mkdir(exist_ok=True)
                file = stack.enter_context(write_atomically(path))
                file.write(data)
                file.flush()
    except OSError as error:
        raise RuntimeError(f"{path} cannot be written: {error.strerror}; all files are as they were") from None


def read(path):
    """Return the notebook of a file; raise InputError for what is none."""
    try:
        nb = nbformat.read(path, as_version=4)
        nbformat.validate(nb)
    except Exception as error:  # no file, not JSON, not a notebook: nbformat has an exception for each
        first = (str(error) or type(error).__name__).splitlines()[0]  # nbformat's go on for pages
        raise InputError(f"cannot read {path}: {first}") from None
    return nb


def export(nb, folder, stem, figures):
    """Return {suffix: (bytes, seconds)} of the notebook, its PDF and its HTML."""
    resources = {"metadata": {"path": str(folder), "name": stem}}
    exporters = {
        ".ipynb": lambda: nbformat.writes(nb) + "\n",
        ".pdf": lambda: TypstPDFExporter(figures=str(figures)).from_notebook_node(nb, resources)[0],
        ".html": lambda: PageExporter(figures=str(figures)).from_notebook_node(nb, resources)[0],
    }
    made = {}
    for suffix, exporter in exporters.items():
        start = time.perf_counter()
        data = exporter()
        made[suffix] = (data if isinstance(data, bytes) else data.encode(), time.perf_counter() - start)
    return made


def make(nb, args):
    """Execute the notebook if asked to, export it and write all files; return which, their sizes and times."""
    folder = args.notebook.resolve().parent
    output = args.output_dir or args.notebook.parent
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        figures = folder / "figures"
        if not args.no_execute:
            figures = Path(scratch)
            execute(nb, folder, args.profile, figures)
        literals.number(nb)
        made = export(nb, folder, args.notebook.stem, figures)
        files = {output / (args.notebook.stem + suffix): data for suffix, (data, _) in made.items()}
        drawn = {path: path.read_bytes() for path in Path(scratch).rglob("*") if path.is_file()}
        write_all(files | {output / "figures" / path.relative_to(scratch): data for path, data in drawn.items()})
    sizes = zip(files.items(), made.values())
    return "\n".join(f"{path}  {len(data) / 1e6:.2f} MB  {seconds:.1f} s" for (path, data), (_, seconds) in sizes)
