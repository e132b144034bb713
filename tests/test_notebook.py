"""The notebook: it reads well, runs from top to bottom and cell by cell, says what its tables say, and writes nothing."""

import base64
import html
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import pypdf
import pytest

from lib import claims, results

ROOT = Path(__file__).resolve().parent.parent
CAPTION = re.compile(r"^\*\*(Figure|Table) (\d+)\.\*\*<!--#([a-z0-9_-]+)-->", re.M)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Execute the notebook in its quick profile, and export it, in a folder of its own."""
    folder = tmp_path_factory.mktemp("report")
    command = [sys.executable, "report.py", "--profile", "quick", "--output-dir", folder]
    subprocess.run(command, cwd=ROOT, check=True, timeout=900)
    return folder


@pytest.fixture(scope="module")
def stored():
    return results.read_tables()


def committed():
    return nbformat.read(ROOT / "assignment1.ipynb", 4)


def codes(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def outputs(notebook, kind):
    return [out.data[kind] for cell in codes(notebook) for out in cell.outputs if kind in out.get("data", {})]


def printed(notebook):
    return "".join(out.text for cell in codes(notebook) for out in cell.outputs if out.output_type == "stream")


# --------------------------------------------------------------------------------------------------- as it is written


def test_cells_are_short():
    lengths = [len(cell.source.splitlines()) for cell in codes(committed())]
    print(
        f"{len(lengths)} code cells, {sum(lengths)} lines, median {statistics.median(lengths)}, longest {max(lengths)}"
    )
    assert max(lengths) <= 25 and statistics.median(lengths) <= 8 and sum(lengths) <= 500
    assert max(len(line) for cell in codes(committed()) for line in cell.source.splitlines()) <= 110


def test_prose_is_markdown():
    for cell in codes(committed()):
        assert "Markdown(" not in cell.source
        for words in re.findall(r'"([^"\n]*)"', re.sub(r'""".*?"""', "", cell.source, flags=re.S)):
            assert len(re.sub(r"{[^}]*}", "", words).split()) <= 8, words


def test_the_only_plumbing_is_one_folded_cell_at_the_top():
    first, *rest = codes(committed())
    assert first.metadata.jupyter.source_hidden and first.metadata.cellView == "form"
    assert first.source.startswith("# @title Set-up: ") and "setup" in first.metadata.tags
    for cell in rest:
        assert "setup" not in cell.metadata.get("tags", []) and "cellView" not in cell.metadata
        if "hide_input" in cell.metadata.get("tags", []):  # only what draws or lists something
            assert re.search(r"^show(_table|_source)?\(", cell.source, re.M) and len(cell.source.splitlines()) <= 6


def test_every_question_is_there_and_each_says_what_is_asked():
    headings = re.findall(r"^## (.*)$", text(committed()), re.M)
    assert [heading.split(":")[0] for heading in headings[:10]] == [f"Question {q}" for q in range(1, 11)]
    assert headings[-3:] == ["Appendix A: the whole grid", "Appendix B: towards 95 %", "References"]
    sections = re.split(r"^## ", text(committed()), flags=re.M)[1:11]
    for section in sections[:8] + sections[9:]:
        assert re.match(r"Question \d+:.*\n\n\*[^*]+\*\n", section), section[:80]
    assert text(committed()).count("**Try it") >= 5 and text(committed()).count("**Predict first.**") >= 5


def test_each_try_it_cell_is_short():
    notebook = committed()
    pairs = zip(notebook.cells, notebook.cells[1:], strict=False)
    after = [cell for text, cell in pairs if text.source.split("\n\n")[-1].startswith("> **Try it")]
    shown = [cell for cell in codes(notebook) if cell in after and "hide_input" not in cell.metadata.get("tags", [])]
    assert len(shown) >= 2 and all(len(cell.source.splitlines()) <= 5 for cell in shown)


def test_every_picture_and_table_has_a_caption_that_the_text_refers_to():
    notebook = committed()
    captions = CAPTION.findall(text(notebook))
    for kind in ("Figure", "Table"):
        numbers = [int(number) for one, number, _ in captions if one == kind]
        assert numbers == list(range(1, len(numbers) + 1))
    known = {name: number for _, number, name in captions}
    for number, name in re.findall(r"(\d+)<!--@([a-z0-9_-]+)-->", text(notebook)):
        assert known[name] == number
    assert set(known) == {name for _, name in re.findall(r"(\d+)<!--@([a-z0-9_-]+)-->", text(notebook))}
    for cell, after in zip(notebook.cells, notebook.cells[1:], strict=False):
        if any("image/png" in out.get("data", {}) for out in cell.get("outputs", [])):
            assert after.cell_type == "markdown" and CAPTION.match(after.source), cell.source


def test_every_number_in_the_text_is_that_of_its_table():
    done = subprocess.run(
        [sys.executable, "report.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"<!--=", text(committed()))) > 80 and "?<!--" not in text(committed())


def test_hardly_a_number_is_typed():
    """Accuracies in prose are checked values or the reference report's stated figures."""
    stated = {"0.8856", "0.1612", "0.9799", "0.9938", "0.9824"}
    bare = re.sub(
        r"<!--:-->.*?<!--=.*?-->|\S*<!--=.*?-->|\$\$.*?\$\$|\$[^$]*\$|`[^`]*`", "", text(committed()), flags=re.S
    )
    typed = set(re.findall(r"(?<![\w.])0\.\d{4}(?!\d)", bare)) - stated - {"0.0005", "0.0001", "0.0003"}
    assert not typed


# ----------------------------------------------------------------------------------------------------- when it is run


def changes_of_the_report():
    """What git says of the report's files: which have changed since they were committed, and how."""
    commands = ["git", "status", "--porcelain"], ["git", "diff"]
    files = ["--", "figures", "data", "assignment1.ipynb"]
    return [subprocess.run([*one, *files], cwd=ROOT, capture_output=True, check=True).stdout for one in commands]


AT_START = (
    changes_of_the_report()
)  # before any test runs; `make report` has changed it on a machine that rounds otherwise


def test_it_runs_and_leaves_the_report_alone(quick):
    notebook = nbformat.read(quick / "assignment1.ipynb", 4)
    assert [cell.execution_count for cell in codes(notebook)] == list(range(1, len(codes(notebook)) + 1))
    assert not [out for cell in codes(notebook) for out in cell.outputs if out.output_type == "error"]
    assert {path.suffix for path in (quick / "figures").iterdir()} == {".png", ".svg"}
    if "CI" in os.environ:  # elsewhere there may be work in progress
        assert changes_of_the_report() == AT_START


def test_its_text_is_the_same_whatever_machine_ran_it(quick):
    assert text(nbformat.read(quick / "assignment1.ipynb", 4)) == text(committed())


def test_what_it_trains_agrees_with_what_is_stored(quick):
    said = printed(nbformat.read(quick / "assignment1.ipynb", 4))
    assert re.search(r"seed 0, trained again just now: 0\.\d{4}; stored: 0\.\d{4}; (the same to|differ by)", said)
    assert "the same weights as train(): True" in said
    assert "equal: [True, True, True, True, True, True]" in said
    assert float(re.search(r"largest relative error of any W or b: (\S+)", said)[1]) < 1e-6
    assert float(re.search(r"Eve (0\.\d{4})", said)[1]) > 0.8
    ahead = [one.split() for one in re.search(r"looked ahead: \[([^]]*)\].*nag: \[([^]]*)\]", said).groups()]
    assert ahead[0] == ahead[1] and "Adam's first step: [ 0.3 -0.3]" in said


def test_the_pdf_says_it_all(quick):
    reader = pypdf.PdfReader(quick / "assignment1.pdf")
    pages = [re.sub(r"\s+", " ", page.extract_text()) for page in reader.pages]
    whole = " ".join(pages)
    for words in ("from scratch", *(f"Question {q}:" for q in range(1, 11)), "def forward(self, x", "def backward(self, delta",
                  *(f"def {name}(theta, config" for name in ("sgd", "momentum", "nag", "rmsprop", "adam", "nadam", "eve")),
                  "Figure 1", "Table 1", "Predict first", "Try it", "Nesterov never passes", "Limitations", "swear on my honour"):  # fmt: skip
        assert words in whole, words
    assert not re.search(r"\\(frac|partial|mathbf|odot|begin|lVert)|\$\$|\x1b|<!--|Traceback", whole)
    appendix = [i for i, page in enumerate(pages) if "Appendix A: the whole grid" in page and "Contents" not in page]
    main = next(i for i in appendix if "What is the best of the course" in pages[i])
    print(f"main part {main} pages, all {len(pages)}")
    assert main <= 18 and len(pages) <= 32


ALONE = """
import sys
import nbformat
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
first, *cells = [cell.source for cell in nbformat.read("assignment1.ipynb", 4).cells if cell.cell_type == "code"]
shell.run_cell(first).raise_error()
known = dict(shell.user_ns)
for source in reversed(cells):
    for name in set(shell.user_ns) - set(known):
        del shell.user_ns[name]
    shell.user_ns.update(known)
    shell.run_cell(source).raise_error()
print("all", len(cells), "cells run")
"""


def files():
    """Return size and time of change of each file that git knows."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    paths = [ROOT / name for name in listed.split("\0") if name]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.exists()}


def test_each_cell_runs_alone_after_the_first_and_writes_to_no_committed_file(tmp_path):
    """Backwards, and each without the names that the others have made."""
    before = files()
    environment = {name: value for name, value in os.environ.items() if name != "REPORT_FIGURES"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=ROOT, env=environment | {"REPORT_PROFILE": "quick", "IPYTHONDIR": str(tmp_path)},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    ran = re.search(r"all \d\d cells run", done.stdout)
    assert done.returncode == 0 and ran, done.stdout[-2000:] + done.stderr[-2000:]
    assert files() == before


def test_it_fetches_what_it_needs_on_colab(tmp_path):
    """The notebook alone in an empty folder, in a Python that says it is Colab, up to its first figure."""
    notebook = committed()
    figure = next(i for i, cell in enumerate(notebook.cells) if "plots.sample_grid" in cell.source)
    notebook.cells = notebook.cells[: figure + 1]
    nbformat.write(notebook, tmp_path / "assignment1.ipynb")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')\n"
    )
    colab = {"PYTHONPATH": str(tmp_path), "REPORT_REPOSITORY": ROOT.as_uri(), "REPORT_PROFILE": "quick"}
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute", "--output", "done.ipynb"]
    subprocess.run([*command, "assignment1.ipynb"], cwd=tmp_path, env=os.environ | colab, check=True, timeout=600)
    assert outputs(nbformat.read(tmp_path / "done.ipynb", 4), "image/png")


def test_the_stock_exporter_makes_html_of_it(quick, tmp_path):
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "html", "--output-dir", tmp_path]
    subprocess.run([*command, quick / "assignment1.ipynb"], check=True, timeout=120)
    assert "Question 7" in (tmp_path / "assignment1.html").read_text(encoding="utf-8")


# -------------------------------------------------------------------------------------------------- what is committed


def test_the_committed_notebook_was_executed_in_order_and_whole():
    notebook = committed()
    assert [cell.execution_count for cell in codes(notebook)] == list(range(1, len(codes(notebook)) + 1))
    assert not [out for cell in codes(notebook) for out in cell.outputs if out.output_type == "error"]
    assert (ROOT / "assignment1.ipynb").stat().st_size < 6e6
    said = printed(notebook)
    live = re.search(r"seed 0, trained again just now: (\S+); stored: (\S+); (the same to|differ by)", said)
    assert live and "epoch 20: training loss" in said  # the full profile


def test_its_tables_are_those_of_the_stored_trainings(stored):
    shown = [
        out.data["text/html"]
        for cell in codes(committed())
        for out in cell.outputs
        if "text/html" in out.get("data", {})
    ]
    rows = re.findall(r"<tr>(.*?)</tr>", "".join(shown), re.S)
    cells = [tuple(map(html.unescape, re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row))) for row in rows]
    for table in (results.headline(stored), results.seeds_table(stored.selected), results.mnist_table(stored.mnist)):
        for row in table.reset_index().astype(str).itertuples(index=False):
            assert tuple(row) in cells, row
    for row in claims.observations(stored).reset_index().itertuples(index=False):
        assert tuple(row) in cells, row


def test_the_committed_figures_are_those_in_the_notebook():
    shown = {re.sub(r"\s", "", data) for data in outputs(committed(), "image/png")}
    names = {name for kind, _, name in CAPTION.findall(text(committed())) if kind == "Figure"}
    saved = {name: ROOT / "figures" / f"{name}.png" for name in names}
    same = {base64.b64encode(path.read_bytes()).decode() for path in saved.values()} == shown
    assert same and len(shown) > 20
    assert all(path.with_suffix(".svg").exists() for path in saved.values())


def test_the_sources_printed_are_those_that_run():
    """A listing in the committed outputs must be the text of the code as it is now."""
    source = "".join(
        (ROOT / name).read_text(encoding="utf-8") for name in ("helpers.py", "lib/layers.py", "lib/studies.py")
    )
    listings = [one for one in outputs(committed(), "text/markdown") if one.startswith("```python")]
    assert len(listings) >= 5
    for listing in listings:
        for part in re.sub(r"^```python\n|\n```$", "", listing).split("\n\n"):
            assert part.strip() in source


def test_the_numbers_of_the_readme_are_those_of_the_report(stored):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    expected = {
        "Fashion-MNIST, test accuracy of the selected configuration": claims.spread(stored.selected.test_accuracy),
        "MNIST, test accuracy": f"{results.best_on_mnist(stored.mnist).test_accuracy.mean():.4f}",
        "best validation accuracy of 150 configurations": f"{stored.runs.best_val_accuracy.max():.4f}",
        "best validation accuracy of the course's whole space": f"{stored.grid.accuracy.max():.4f}",
        "Nesterov, validation accuracy": f"{results.trial(stored, 'nag'):.4f}",
    }
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in readme.splitlines() if line.startswith("|")]
    for name, number in expected.items():
        (row,) = [row for row in rows if row[0].startswith(name)]
        assert row[1] == number, name
