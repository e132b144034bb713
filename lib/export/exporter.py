"""Export the notebook with pandoc: to PDF through Typst, and to one HTML file that needs no network."""

import base64
import copy
import datetime
import json
import os
import re
import tempfile
from pathlib import Path

import jinja2
import pypandoc
import typst
from nbconvert.exporters import Exporter
from nbconvert.filters import strip_ansi
from traitlets import Unicode, default

from lib.export import literals

HERE = Path(__file__).parent
# Jupyter's Markdown is GitHub's, with formulas; the last extension is for the template.
READER = "gfm-emoji+tex_math_dollars+smart+raw_attribute"
ENVIRONMENT = r"\$\$.*?\$\$|^[ \t]*(\\begin\{(align|equation|gather|eqnarray|multline)(\*?)\}.*?\\end\{\2\3\})"
MEASURED = "STIXGeneral"  # the face in which plots.py measures the text of a vector figure


def fence_environments(source):
    """Put `$$` around the bare `\\begin{align}` that Jupyter accepts; what is already inside dollars stays."""
    return re.sub(ENVIRONMENT, lambda match: f"$$\n{match[1]}\n$$" if match[1] else match[0], source, flags=re.S | re.M)


def add_vectors(nb, folder, face):
    """Give each picture the vector figure of `folder` with the name in the caption after it, if it shows the same."""
    shown = []
    for cell in nb.cells:
        if cell.cell_type == "code":
            shown += [output.data for output in cell.outputs if "data" in output]
        else:
            shown.append({"text/markdown": cell.source})
    for picture, after in zip(shown, shown[1:]):
        found = re.match(literals.CAPTION, after.get("text/markdown", ""))
        path = folder / f"{found['name']}.svg" if found else None
        if path and path.exists() and same_picture(path.with_suffix(".png"), picture.get("image/png", "")):
            picture["image/svg+xml"] = path.read_text(encoding="utf-8").replace(f"'{MEASURED}'", face)


def same_picture(path, encoded):
    """Tell whether the file holds the picture that an output holds in base64."""
    return path.exists() and path.read_bytes() == base64.b64decode(encoded)


class PandocExporter(Exporter):
    """Turn a notebook into Markdown, and that into a document (pandoc); title, authors, date, abstract are metadata."""

    figures = Unicode("figures", help="folder of the vector figures, from the notebook's").tag(config=True)
    kinds = ("text/html", "text/markdown", "text/latex", "image/svg+xml", "image/png", "image/jpeg", "text/plain")
    face = "'Libertinus Serif'"  # of the text in vector figures

    @property
    def default_config(self):
        """Return which of nbconvert's preprocessors to use, and our tags."""
        config = super().default_config
        for name in ("TagRemove", "CoalesceStreams", "HighlightMagics", "ExtractOutput", "ExtractAttachments"):
            config[f"{name}Preprocessor"].enabled = True
        config.TagRemovePreprocessor.remove_cell_tags = ["remove_cell"]
        config.TagRemovePreprocessor.remove_input_tags = ["remove_input", "hide_input"]
        config.TagRemovePreprocessor.remove_all_outputs_tags = ["remove_output"]
        return config

    def from_notebook_node(self, nb, resources=None, **kw):
        """Return the document and the resources."""
        nb = copy.deepcopy(nb)
        folder = Path((resources or {}).get("metadata", {}).get("path") or ".").resolve()
        literals.number(nb)
        add_vectors(nb, folder / self.figures, self.face)
        nb, resources = super().from_notebook_node(nb, resources, **kw)
        metadata = dated({"title": resources["metadata"].get("name", "Notebook"), **nb.metadata})
        markdown = self.markdown(nb)
        # The notebook's own title would repeat the title block.
        markdown = re.sub(rf"\A\s*# {re.escape(metadata['title'])}[ \t]*$", "", markdown, flags=re.M)
        with tempfile.TemporaryDirectory() as scratch:
            for name, data in resources.pop("outputs", {}).items():
                path = Path(scratch, name)
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)
            options = ["--wrap=none", "--fail-if-warnings", f"--lua-filter={HERE / 'filter.lua'}"]
            options.append(f"--resource-path={scratch}{os.pathsep}{folder}")
            return self.convert(markdown, options, metadata, scratch), resources

    def markdown(self, nb):
        """Return the notebook as Markdown for pandoc; of each output the first of `kinds` that it has."""
        environment = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE, "utf-8"))
        environment.filters["strip_ansi"] = strip_ansi
        environment.filters["markdown"] = lambda text: fence_environments(literals.plain(text))
        environment.filters["best_kind"] = lambda output: next((k for k in self.kinds if k in output.data), None)
        return environment.get_template("notebook.md.j2").render(nb=nb)


class TypstPDFExporter(PandocExporter):
    """Notebook -> Markdown -> Typst (pandoc) -> PDF, tagged, with vector figures."""

    export_from_notebook = "PDF via Typst"
    output_mimetype = "application/pdf"

    @default("file_extension")
    def _file_extension_default(self):
        return ".pdf"

    def convert(self, markdown, options, metadata, scratch):
        """Return the PDF's bytes; raise RuntimeError where Typst cannot set something."""
        body = pypandoc.convert_text(markdown, "typst", READER, options, cworkdir=scratch, verify_format=False)
        source = Path(scratch, "report.typ")
        source.write_text((HERE / "preamble.typ").read_text(encoding="utf-8") + body, encoding="utf-8")
        inputs = {"metadata": json.dumps(metadata)}
        try:
            return typst.compile(
                source, format="pdf", ignore_system_fonts=True, sys_inputs=inputs, pdf_standards="ua-1"
            )
        except typst.TypstError as error:  # its message names no place, the diagnostic shows the line
            raise RuntimeError(f"Typst cannot set this:\n{error.diagnostic}") from None


class PageExporter(PandocExporter):
    """Notebook -> Markdown -> one HTML file (pandoc) that holds its pictures, its style and its formulas (MathML)."""

    export_from_notebook = "HTML without network"
    output_mimetype = "text/html"
    face = "'STIX Two Text', STIXGeneral, 'Times New Roman', 'Liberation Serif', serif"  # all as wide as that measured

    @default("file_extension")
    def _file_extension_default(self):
        return ".html"

    def convert(self, markdown, options, metadata, scratch):
        """Return the page."""
        shown = {"author": [literal(author["name"]) for author in metadata.get("authors", [])]}
        shown |= {name: literal(metadata[name]) for name in ("title", "date", "abstract") if name in metadata}
        Path(scratch, "metadata.json").write_text(json.dumps(shown), encoding="utf-8")
        options = [*options, "--metadata-file=metadata.json"]
        options += [f"--template={HERE / 'page.html'}", f"--css={HERE / 'page.css'}"]
        options += ["--standalone", "--embed-resources", "--mathml", "--toc", "--toc-depth=3", "--section-divs"]
        page = pypandoc.convert_text(markdown, "html5", READER, options, cworkdir=scratch, verify_format=False)
        return re.sub(r"<annotation encoding=\"application/x-tex\">.*?</annotation>", "", page, flags=re.S)


def literal(text):
    """Return the Markdown that shows `text` as it is."""
    return re.sub(r"([^\w\s])", r"\\\1", text)


def dated(metadata):
    """Return the metadata with a date in ISO's form written out, and as [year, month, day] in `day` for the PDF."""
    try:
        day = datetime.date.fromisoformat(str(metadata.get("date")))
    except ValueError:
        return metadata
    return metadata | {"date": f"{day.day} {day:%B} {day.year}", "day": [day.year, day.month, day.day]}
