"""The PDF and the program: each thing a notebook may hold must arrive, whole, in its place and within the margins."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import psutil
import pypandoc
import pypdf
import pytest
import typst
from nbconvert.exporters import get_exporter
from nbformat.v4 import new_markdown_cell, new_notebook
from PIL import Image
from sample_notebook import (
    FORMULAS,
    LINE_110,
    LONG_CHAIN,
    LONG_LINE,
    LONG_WORD,
    cell,
    html,
    picture,
    said,
    sample,
    save,
    shown,
)

import report
from lib.export import exporter

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder whose name has a space, with the notebook and a picture it refers to."""
    folder = tmp_path_factory.mktemp("a b")
    save(sample(), folder, "my notebook.ipynb")
    return folder


class Export:
    """The PDF of a notebook, its text, the Typst source behind it and its pages as pictures."""

    def __init__(self, path):
        real, seen = typst.compile, {}

        def compile(source, **options):
            seen["source"] = source.read_text(encoding="utf-8")
            seen["pages"] = real(source, **options | {"format": "png", "ppi": 72})
            return real(source, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(typst, "compile", compile)
            self.pdf = report.TypstPDFExporter().from_filename(str(path))[0]
        self.reader = pypdf.PdfReader(io.BytesIO(self.pdf))
        self.source = seen["source"].removeprefix((exporter.HERE / "preamble.typ").read_text())
        pages = seen["pages"] if isinstance(seen["pages"], list) else [seen["pages"]]
        self.pages = [np.asarray(Image.open(io.BytesIO(page)).convert("L")) for page in pages]

    @cached_property
    def text(self):
        return "\n".join(page.extract_text() for page in self.reader.pages)

    @property
    def words(self):
        return re.sub(r"\s+", " ", self.text)

    @property
    def letters(self):
        return re.sub(r"\s+", "", self.text)


@pytest.fixture(scope="module")
def export(folder):
    return Export(folder / "my notebook.ipynb")


def convert(tmp_path, *cells, **metadata):
    path = tmp_path / "n.ipynb"
    nbformat.write(new_notebook(metadata={"title": "T", **metadata}, cells=list(cells)), path)
    return Export(path)


def test_title_block_contents_and_page_numbers(export):
    assert export.words.startswith('A *plain* title Ann "A" O\'Hara, B. #2 4 May 2026 Abstract Abstract words.')
    assert "The first words, with inline_code" in export.words
    assert export.words.index("Contents 1 Data") < export.words.index("See maths")
    assert export.text.count("A *plain* title") == 1
    assert re.search(r"2 The maths [. ]+ \d 3 Code and output [. ]+ \d", export.words) and "3.1 Tables" in export.words
    facts = export.reader.metadata
    assert facts.title == "A *plain* title" and facts.author == 'Ann "A" O\'Hara, B. #2'
    assert str(facts.creation_date.date()) == "2026-05-04"
    for number, page in enumerate(export.reader.pages, 1):
        assert page.extract_text().rstrip().endswith(f"{number} / {len(export.reader.pages)}")


def test_it_is_tagged_and_has_bookmarks(export):
    root = export.reader.trailer["/Root"]
    assert root["/MarkInfo"]["/Marked"] and root["/Lang"] == "en"
    assert b"<pdfuaid:part>1</pdfuaid:part>" in export.reader.xmp_metadata.stream.get_data()
    assert [entry.title for entry in export.reader.outline if not isinstance(entry, list)] == [
        "1 Data", "2 The maths", "3 Code and output",
    ]  # fmt: skip
    assert "/StructTreeRoot" in root


def test_contents_come_before_the_first_question_and_figures_stay_within_theirs(tmp_path):
    cells = "# T\n\n## Findings\n\nFive.", "## Question 1: data\n\nWords.", "## Appendix A: grid"
    made = convert(tmp_path, *map(new_markdown_cell, cells))
    first = re.sub(r"\s+", " ", made.reader.pages[0].extract_text())
    assert first.index("Five.") < first.index("Contents") < first.index("Words.")
    for heading in ("Question~1", "Appendix A"):
        assert re.search(rf"#place\.flush\(\)\s+= {heading}", made.source)


def test_headings_may_skip_levels_and_occur_twice(tmp_path):
    made = convert(tmp_path, new_markdown_cell("## A\n\n#### Try it\n\n## B\n\n### Try it\n\n[x](#Try-it)"))
    assert "<Try-it>" in made.source and "<Try-it-2>" in made.source and "=== " not in made.source


def test_questions_that_number_themselves_are_not_numbered_again(tmp_path):
    words = convert(
        tmp_path, new_markdown_cell("# T\n\n## Question 1: data\n\n### Part"), new_markdown_cell("## Layer 2")
    ).words
    assert "Question 1: data" in words and "1.1 Part" not in words
    assert "2 Layer 2" in convert(tmp_path, new_markdown_cell("## Data"), new_markdown_cell("## Layer 2")).words


def test_nothing_reaches_into_the_margins(export):
    assert len(export.pages) == len(export.reader.pages)
    for number, page in enumerate(export.pages, 1):
        assert page.shape == (842, 595)
        assert (page[:, :55] > 250).all() and (page[:, -55:] > 250).all(), (
            f"page {number}"
        )  # 62 points less a listing's


def test_links(export):
    found = [note.get_object() for page in export.reader.pages for note in page.get("/Annots") or []]
    assert {note["/A"]["/URI"] for note in found if "/A" in note and "/URI" in note["/A"]} == {
        "https://example.com/page"
    }
    assert "#link(<The-maths>)[maths]" in export.source
    assert "#link(<two>)[Figure~3] and #link(<levels>)[Tables~2] and #link(<words>)[3]" in export.source


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
def test_what_pandoc_writes_badly_is_rewritten(tex, good, bad):
    options = [f"--lua-filter={exporter.HERE / 'filter.lua'}"]
    out = pypandoc.convert_text(f"${tex}$", "typst", exporter.READER, options, verify_format=False)
    out = re.sub(r"#set math.equation\(.*?\)\n", "", out)
    assert good in out and bad not in out, out


def test_figures_have_numbers_captions_and_alternative_texts(export):
    captions = re.findall(r"(Figure \d)\. (A .*?\.|The second\.|An .*?\.)", export.words)
    assert [number for number, _ in captions] == [f"Figure {i}" for i in range(1, 5)]
    assert [text for _, text in captions][::2] == ["A saved file.", "The second."]
    assert re.search(r"Figure 2\. A caption with 𝑥 ?1 ?, “quotes” and \[brackets\]\.", export.words)
    assert "<Figure" not in export.text
    assert 'alt: "A caption with x₁, “quotes” and [brackets].")' in export.source
    assert export.source.count("image(") == 6  # one has no caption, one stands within a line
    assert len({image.data for page in export.reader.pages for image in page.images}) == 5  # as many are different


def test_a_vector_figure_takes_the_place_of_its_picture(tmp_path):
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="200pt" height="80pt"><text x="20" y="40" style="{}">{}</text></svg>'
    (tmp_path / "figures").mkdir()
    for name, colour in ("same", "navy"), ("other", "red"):
        (tmp_path / "figures" / f"{name}.png").write_bytes(picture(colour=colour))
        drawing = svg.format("font-size: 10px; font-family: 'STIXGeneral', sans-serif", f"vector {name}")
        (tmp_path / "figures" / f"{name}.svg").write_text(drawing, encoding="utf-8")
    cells = [cell("f()", shown(), said(f"**Figure.**<!--#{name}--> Words.")) for name in ("same", "other", "none")]
    made = convert(tmp_path, *cells)
    assert "vector same" in made.words and "vector other" not in made.words  # the latter is a figure of another run
    fonts = {
        str(font.get_object()["/BaseFont"])
        for page in made.reader.pages
        for font in page["/Resources"]["/Font"].values()
    }
    assert any("LibertinusSerif-Regular" in font for font in fonts) and not any("STIX" in font for font in fonts)


def test_floats_leave_no_white(tmp_path):
    """Figures of a third to a half of a page between paragraphs: no page but the last has a gap of a third."""
    figures = [
        cell(f"figure({i})", shown(width=600, height=300 + 50 * (i % 4)), said(f"**Figure.**<!--#f{i}--> Words."))
        for i in range(9)
    ]
    prose = "\n\n".join(["Sentences of a paragraph follow each other. " * 9] * 3)
    made = convert(tmp_path, *[one for figure in figures for one in (figure, new_markdown_cell(prose))])
    assert len(made.pages) > 4
    for number, page in enumerate(made.pages[:-1], 1):
        assert gap(page) < 1 / 3, f"page {number}"


def gap(page):
    """The highest white band of a page, as a share of its text's height."""
    inked = np.flatnonzero((page[51:-51] < 245).any(axis=1))
    edges = np.concatenate([[0], inked, [len(page) - 102]])
    return np.diff(edges).max() / (len(page) - 102)


def lines_of(pages):
    return [line.rstrip() for page in pages for line in page.extract_text(extraction_mode="layout").splitlines()]


def test_code_is_whole_and_only_lines_over_120_columns_wrap(tmp_path, export):
    assert LONG_LINE.replace(" ", "") + LONG_CHAIN in export.letters
    laid_out = "\n".join(lines_of(export.reader.pages))
    assert re.search(r"\n *result = .*\n {5,}argument_\d", laid_out)  # a wrapped line hangs
    assert LONG_WORD + LONG_WORD not in export.letters and export.letters.count(LONG_WORD) == 2  # prose and output
    assert "```python\nresult" in export.source and "def shown(x): return x" in export.words
    assert len(LINE_110) == 110
    for width in (110, 120):
        line = LINE_110[:-5] + "-" * (width - 110) + LINE_110[-5:]
        made = convert(tmp_path, cell(f"a = 1\n{line}"))
        assert (
            sum("0123456789" in row for row in lines_of(made.reader.pages)) == 1
            and line.replace(" ", "") in made.letters
        )
        assert any("a = 1" in row for row in lines_of(made.reader.pages))


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
    assert "Two runs, styled." in export.words and "Table 2. Two levels." in export.words
    assert "Table 4. Long." in export.words and "Table 5" not in export.words
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


def test_no_line_ends_before_a_per_cent_sign_a_number_of_a_figure_or_around_an_equals_sign(tmp_path):
    text = "Question 3\nis 12\n%, and Figure 1<!--@f--> has 5 %, p = 0.3.\n\n**Figure.**<!--#f--> All of Table 2 %."
    path = write_notebook(tmp_path / "n.ipynb", new_markdown_cell(text))
    assert report.main([str(path), "--no-execute"]) == 0
    source = Export(path).source
    assert [word in source for word in ("Question~3", "12~%", "Figure~1", "5~%", "p~=~0.3", "Table~2~%")] == [True] * 6


def test_no_line_ends_within_a_short_formula_and_a_long_one_still_breaks(tmp_path):
    short = convert(
        tmp_path, new_markdown_cell(" ".join("i" * (7 * k % 60) + r" $\beta_1 = 0.999$" for k in range(300)))
    )
    lines = [line.strip() for page in short.reader.pages for line in page.extract_text().splitlines()]
    assert sum("=" in line for line in lines) > 5 and not [
        line for line in lines if line[-1:] == "=" or line[:1] == "="
    ]
    long = convert(tmp_path, new_markdown_cell("$" + " + ".join(["x_1 x_2 x_3"] * 40) + "$"))
    assert len(long.reader.pages[0].extract_text().splitlines()) > 4


def test_the_same_notebook_gives_the_same_bytes(folder, export, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = get_exporter("report.TypstPDFExporter")()
    assert made.file_extension == ".pdf"
    pdf, resources = made.from_filename(os.path.relpath(folder / "my notebook.ipynb"))
    assert pdf == export.pdf and not resources.get("outputs")


def test_without_metadata_the_file_gives_the_title(tmp_path):
    nbformat.write(new_notebook(cells=[new_markdown_cell("words")]), tmp_path / "bare.ipynb")
    assert Export(tmp_path / "bare.ipynb").words.startswith("bare words 1 / 1")


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
        new_markdown_cell(
            "# Run\n\n![S](p.png)\n\n**Figure.**<!--#p--> Saved.\n\nFigure ?<!--@its--> says **?<!--= 6 * seven -->**."
        ),
        cell(
            "import os, sys\nprint(os.environ['REPORT_PROFILE'], open('data.txt').read(), sys.executable)",
            execution={"x": "old"},
        ),
        cell(
            "from IPython.display import Image, Markdown, display\n"
            "display(Image(data=open('p.png', 'rb').read()), Markdown('**Figure.**<!--#its--> Its caption.'))"
        ),
        cell("undisclosed, seven = 1, 7", tags=["remove_cell"]),
        cell(
            "from pathlib import Path\n"
            "Path(os.environ['REPORT_FIGURES'], 'its.png').write_bytes(open('p.png', 'rb').read()) and None"
        ),
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
    assert "4/4" in err and "00:" in err and "WARNING" not in err
    assert sorted(os.listdir(tmp_path / "out")) == ["figures", "run.html", "run.ipynb", "run.pdf"]
    assert (tmp_path / "out" / "figures" / "its.png").read_bytes() == picture()
    assert sorted(os.listdir(home)) == ["data.txt", "p.png", "run.ipynb"]
    assert (home / "run.ipynb").read_bytes() == before
    nb = nbformat.read(tmp_path / "out" / "run.ipynb", as_version=4)
    assert nb.cells[1].outputs[0].text == f"quick read from its own folder {sys.executable}\n"
    assert [c.execution_count for c in nb.cells[1:]] == [1, 2, 3, 4]
    assert not any("execution" in c.metadata for c in nb.cells)
    assert "Figure 2<!--@its--> says **42<!--= 6 * seven -->**." in nb.cells[0].source
    assert nb.cells[2].outputs[1].data["text/markdown"].startswith("**Figure 2.**") and len(nb.metadata.date) == 10
    text = pypdf.PdfReader(tmp_path / "out" / "run.pdf").pages[0].extract_text().replace("\xa0", " ")
    assert "Figure 2. Its caption." in text and "Figure 2 says 42." in text and "undisclosed" not in text
    page = (tmp_path / "out" / "run.html").read_text(encoding="utf-8")
    assert "<title>Run</title>" in page and 'alt="Saved."' in page and "undisclosed" not in page
    assert 'src="p.png"' not in page  # embedded

    # In place: only the exports are new, since nothing was executed.
    shutil.copy(tmp_path / "out" / "run.ipynb", home)
    before = (home / "run.ipynb").read_bytes()
    assert report.main([str(home / "run.ipynb"), "--no-execute"]) == 0
    assert (home / "run.ipynb").read_bytes() == before
    assert sorted(os.listdir(home)) == ["data.txt", "p.png", "run.html", "run.ipynb", "run.pdf"]


def test_a_failing_cell_is_named_and_nothing_is_written(tmp_path, capfd):
    cells = [cell("x = 1"), new_markdown_cell("text"), cell("y = x\nraise ValueError(f'no {y}')"), cell("z = 3")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "bad.ipynb")
    before = (tmp_path / "bad.ipynb").read_bytes()
    assert report.main([str(tmp_path / "bad.ipynb")]) == 1
    out, err = capfd.readouterr()
    assert err.splitlines()[-1] == "report.py: code cell 2 failed (y = x): ValueError: no 1" and "Traceback" not in err
    assert out == "" and os.listdir(tmp_path) == ["bad.ipynb"] and (tmp_path / "bad.ipynb").read_bytes() == before


def run(path, *options, env=None, **kw):
    command = [sys.executable, str(ROOT / "report.py"), str(path), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | (env or {}), **kw)


def write_notebook(path, *cells):
    nbformat.write(new_notebook(cells=list(cells), metadata={"title": "T"}), path)
    return path


PERSON = """
import locale, os, sys
import matplotlib
import pandas as pd
from matplotlib import pyplot as plt
print(plt.rcParams["figure.dpi"], plt.rcParams["font.size"], matplotlib.get_backend(), 1 / 3, locale.getlocale()[1])
print(sys.flags.optimize, sys.getfilesystemencoding(), hash("a"), os.environ.get("LINES"), "started" in globals())
1 + 1
pd.DataFrame({f"column {i}": [i / 3] for i in range(30)})
"""


def test_nothing_of_a_person_changes_an_output(tmp_path):
    """A matplotlibrc, a profile of IPython with a start-up file, and variables that change Python, pandas and pictures."""
    notebook = write_notebook(tmp_path / "n.ipynb", cell(PERSON))
    profile = tmp_path / "ipython" / "profile_default"
    (profile / "startup").mkdir(parents=True)
    (profile / "startup" / "first.py").write_text("started = True")
    (profile / "ipython_config.py").write_text(
        "c = get_config()\nc.InteractiveShell.ast_node_interactivity = 'all'\nc.PlainTextFormatter.float_precision = 2\n"
    )
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "matplotlibrc").write_text("figure.dpi: 33\nfont.size: 33\n")
    (tmp_path / "start.py").write_text("started = True")
    person = {
        "IPYTHONDIR": profile.parent,
        "MATPLOTLIBRC": tmp_path / "config",
        "MPLCONFIGDIR": tmp_path / "config",
        "MPLBACKEND": "svg",
    }
    person |= {"PYTHONSTARTUP": tmp_path / "start.py", "PYTHONOPTIMIZE": "2", "PYTHONHASHSEED": "7", "LINES": "9"}
    person |= {"COLUMNS": "20", "PYTHONWARNINGS": "error", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert report.main([str(notebook), "--output-dir", str(tmp_path / "plain")]) == 0
    env = {key: str(value) for key, value in person.items()}
    done = run(notebook, "--output-dir", tmp_path / "person", env=env, cwd=tmp_path / "config")
    assert done.returncode == 0, done.stderr
    plain, other = (nbformat.read(tmp_path / name / "n.ipynb", 4).cells[0].outputs for name in ("plain", "person"))
    assert plain == other and len(plain) == 2 and plain[0].text.startswith("100.0 10.0")


def test_a_read_only_folder_is_enough(tmp_path):
    """Who may write anywhere (root) is not stopped, but nothing is written there."""
    home = tmp_path / "checkout"
    home.mkdir()
    notebook = write_notebook(
        home / "n.ipynb", cell("import os; open(os.environ['REPORT_FIGURES'] + '/a.png', 'w').write('x')")
    )
    home.chmod(0o555)
    try:
        done = run(notebook, "--output-dir", tmp_path / "out")
    finally:
        home.chmod(0o755)
    assert done.returncode == 0 and os.listdir(home) == ["n.ipynb"], done.stderr
    assert (tmp_path / "out" / "figures" / "a.png").read_text() == "x"


def test_a_full_disk_leaves_all_files_as_they_were(tmp_path, monkeypatch):
    """The second or third of the files cannot be written: those before it, which could, are the old ones, too."""
    notebook = write_notebook(tmp_path / "n.ipynb", cell("x", shown(width=900, height=900)))
    old = {name: f"old {name}" for name in ("n.pdf", "n.html")}
    for name, text in old.items():
        (tmp_path / name).write_text(text)
    limit = "ulimit -f 8; trap '' XFSZ; exec \"$@\""
    command = ["bash", "-c", limit, "bash", sys.executable, str(ROOT / "report.py"), str(notebook), "--no-execute"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and re.fullmatch(
        r"report\.py: .*n\.\w+ cannot be written: File too large; .*\n", done.stderr
    )
    assert {name: (tmp_path / name).read_text() for name in old} == old
    assert sorted(os.listdir(tmp_path)) == ["n.html", "n.ipynb", "n.pdf"]


@pytest.mark.parametrize("output", ["full disk", "nobody reads"])
def test_what_standard_output_does_not_take_is_one_sentence(tmp_path, output):
    notebook = write_notebook(tmp_path / "n.ipynb", new_markdown_cell("words"))
    target = "> /dev/full" if output == "full disk" else "| (exec 0<&-; sleep 9 & wait)"
    line = f'"$0" "$1" "$2" --no-execute {target}; echo "${{PIPESTATUS[0]}}"'
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = ["bash", "-c", line, sys.executable, str(ROOT / "report.py"), str(notebook)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.stdout == "2\n" and len(done.stderr.splitlines()) == 1, done.stderr
    assert (tmp_path / "n.pdf").exists()


@pytest.mark.parametrize("during", ["imports", "cell"])
def test_ctrl_c_is_one_sentence_and_the_kernel_is_gone(tmp_path, during):
    """While the program is still imported, and while a cell runs that has a process of its own."""
    began = tmp_path / "began"
    busy = f"import subprocess, time\nopen({str(began)!r}, 'w').close()\n"
    notebook = write_notebook(tmp_path / "n.ipynb", cell(f"{busy}subprocess.run(['sleep', '300'])"))
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "pypandoc.py").write_text(f"{busy}time.sleep(300)")
    env = os.environ | ({"PYTHONPATH": str(tmp_path / "slow")} if during == "imports" else {})
    before = notebook.read_bytes()
    command = [sys.executable, str(ROOT / "report.py"), str(notebook)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=env)
    deadline = time.monotonic() + 60
    while not began.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == (2 if during == "cell" else 0)
    os.killpg(process.pid, signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in err and "never retrieved" not in err, err
    assert err.splitlines()[-1] == "report.py: interrupted; no file has changed"
    assert not psutil.wait_procs(children, timeout=5)[1]
    assert notebook.read_bytes() == before and sorted(os.listdir(tmp_path)) == ["began", "n.ipynb", "slow"]


def test_a_value_that_ends_the_kernel_is_named_and_not_waited_for(tmp_path):
    notebook = write_notebook(
        tmp_path / "n.ipynb", cell("1"), new_markdown_cell("v 3<!--= __import__('os')._exit(1) -->")
    )
    before = notebook.read_bytes()
    done = subprocess.run(
        [sys.executable, str(ROOT / "report.py"), str(notebook)], capture_output=True, text=True, timeout=60
    )
    sentence = "report.py: the kernel died at one of the values: __import__('os')._exit(1)"
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == sentence, done.stderr
    assert notebook.read_bytes() == before


def test_check_compares_the_text_with_the_tables(tmp_path, capsys):
    (tmp_path / "table.csv").write_text("accuracy\n0.8913\n")
    cells = [
        cell(
            "import csv\n\ndef accuracy():\n    return float(next(csv.DictReader(open('table.csv')))['accuracy'])",
            tags=["setup"],
        ),
        cell("raise ValueError('is not run')"),
        new_markdown_cell("It reaches 0.8913<!--= accuracy() --> and **89.1 %<!--= 'wrong' -->**."),
    ]
    cells[
        2
    ].source = "It reaches 0.8913<!--= accuracy() -->, <!--:-->89.1 %<!--= f'{accuracy():.1%}'.replace('%', ' %') -->."
    notebook = write_notebook(tmp_path / "n.ipynb", *cells)
    assert report.main([str(notebook), "--check"]) == 0
    (tmp_path / "table.csv").write_text("accuracy\n0.8927\n")
    before = notebook.read_bytes()
    assert report.main([str(notebook), "--check"]) == 1
    assert "cell 2 says 0.8913, but accuracy() is 0.8927\ncell 2 says 89.1 %, but" in capsys.readouterr().out
    assert notebook.read_bytes() == before
    cells[2].source = "0.1<!--= later -->"
    assert report.main([str(write_notebook(notebook, *cells)), "--check"]) == 2
    assert "report.py: cell 2: later fails: NameError" in capsys.readouterr().err


def test_what_is_not_well_formed_in_the_text_is_status_2(tmp_path, capsys):
    notebook = write_notebook(tmp_path / "n.ipynb", new_markdown_cell("Figure 1<!--@nowhere-->"))
    assert report.main([str(notebook), "--no-execute"]) == 2
    assert capsys.readouterr().err == "report.py: cell 0: no Figure has a caption named nowhere\n"


@pytest.fixture(scope="module")
def committed():
    return Export(ROOT / "assignment1.ipynb")


def parts(reader):
    """The pages' numbers by part: the main part, then each appendix, as the bookmarks say."""
    entries = [entry for entry in reader.outline if not isinstance(entry, list) and entry.title.startswith("Appendix")]
    edges = [0, *map(reader.get_destination_page_number, entries), len(reader.pages)]
    return [range(first, last) for first, last in zip(edges, edges[1:])]


def test_the_committed_pdf_is_that_of_the_committed_notebook_and_figures(committed):
    same = committed.pdf == (ROOT / "assignment1.pdf").read_bytes()
    assert same, "make report writes it"  # by itself, pytest compares two megabytes line by line, for hours


def test_the_committed_report_has_no_white_pages_and_is_not_too_long(committed):
    print({"pages": [len(part) for part in parts(committed.reader)]})
    for part in parts(committed.reader):
        for number in part[:-1]:
            assert gap(committed.pages[number]) < 1 / 3, f"page {number + 1}"
    main, *appendices = map(len, parts(committed.reader))
    assert main <= 18 and main + sum(appendices) <= 32


def test_every_figure_and_table_of_the_committed_report_is_numbered_captioned_and_referred_to(committed):
    labels = re.findall(r"(?:#figure\(image|, kind: table).*?\) <([\w-]+)>|\)\n<([\w-]+)>", committed.source, re.S)
    names = {name or other for name, other in labels}
    referred = set(re.findall(r"#link\(<([\w-]+)>\)\[(?:Figures?|Tables?)?~?\d", committed.source))
    assert len(names) > 20 and names <= referred, names - referred
    assert not re.search(r"#align\(center, image", committed.source)  # a picture without a caption


def test_text_in_the_committed_vector_figures_is_at_least_7_points_on_the_page():
    paths = sorted((ROOT / "figures").glob("*.svg"))
    assert len(paths) > 15
    for path in paths:
        text = path.read_text(encoding="utf-8")
        width = float(re.search(r'<svg[^>]* width="([\d.]+)pt"', text)[1])
        sizes = [float(size) for size in re.findall(r'<text style="[^"]*font-size: ([\d.]+)px', text)]
        sizes += [float(size) for size in re.findall(r'<text style="font: (?:\w+ )*([\d.]+)px', text)]
        assert min(sizes, default=9) * min(1, 470.5 / width) >= 7, path.name
