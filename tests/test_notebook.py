"""The report: the notebook runs from top to bottom, the PDF says what it should, and what is committed belongs together."""

import base64
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import nbformat
import pypdf
import pytest

import grid
import lib.anova

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The notebook executed in its quick profile, with its exports, in a folder of their own."""
    folder = tmp_path_factory.mktemp("report")
    command = [sys.executable, "report.py", "--profile", "quick", "--output-dir", folder]
    subprocess.run(command, cwd=ROOT, check=True, timeout=600)
    return folder


def outputs(notebook, kind):
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if kind in output.get("data", {}):
                yield cell, output


def test_it_runs_and_leaves_the_report_alone(quick):
    notebook = nbformat.read(quick / "assignment1.ipynb", 4)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))
    assert not [output for cell in codes for output in cell.outputs if output.output_type == "error"]
    clean = subprocess.run(
        ["git", "status", "--porcelain", "figures", "assignment1.ipynb"], cwd=ROOT, capture_output=True
    )
    if "CI" in os.environ:  # elsewhere there may be work in progress
        assert clean.stdout == b""


def test_what_it_says_of_what_it_trained_is_right(quick):
    found = outputs(nbformat.read(quick / "assignment1.ipynb", 4), "text/markdown")
    texts = [output.data["text/markdown"] for _, output in found]
    text = " ".join(one for one in texts if "Where NaN comes from" not in one)
    assert float(re.search(r"largest relative error is ([\d.e-]+):", text)[1]) < 1e-6
    assert float(re.search(r"All six reach at least ([\d.]+)%", text)[1]) > 80
    assert float(re.search(r"Test accuracy ([\d.]+) ±", text)[1]) > 0.8
    assert len(texts) > 25 and not re.search(r"\bnan\b", text)


def test_the_headline_is_filled_in_by_the_last_cell(quick):
    tables = [out.data["text/html"] for _, out in outputs(nbformat.read(quick / "assignment1.ipynb", 4), "text/html")]
    assert "test accuracy of the selected configuration" in tables[0] and "0.8856" in tables[0]


def test_the_pdf_says_it_all(quick):
    reader = pypdf.PdfReader(quick / "assignment1.pdf")
    text = re.sub(r"\s+", " ", " ".join(page.extract_text() for page in reader.pages))
    for words in ("a feedforward neural network from scratch", "Pankaj Singh Rawat", *(f"Question {q}" for q in range(1, 11)),
                  "def forward(self, x)", "def backward(self, delta)", "def rmsprop", "def eve", "Figure 1", "Figure 15", "Table 5",
                  "the reference report states 0.8856", "The most frequent confusion", "Headline results", "Nesterov never passes", "The whole grid", "towards 95 %", "class Convolution",
                  "paired t test", "Limitations", "I, Pankaj Singh Rawat", "swear on my honour"):  # fmt: skip
        assert words in text, words
    assert not re.search(r"\\(frac|partial|mathbf|odot|begin|lVert)|\$\$|\x1b", text)
    assert "Traceback" not in text and len(reader.pages) >= 12


ALONE = """
import sys
import nbformat
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
cells = [cell.source for cell in nbformat.read("assignment1.ipynb", 4).cells if cell.cell_type == "code"]
for source in cells[:4]:
    shell.run_cell(source).raise_error()
known = dict(shell.user_ns)
for source in reversed(cells[4:]):
    for name in set(shell.user_ns) - set(known):
        del shell.user_ns[name]
    shell.user_ns.update(known)
    shell.run_cell(source).raise_error()
print("all", len(cells), "cells run")
"""


def test_each_cell_runs_alone_after_the_first_four(tmp_path):
    """Backwards, and each without the names that the others have made."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=ROOT, env=os.environ | {"REPORT_PROFILE": "quick", "IPYTHONDIR": str(tmp_path)},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0 and re.search(r"all \d\d cells run", done.stdout), (
        done.stdout[-2000:] + done.stderr[-2000:]
    )


def test_it_fetches_what_it_needs_on_colab(tmp_path):
    """The notebook alone in an empty folder, in a Python that says it is Colab, up to its first figure."""
    notebook = committed()
    codes = [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    notebook.cells = notebook.cells[: codes[4] + 1]
    nbformat.write(notebook, tmp_path / "assignment1.ipynb")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')\n"
    )
    colab = {"PYTHONPATH": str(tmp_path), "REPORT_REPOSITORY": ROOT.as_uri(), "REPORT_PROFILE": "quick"}
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute", "--output", "done.ipynb"]
    subprocess.run([*command, "assignment1.ipynb"], cwd=tmp_path, env=os.environ | colab, check=True, timeout=600)
    assert (tmp_path / "CS6910_Assignment_1/figures/quick/samples.png").exists()
    assert list(outputs(nbformat.read(tmp_path / "done.ipynb", 4), "image/png"))


def test_the_stock_exporter_makes_html_of_it(quick):
    subprocess.run(
        [sys.executable, "-m", "jupyter", "nbconvert", "--to", "html", quick / "assignment1.ipynb"],
        check=True,
        timeout=120,
    )
    assert "Question 7" in (quick / "assignment1.html").read_text()


def committed():
    return nbformat.read(ROOT / "assignment1.ipynb", 4)


def test_the_committed_notebook_was_executed_in_order_and_whole():
    notebook = committed()
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))
    assert not [output for cell in codes for output in cell.outputs if output.output_type == "error"]
    assert "profile `full`" in str([out.data["text/markdown"] for _, out in outputs(notebook, "text/markdown")])
    assert (ROOT / "assignment1.ipynb").stat().st_size < 5e6


def test_its_outputs_belong_to_the_tables_and_versions_that_are_committed():
    said = str([out.data["text/markdown"] for _, out in outputs(committed(), "text/markdown")])
    tables = sorted(ROOT.glob("data/*/*.csv"))
    fingerprint = zlib.crc32(b"".join(path.read_bytes() for path in tables))
    assert f"tables `{fingerprint:08x}`" in said
    pinned = re.findall(r"^numpy==([\d.]+)", (ROOT / "requirements.txt").read_text(), re.M)  # by version of Python
    assert re.search(r"numpy ([\d.]+),", said)[1] in pinned


def test_the_grid_it_tells_of_is_the_one_committed():
    said = " ".join(out.data["text/markdown"] for _, out in outputs(committed(), "text/markdown"))
    whole = lib.anova.load_grid()
    assert f"The table holds all {len(whole):,} trainings." in said
    assert f"**Best of the grid: {lib.anova.accuracy(whole).max():.4f} validation accuracy**" in said
    assert f"{lib.anova.deviation_over_seeds(grid.load_seeds(whole)):.4f} (validation)" in said
    assert f"of the course's space, all {len(whole):,} trainings |" in (ROOT / "README.md").read_text()


def test_the_committed_figures_are_those_in_the_notebook():
    shown = {re.sub(r"\s", "", out.data["image/png"]) for _, out in outputs(committed(), "image/png")}
    saved = {base64.b64encode(path.read_bytes()).decode() for path in (ROOT / "figures").glob("*.png")}
    assert shown <= saved and len(shown) >= 5


def test_every_picture_has_a_caption():
    for _, output in outputs(committed(), "image/png"):
        assert len(output.metadata["image/png"]["alt"]) > 20


def test_the_sources_printed_are_those_that_run():
    """A listing in the committed outputs must be the text of helpers.py or layers.py as it is now."""
    source = (ROOT / "helpers.py").read_text() + (ROOT / "layers.py").read_text()
    listings = [out.data["text/markdown"] for _, out in outputs(committed(), "text/markdown")]
    listings = [re.sub(r"^```python\n|```$", "", text) for text in listings if text.startswith("```python")]
    assert listings
    for listing in listings:
        for part in listing.split("\n\n\n"):
            assert part.strip() in source


def test_the_numbers_of_the_readme_are_those_of_the_report():
    said = " ".join(out.data["text/markdown"] for _, out in outputs(committed(), "text/markdown"))
    for pattern in (
        r"Test accuracy ([\d.]+ ± [\d.]+)",
        r"\*\*([\d.]+) on the test images of MNIST",
        r"Best validation accuracy: ([\d.]+)",
        r"\*\*Best of the grid: ([\d.]+) validation accuracy",
        r"Nesterov reaches ([\d.]+%)",
        r"largest relative error is ([\d.e-]+):",
    ):
        number = re.search(pattern, said)[1]
        assert f"| {number} |" in (ROOT / "README.md").read_text(), number
