"""The exporter: each thing a notebook may hold must arrive in the PDF, whole, in its place and within the margins."""

import base64
import io
import json
import os
import re
import sys

import nbformat
import numpy as np
import pandas as pd
import pypdf
import pytest
import typst
from nbconvert.exporters import get_exporter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

import report

MATHS = r"""
\odot|\otimes|\oplus|\cap|\nabla_\theta J|\partial|\mathbf{W}|\mathbb{R}^{784}|\mathcal{L}|\bm{x}|\boldsymbol\theta
\lVert W\rVert_F^2|\|x\|_2|\left\|\frac ab\right\|_F|\lvert x\rvert|\left|\frac ab\right||\bigl(x\bigr)|\Bigl\{x\Bigr\}
\frac{a}{b}|\tfrac12|\dfrac{a}{b}|\binom nk|\sqrt[3]{x}|\widehat{m}_t|\hat{y}|\tilde x|\overline{x}|\underbrace{a}_{b}
\operatorname{softmax}(z)|\operatorname*{arg\,max}_k|\arg\min_\theta|W^\top|{a^{(l)}}^\top|\sum_{i=1}^n x_i|\max\limits_i
\begin{cases} x & x>0 \\ 0 & \text{otherwise}\end{cases}|\begin{bmatrix} a & b \\ c & d\end{bmatrix}|\begin{vmatrix} a & b\end{vmatrix}
\begin{aligned} a &= b \\ &= c\end{aligned}|\xrightarrow{f}|\mathbb{1}\{y=k\}|p(a\mid b)|\mathrm{KL}(p\,\|\,q)|a\!b|a\;b|\gets|\approx
\left[a\;\middle|\;b\right]|\lfloor x\rfloor|\mathcal{U}\left[-\sqrt{\tfrac6n},\sqrt{\tfrac6n}\right]|1{,}000|\text{val\_loss}|\ell|\infty
"""
FORMULAS = re.split(r"(?<!left)(?<!right)(?<!middle)(?<!\\)(?<!\|)\|(?!\|)|\n", MATHS.strip())
BACKPROP = r"""\begin{align}
\delta_{l-1} &= \bigl(W_l^\top \delta_l\bigr) \odot f'\!\left(z_{l-1}\right)
\end{align}"""


def picture(width=300, height=150, colour="navy"):
    data = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(data, "PNG", dpi=(100, 100))
    return data.getvalue()


def encoded(**kw):
    return {"image/png": base64.b64encode(picture(**kw)).decode(), "text/plain": "<Figure size 640x480>"}


def cell(source="pass", *outputs, tags=(), **metadata):
    return new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags), **metadata})


def printed(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def html(frame):
    return new_output("display_data", {"text/html": frame._repr_html_() or frame.to_html(), "text/plain": "PLAINTABLE"})


LONG_WORD = "".join(f"w{i:03}" for i in range(60))
LONG_CHAIN = "a" + "".join(f".b{i}(c[{i}])" for i in range(30))
LONG_LINE = "result = compute(" + ", ".join(f"argument_{i}={i}" for i in range(40)) + ")"
WIDE = pd.DataFrame(np.arange(32).reshape(2, 16) / 7, columns=[f"hidden_size_{i}" for i in range(16)])
STYLED = pd.DataFrame({"optimizer": ["nadam", "sgd"], "val_accuracy": [0.8812, 0.8523]}).style.hide(axis="index")
STYLED = STYLED.format({"val_accuracy": "{:.3f}"}).highlight_max("val_accuracy").set_caption("Two runs, styled.")
LEVELS = pd.DataFrame({"rule": ["sgd", "adam", "adam"], "loss": [0.5, 0.25, 0.75]}).groupby("rule").agg(["mean", "max"])


def sample():
    """A notebook with everything in it, its outputs already there."""
    image = new_output("display_data", encoded())
    with_alt = new_output(
        "display_data", encoded(colour="green"), metadata={"image/png": {"alt": "From the alt text."}}
    )
    attached = new_markdown_cell("![An attachment.](attachment:a.png)")
    attached.attachments = {"a.png": {"image/png": base64.b64encode(picture(colour="red")).decode()}}
    cells = [
        new_markdown_cell(
            "# A *plain* title\n\nThe first words, with `inline_code` and [a link](https://example.com/page)."
        ),
        new_markdown_cell(
            "## Data\n\nSee [maths](#The-maths).\n- a list\n- without a blank line\n\n![A *saved* file.](figures/a%20b.png)"
        ),
        new_markdown_cell(
            "Text <img src='figures/a b.png' alt='inline' width='90'> and a line<br>break.\n\n" + LONG_WORD
        ),
        cell("make_figure()", image, caption='A caption with $x_1$, "quotes" and [brackets].'),
        cell("two_figures()", with_alt, image),
        attached,
        new_markdown_cell("<img src='figures/a b.png' alt='A tag alone.' width='90'>"),
        new_markdown_cell("## The maths\n\n" + "\n\n".join(f"F{i}: ${formula}$" for i, formula in enumerate(FORMULAS))),
        new_markdown_cell(f"Bare:\n\n{BACKPROP}\n\nDollars:\n\n$$\n{BACKPROP}\n\\tag{{BP}}\n$$"),
        new_markdown_cell("Too wide:\n\n$$" + "+".join(f"x_{{{i}}}" for i in range(80)) + "$$"),
        new_markdown_cell("## Code and output"),
        cell(f"{LONG_LINE}\n{LONG_CHAIN}", printed(LONG_WORD + "\n")),
        cell(
            "colours()",
            printed("\x1b[31mred\x1b[0m\n"),
            printed("~" * 30 + "\n# no heading\n:::::::: \n$a$ \\frac #let <b>\n"),
        ),
        cell("progress()", printed("10%\r"), printed("55%\rdone\n"), printed("STDERR WORDS", "stderr")),
        cell(
            "1 / 0", new_output("error", ename="E", evalue="e", traceback=["\x1b[1mZeroDivisionError\x1b[0m: by zero"])
        ),
        cell("INPUT_A", printed("output_a"), tags=["remove_input"]),
        cell("INPUT_B", printed("output_b"), tags=["hide_input"]),
        cell("INPUT_C", printed("output_c"), tags=["remove_cell"]),
        cell("INPUT_D", printed("output_d"), tags=["remove_output"]),
        new_markdown_cell(
            "### Tables\n\n| what | number |\n|---|---|\n| prose " + "that goes on and on " * 12 + "| 1 |"
        ),
        cell("WIDE", html(WIDE)),
        cell("STYLED", html(STYLED)),
        cell("LEVELS", html(LEVELS), html(LEVELS.style), caption="Two levels."),
        cell("words", html(pd.DataFrame({"word": [LONG_WORD.upper()], "n": [-0.5]}).style)),
        cell("long", html(pd.DataFrame({"n": range(1000, 1080)}).style)),
        cell(
            "source()",
            new_output(
                "display_data", {"text/markdown": "```python\ndef shown(x): return x\n```", "text/plain": "<M>"}
            ),
        ),
    ]
    authors = [{"name": 'Ann "A" O\'Hara'}, {"name": "B. #2"}]
    metadata = {"title": "A *plain* title", "authors": authors, "date": "May 2026", "abstract": "Abstract words."}
    return new_notebook(metadata=metadata, cells=cells)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder whose name has a space, with the notebook and a picture it refers to."""
    folder = tmp_path_factory.mktemp("a b")
    (folder / "figures").mkdir()
    (folder / "figures" / "a b.png").write_bytes(picture(2400, 900))
    nbformat.write(sample(), folder / "my notebook.ipynb")
    return folder


class Export:
    """The PDF of a notebook, its text, the Typst source behind it and its pages as pictures."""

    def __init__(self, path):
        real, seen = typst.compile, {}

        def compile(source, **options):
            seen["source"] = source.read_text()
            seen["pages"] = real(source, **options | {"format": "png", "ppi": 72})
            return real(source, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(typst, "compile", compile)
            self.pdf = report.TypstPDFExporter().from_filename(str(path))[0]
        self.reader = pypdf.PdfReader(io.BytesIO(self.pdf))
        self.text = "\n".join(page.extract_text() for page in self.reader.pages)
        self.words = re.sub(r"\s+", " ", self.text)
        self.letters = re.sub(r"\s+", "", self.text)
        self.source = seen["source"].split("#outline")[1]
        pages = seen["pages"] if isinstance(seen["pages"], list) else [seen["pages"]]
        self.pages = [np.asarray(Image.open(io.BytesIO(page)).convert("L")) for page in pages]


@pytest.fixture(scope="module")
def export(folder):
    return Export(folder / "my notebook.ipynb")


def convert(tmp_path, *cells, **metadata):
    path = tmp_path / "n.ipynb"
    nbformat.write(new_notebook(metadata={"title": "T", **metadata}, cells=list(cells)), path)
    return Export(path)


def test_title_block_contents_and_page_numbers(export):
    assert export.words.startswith(
        'A *plain* title Ann "A" O\'Hara, B. #2 May 2026 Abstract Abstract words. Contents 1 Data'
    )
    assert export.text.count("A *plain* title") == 1
    assert "The first words, with inline_code" in export.words
    assert re.search(r"2 The maths [. ]+ \d 3 Code and output [. ]+ \d 3\.1 Tables", export.words)
    assert export.reader.metadata.title == "A *plain* title" and export.reader.metadata.creation_date is None
    for number, page in enumerate(export.reader.pages, 1):
        assert page.extract_text().rstrip().endswith(f"{number} / {len(export.reader.pages)}")


def test_questions_that_number_themselves_are_not_numbered_again(tmp_path):
    words = convert(
        tmp_path, new_markdown_cell("# T\n\n## Question 1: data\n\n### Part"), new_markdown_cell("## Layer 2")
    ).words
    assert "Contents Question 1: data" in words and "1.1 Part" not in words
    assert "2 Layer 2" in convert(tmp_path, new_markdown_cell("## Data"), new_markdown_cell("## Layer 2")).words


def test_nothing_reaches_into_the_margins(export):
    assert len(export.pages) == len(export.reader.pages)
    for number, page in enumerate(export.pages, 1):
        assert page.shape == (842, 595)
        assert (page[:, :60] > 250).all() and (page[:, -60:] > 250).all(), f"page {number}"  # the margins: 65 points


def test_links(export):
    found = [note.get_object() for page in export.reader.pages for note in page.get("/Annots") or []]
    assert {note["/A"]["/URI"] for note in found if "/A" in note and "/URI" in note["/A"]} == {
        "https://example.com/page"
    }
    assert "#link(<The-maths>)[maths]" in export.source


def test_formulas_are_typeset(export):
    numbered = [f"F{i}:" for i in range(len(FORMULAS))]
    assert len(FORMULAS) > 50 and all(f"{number} " in export.words for number in numbered)
    section = export.words.split(numbered[0])[1].split("Code and output")[0]
    assert not re.search(r"[\\$]|frac|begin|operatorname|lVert|mathbf|dot\.", section)
    for symbol in "⊙⊗⊕∩∇𝜕⊤ℝ‖{⌊∞←≈":
        assert symbol in section, symbol
    assert section.count("⊙") >= 3 and "(BP)" in section  # the list, the bare environment, the one in dollars


@pytest.mark.parametrize(
    ("tex", "good", "bad"),
    [
        (r"\|x\|_2", "lr(bar.v.double x bar.v.double)_2", "parallel"),
        (r"\left\| x \right\|_F", "lr(bar.v.double x bar.v.double)_F", "∥"),
        (r"\Vert x \Vert", "lr(bar.v.double x bar.v.double)", "$bar"),
        (r"|x_{i}|", "lr(|x_i|)", r"\|"),
        (r"\frac{p(y|x)}{p(y|z)}", r"\|", "lr"),
        (r"\mathrm{KL}(p\|q)", "parallel", "lr"),
        (r"a\!b", "#h(-0.17em)", "-1em"),
        (r"a\;b", "thick", "0em"),
        (r"\operatorname{softmax}(z)", 'op("softmax")', '$"'),
        (r"\frac{\operatorname{Var} x}{2}", 'op("Var")', '("Var" '),
        (r"\operatorname*{arg\,max}_k", "limits: #true", '$"'),
        (r"\text{if } x", 'upright("if ")', "op("),
        (r"{a^{(l)}}^{\top} b", r"a^(\( l \) top)", ")^top"),
        (r"{a^{(l)}}^{(2)} b", r"a^(\( l \) \( 2 \))", ")^("),
        (r"\bigl( x \bigr)", r"lr(size: #1.2em, \()", "scale"),
        (r"x \label{eq:a}", "$x$", "eq"),
    ],
)
def test_what_pandoc_writes_badly_is_rewritten(tmp_path_factory, tex, good, bad):
    (tmp_path := tmp_path_factory.getbasetemp() / "filter").mkdir(exist_ok=True)
    (tmp_path / "filter.lua").write_text(report.PANDOC_FILTER)
    out = report.pypandoc.convert_text(
        f"${tex}$", "typst", report.READER, ["--lua-filter=filter.lua"], cworkdir=tmp_path, verify_format=False
    )
    assert good in out and bad not in out, out


def test_figures_have_numbers_and_captions(export):
    captions = re.findall(r"(Figure \d): (.*?\.)", export.words)
    assert [number for number, _ in captions] == [f"Figure {i}" for i in range(1, 6)]
    assert [text for _, text in captions][::2] == ["A saved file.", "From the alt text.", "A tag alone."]
    assert re.search(r"Figure 2: A caption with 𝑥 ?1 ?, “quotes” and \[brackets\]\.", export.words)
    assert "Figure 4: An attachment." in export.words
    assert "<Figure" not in export.text
    assert export.source.count("image(") == 7  # one has no caption, one stands within a line
    assert len({image.data for page in export.reader.pages for image in page.images}) == 4  # as many are different


def test_code_is_whole_and_long_lines_wrap(export):
    assert LONG_LINE.replace(" ", "") + LONG_CHAIN in export.letters
    laid_out = "\n".join(page.extract_text(extraction_mode="layout") for page in export.reader.pages)
    assert re.search(r"\n result = .*\n {5,}argument_5=5", laid_out)  # a wrapped line hangs
    assert LONG_WORD + LONG_WORD not in export.letters and export.letters.count(LONG_WORD) == 2  # prose and output
    assert "```python\nresult" in export.source and "def shown(x): return x" in export.words
    assert "#strong" not in export.source.split("def shown")[0].rsplit("```python", 1)[1]


def test_outputs_are_plain_text(export):
    assert "red" in export.words and "\x1b" not in export.text and "[31m" not in export.text
    assert "done" in export.words and "55%" not in export.text and "10%" not in export.text
    assert "STDERR WORDS" not in export.text
    assert "ZeroDivisionError: by zero" in export.words
    assert r"$a$ \frac #let <b>" in export.words and "# no heading" in export.words
    assert export.source.count("```output") == 6


def test_tags(export):
    shown = {name for name in re.findall(r"INPUT_[A-D]|output_[a-d]", export.text)}
    assert shown == {"output_a", "output_b", "INPUT_D"}


def test_tables_are_tables(export):
    tables = re.findall(r"#table\((.*?)\n  \)\]", export.source, re.S)
    assert len(tables) == 7
    prose, wide, styled, *levels, words, _ = tables
    assert re.search(r"columns: \(\d\d\.?\d*%, auto\)", prose)  # the prose wraps at full size
    assert "hidden\\_ size\\_ 15" in re.sub(r"[\s\\]+(?!_)", " ", wide) and wide.count("right") == 17
    assert "align: (left,right,)" in styled and "[nadam], [0.881]" in styled and "PLAINTABLE" not in export.text
    assert (
        "Table 1: Two runs, styled." in export.words
        and "Table 2: Two levels." in export.words
        and "Table 3" not in export.words
    )
    for table in levels:
        assert "table.cell(align: center, colspan: 2)[loss]" in table and "[rule], [mean], [max]" in table
    assert LONG_WORD.upper() in export.letters and "[-0.5" in words
    assert not re.search(r"#T_|tbody|background-color|&lt;", export.text)


def test_a_long_table_breaks_over_pages_with_its_head_and_a_short_one_does_not(tmp_path, export):
    pages = [page.extract_text() for page in export.reader.pages]
    first = min(i for i, page in enumerate(pages) if "1000" in page)
    (last,) = [i for i, page in enumerate(pages) if "1079" in page]
    assert last > first and re.search(r"^\s*n\n", pages[last])
    short = convert(
        tmp_path,
        new_markdown_cell("\n\n".join(f"line {i}" for i in range(24))),
        cell("x", html(pd.DataFrame({"n": range(100, 115)}))),
    )
    (page,) = [page for page in (page.extract_text() for page in short.reader.pages) if "100" in page]
    assert "114" in page


def test_the_same_notebook_gives_the_same_bytes(folder, export, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exporter = get_exporter("report.TypstPDFExporter")()
    assert exporter.file_extension == ".pdf"
    pdf, resources = exporter.from_filename(os.path.relpath(folder / "my notebook.ipynb"))
    assert pdf == export.pdf and not resources.get("outputs")


def test_without_metadata_the_file_gives_the_title(tmp_path):
    nbformat.write(new_notebook(cells=[new_markdown_cell("words")]), tmp_path / "bare.ipynb")
    assert Export(tmp_path / "bare.ipynb").words.startswith("bare Contents words 1 / 1")


@pytest.mark.parametrize(
    ("markdown", "message"),
    [
        ("![x](missing.png)", "missing.png"),
        (r"$\undefinedcommand{x}$", r"\undefinedcommand"),
        ("[x](#Nowhere)", "Nowhere"),
    ],
)
def test_what_cannot_be_set_is_named(tmp_path, markdown, message):
    with pytest.raises(RuntimeError, match=re.escape(message)):
        convert(tmp_path, new_markdown_cell(markdown))


def test_missing_or_broken_notebook_is_one_sentence(tmp_path, capsys):
    for name, content in {"missing.ipynb": None, "text.ipynb": "words", "json.ipynb": "{}"}.items():
        if content:
            (tmp_path / name).write_text(content)
        assert report.main([str(tmp_path / name)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and re.fullmatch(rf"report\.py: cannot read .*{name}: .+\n", err)


def test_executes_and_writes_three_files(tmp_path, monkeypatch, capfd):
    rogue = tmp_path / "jupyter" / "kernels" / "python3"  # a kernel of the same name from another installation
    rogue.mkdir(parents=True)
    (rogue / "kernel.json").write_text(json.dumps({"argv": ["/bin/false"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    home = tmp_path / "a folder"
    home.mkdir()
    (home / "data.txt").write_text("read from its own folder")
    cells = [
        new_markdown_cell("# Run\n\n![Saved.](p.png)"),
        cell(
            "import os, sys\nprint(os.environ['REPORT_PROFILE'], open('data.txt').read(), sys.executable)",
            execution={"x": "old"},
        ),
        cell(
            "from IPython.display import Image, display\nImage(data=open('p.png', 'rb').read(), format='png', alt='Its caption.')"
        ),
        cell("undisclosed = 1", tags=["remove_cell"]),
    ]
    (home / "p.png").write_bytes(picture())
    nbformat.write(new_notebook(cells=cells, metadata={"title": "Run"}), home / "run.ipynb")
    before = (home / "run.ipynb").read_bytes()

    assert report.main([str(home / "run.ipynb"), "--profile", "quick", "--output-dir", str(tmp_path / "out")]) == 0
    out, err = capfd.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()] == [
        str(tmp_path / "out" / f"run.{x}") for x in ("ipynb", "pdf", "html")
    ]
    assert all(re.search(r"  \d+\.\d\d MB  \d+\.\d s$", line) for line in out.splitlines())
    assert "3/3" in err and "00:" in err and "WARNING" not in err
    assert sorted(os.listdir(tmp_path / "out")) == ["run.html", "run.ipynb", "run.pdf"]
    assert (home / "run.ipynb").read_bytes() == before
    nb = nbformat.read(tmp_path / "out" / "run.ipynb", as_version=4)
    assert nb.cells[1].outputs[0].text == f"quick read from its own folder {sys.executable}\n"
    assert [c.execution_count for c in nb.cells[1:]] == [1, 2, 3] and not any(
        "execution" in c.metadata for c in nb.cells
    )
    text = pypdf.PdfReader(tmp_path / "out" / "run.pdf").pages[0].extract_text()
    assert "Figure 2: Its caption." in text and "undisclosed" not in text
    page = (tmp_path / "out" / "run.html").read_text()
    assert "<title>Run</title>" in page and "<p>Its caption.</p>" in page and "undisclosed" not in page
    assert 'alt="Saved."' in page and 'src="p.png"' not in page  # embedded

    # In place: only the exports are new, since nothing was executed.
    assert report.main([str(home / "run.ipynb"), "--no-execute"]) == 0
    assert (home / "run.ipynb").read_bytes() == before and (home / "run.pdf").exists() and (home / "run.html").exists()
    assert not [name for name in os.listdir(home) if name.endswith(".tmp")]


def test_a_failing_cell_is_named_and_nothing_is_written(tmp_path, capfd):
    cells = [cell("x = 1"), new_markdown_cell("text"), cell("y = x\nraise ValueError(f'no {y}')"), cell("z = 3")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "bad.ipynb")
    before = (tmp_path / "bad.ipynb").read_bytes()
    assert report.main([str(tmp_path / "bad.ipynb")]) == 1
    out, err = capfd.readouterr()
    assert err.splitlines()[-1] == "report.py: code cell 2 failed (y = x): ValueError: no 1" and "Traceback" not in err
    assert out == "" and os.listdir(tmp_path) == ["bad.ipynb"] and (tmp_path / "bad.ipynb").read_bytes() == before
