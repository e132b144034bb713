"""Execute the notebook and export it: the PDF through pandoc and Typst, the HTML with nbconvert's own exporter.

`python report.py` does it all; `jupyter nbconvert --to report.TypstPDFExporter assignment1.ipynb` makes the PDF alone.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pypandoc
import typst
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert.exporters import HTMLExporter, MarkdownExporter
from nbconvert.filters import strip_ansi
from tqdm import tqdm
from traitlets import default
from traitlets.config import Config

# Jupyter's Markdown is GitHub's, with formulas; the last two extensions are for the template below.
READER = "gfm-emoji+tex_math_dollars+smart+implicit_figures+fenced_divs+raw_attribute"
TAGS = Config()
TAGS.TagRemovePreprocessor.remove_cell_tags = ["remove_cell"]
TAGS.TagRemovePreprocessor.remove_input_tags = ["remove_input", "hide_input"]
TAGS.TagRemovePreprocessor.remove_all_outputs_tags = ["remove_output"]

# The notebook as Markdown. The fence is one that no printed text closes; the class `output` sets it apart.
MARKDOWN = r"""
{%- extends "markdown/index.md.j2" -%}
{%- set fence = "~" * 99 -%}
{%- macro verbatim(text) %}{% if text.strip() %}

{{ fence }} output
{{ text | strip_ansi }}
{{ fence }}
{% endif %}{% endmacro -%}
{%- block any_cell %}{% if cell.metadata.caption %}

:::::::: captioned
{{ cell.metadata.caption }}
{% endif %}

{{ super() }}
{% if cell.metadata.caption %}

::::::::
{% endif %}{% endblock -%}
{%- block input %}{% if cell.source.strip() %}

{{ fence }} python
{{ cell.source }}
{{ fence }}
{% endif %}{% endblock -%}
{%- block markdowncell %}{{ cell.source | fence_environments }}{% endblock -%}
{%- block data_html %}

{{ fence }} {=html}
{{ output.data["text/html"] }}
{{ fence }}
{% endblock -%}
{%- block stream %}{% if output.name == "stdout" %}{{ verbatim(output.text) }}{% endif %}{% endblock -%}
{%- block data_text %}{{ verbatim(output.data["text/plain"]) }}{% endblock -%}
{%- block error %}{{ verbatim(output.traceback | join("\n")) }}{% endblock -%}
{%- block data_png %}

![{{ output | get_metadata("alt", "image/png") or "" }}]({{ output.metadata.filenames["image/png"] | path2url }})
{% endblock -%}
"""

# nbconvert's own HTML, with the captions.
HTML = """
{%- extends "lab/index.html.j2" -%}
{%- block data_png %}{{ super() }}
{%- set caption = output | get_metadata("alt", "image/png") or cell.metadata.caption %}
<div style="text-align: center">{{ (caption or "") | markdown2html }}</div>
{%- endblock -%}
"""

# What pandoc alone gets wrong: formulas its Typst writer mistypesets, HTML outputs, captions, column types.
PANDOC_FILTER = r"""
local function pair(left, right)
  return function(body)
    return not body:gsub('%b{}', ''):gsub('%b()', ''):find '[%[%]{}()&]' and left .. body .. right or nil
  end
end
local tex_rewrites = {  -- labels, and bars: pandoc spaces them like relations unless it is told which ones pair
  {'\\label%b{}', ''}, {'\\[lr]?Vert%f[%A]', '\\|'}, {'\\[lr]?vert%f[%A]', '|'},
  {'\\[bB]igg?[lrm]?%s*(\\?|)', '%1'}, {'\\middle%s*|', '\\middle\\vert '},
  {'\\left%s*\\|', '\\left\\Vert '}, {'\\right%s*\\|', '\\right\\Vert '},
  {'\\left%s*|', '\\left\\vert '}, {'\\right%s*|', '\\right\\vert '},
  {'\\|(.-)\\|', pair('\\lVert ', '\\rVert ')}, {'\\|', '\\parallel '},
  {'|([^|]-)|', pair('\\left\\vert ', '\\right\\vert ')},
}
local typst_rewrites = {  -- symbols that Typst 0.15 renamed, spaces rounded to whole ems, big delimiters, operators
  {'%.circle%f[^%w]', '.o'}, {'%f[%w]sect%f[%W]', 'inter'}, {'bracket%.([lr])%.double', 'bracket.%1.stroked'},
  {'delim: "||"', 'delim: "|"'}, {'#h%(%-1em%)', '#h(-0.17em)'}, {'#h%(0em%)', 'thick'},
  {'#scale%(x: (%d)(%d)0%%, y: %d+%%%)%[\\?(.)%]', 'lr(size: #%1.%2em, \\%3)'},
  {'(%a*%(?)("%a[^"]*")', function(before, name)  -- \operatorname, not \text
    local text = #before > 1 and ('upright( bold( italic( mono( sans('):find(before, 1, true)
    return not text and before .. 'op(' .. name .. (name:find '^"arg' and ', limits: #true)' or ')') or nil
  end},
  {'%^(%b())%^(%b())', function(a, b) return '^(' .. a:sub(2, -2) .. ' ' .. b:sub(2, -2) .. ')' end},
  {'%^(%b())%^(%w+)', function(a, b) return '^(' .. a:sub(2, -2) .. ' ' .. b .. ')' end},
}
local function rewrite(text, rules)
  for _, rule in ipairs(rules) do text = text:gsub(rule[1], rule[2]) end
  return text
end

local function numeric(text)
  return #text < 24 and (text == '' or text == 'NaN' or text == '–' or text:match '^[-+−]*%d' ~= nil)
end

local function blank(cell)
  return not pandoc.utils.stringify(cell.contents):gsub('\u{A0}', ' '):find '%S'
end

local function disjoint(above, below)
  for i, cell in ipairs(below.cells) do
    local other = above.cells[i]
    if not other or other.col_span > 1 or not (blank(other) or blank(cell)) then return false end
  end
  return true
end

local function stack(heading)  -- narrow headings for a wide table: learning_rate takes two lines
  local words = heading:walk {Str = function(el) return pandoc.Inlines((el.text:gsub('_(.)', '_ %1'))) end}
  return words:walk {Space = function() return pandoc.LineBreak() end}
end

local function each_cell(rows, visit)
  for _, row in ipairs(rows) do
    for i, cell in ipairs(row.cells) do visit(cell, i, pandoc.utils.stringify(cell.contents)) end
  end
end

local first = {
  Math = function(el)
    local tag = el.text:match '\\tag(%b{})'
    el.text = rewrite(el.text:gsub('\\tag%b{}', ''), tex_rewrites)
    local text = rewrite(pandoc.write(pandoc.Pandoc{pandoc.Plain{el}}, 'typst'), typst_rewrites)
    if tag then text = '#[#set math.equation(numbering: _ => [(' .. tag:sub(2, -2) .. ')])\n' .. text .. ']' end
    return pandoc.RawInline('typst', text)
  end,
  RawBlock = function(el)
    if el.format ~= 'html' then return end
    local blocks = pandoc.read(el.text, 'html+tex_math_dollars').blocks
    return blocks:map(function(block) return block.t == 'Plain' and pandoc.Para(block.content) or block end)
  end,
  RawInline = function(el)
    return el.format == 'html' and pandoc.utils.blocks_to_inlines(pandoc.read(el.text, 'html').blocks) or nil
  end,
}

local second = {
  Para = function(el)
    local image = el.content[1]
    if #el.content == 1 and image.t == 'Image' then
      return pandoc.Figure(pandoc.Plain(image), {long = #image.caption > 0 and {pandoc.Plain(image.caption)} or {}})
    end
  end,
  Table = function(el)
    local longest, numbers, total, prose = {}, {}, 0, 0
    local above, below = el.head.rows[#el.head.rows - 1], el.head.rows[#el.head.rows]
    if above and disjoint(above, below) then  -- pandas puts the name of the index into a row of its own
      for i, cell in ipairs(below.cells) do
        if blank(cell) then cell.contents = above.cells[i].contents end
      end
      el.head.rows:remove(#el.head.rows - 1)
    end
    each_cell(el.head.rows, function(cell)
      if cell.col_span > 1 then cell.alignment = 'AlignCenter' end
      if #el.colspecs > 7 then cell.contents = stack(cell.contents) end
    end)
    for _, body in ipairs(el.bodies) do
      each_cell(body.body, function(_, i, text)
        longest[i], numbers[i] = math.max(longest[i] or 0, #text), numbers[i] ~= false and numeric(text)
      end)
    end
    for i, length in ipairs(longest) do
      if el.colspecs[i][1] == 'AlignDefault' then el.colspecs[i][1] = numbers[i] and 'AlignRight' or 'AlignLeft' end
      total, prose = total + length + 4, prose + (length > 40 and length or 0)
    end
    for i, length in ipairs(total > 100 and longest or {}) do  -- wider than the page: columns of prose share the rest
      if length > 40 then el.colspecs[i][2] = length / prose * math.max(0.3, 1 - (total - prose) / 110) end
    end
    return el
  end,
  Div = function(el)
    if not el.classes:includes 'captioned' then return end
    local caption = el.content:remove(1)
    local function add(float)
      if caption then float.caption, caption = {long = {caption}}, nil end
      return float
    end
    return el.content:walk {Figure = add, Table = add}
  end,
  Pandoc = function(doc)
    local top, numbered = 6, false
    doc:walk {Header = function(h)
      top, numbered = math.min(top, h.level), numbered or pandoc.utils.stringify(h):match '^Q%a*%s*%d'
    end}
    if numbered then doc.blocks:insert(1, pandoc.RawBlock('typst', '#set heading(numbering: none)')) end
    return doc:walk {Header = function(h)
      h.level = h.level - top + 1
      h.identifier = pandoc.utils.stringify(h):gsub('%s+', '-')  -- as in Jupyter, whose links then work here
      return h
    end}
  end,
}
local third = {  -- Typst would number a figure without a caption
  Figure = function(el)
    if #el.caption.long > 0 then return end
    return {pandoc.RawBlock('typst', '#align(center)['), table.unpack(el.content), pandoc.RawBlock('typst', ']')}
  end,
}
return {first, second, third}
"""

TYPST_PREAMBLE = r"""
#let meta = json(bytes(sys.inputs.metadata))
#let authors = meta.at("authors", default: ()).map(author => author.name)
#set document(title: meta.title, author: authors, date: none)
#set page(paper: "a4", margin: (x: 2.3cm, y: 2.5cm), numbering: "1 / 1")
#set text(font: ("Libertinus Serif", "DejaVu Sans Mono"), size: 10.5pt, lang: "en")
#set par(justify: true, leading: 0.65em, spacing: 1.1em)
#set heading(numbering: "1.1")
#show heading: set block(above: 1.5em, below: 0.9em)
#show link: set text(fill: rgb("#1a4f8b"))
#let horizontalrule = line(length: 100%, stroke: 0.4pt)

// An empty box lets a long word break, and unlike a zero-width space it does not end up in copied text.
#let breakable(it) = it.text.clusters().join(box())
#show regex("\S{40,}"): breakable

// Wider than the page: a smaller size, so that a table still breaks over pages.
#let fit(it) = layout(page => {
  let width = measure(it).width
  set text(size: calc.min(1, page.width / width) * 1em) if width > page.width
  it
})
#show math.equation.where(block: true): fit

#show raw: set text(font: "DejaVu Sans Mono", size: 1.05em)
#show raw.where(block: true): set text(size: 7.8pt)
#show raw.where(lang: "output"): set text(size: 7.2pt)
#show raw.where(block: true): set par(justify: false, leading: 0.55em)
#show raw.where(block: true): it => block(
  width: 100%, inset: (x: 0.8em, y: 0.7em), radius: 2pt, breakable: it.lines.len() > 15,
  fill: if it.lang != "output" { luma(245) }, stroke: if it.lang == "output" { (left: 1.5pt + luma(215)) },
  for (i, line) in it.lines.enumerate() {  // a wrapped line hangs four columns deeper than it starts
    let indent = line.text.len() - line.text.trim(at: start).len() + 4
    block(spacing: 0.55em, sticky: i < 2 or i > it.lines.len() - 4,  // three lines at least on each page
      par(hanging-indent: indent * 0.602em, {
        // Highlighting cuts a long word into parts that are short.
        show regex("\S+"): if line.text.split().any(word => word.len() > 60) { breakable } else { it => it }
        if line.text == "" { box(height: 0.73em) } else { line }  // no line would have no height
      }))
  })

#set table(stroke: none, inset: (x: 0.6em, y: 0.4em))
#set table.hline(stroke: 0.5pt)
#set table.cell(breakable: false)
#set figure(gap: 0.9em)
#show table.cell.where(y: 0): set align(bottom)
#show table: set text(size: 0.9em, number-width: "tabular")
#show table: set par(justify: false)
#show table: it => block(width: 100%, breakable: it.children.len() > 25 * it.columns.len(),
  fit(align(center, block(stroke: (y: 0.9pt), it))))
#show figure: set block(above: 1.5em, below: 1.5em)
#show figure.where(kind: table): set block(breakable: true)
#show figure.caption: set text(size: 0.92em)
#show figure.caption: it => block(sticky: true)[*#it.supplement #context it.counter.display(it.numbering):* #it.body]
#show figure.where(kind: table): set figure.caption(position: top)
#show figure.where(caption: none): set figure(numbering: none)

#align(center)[
  #set par(justify: false)
  #text(size: 19pt, weight: "bold", meta.title)
  #if authors.len() > 0 [#v(0.4em) #text(size: 12pt, authors.join(", "))]
  #if "date" in meta [#v(0.1em) #meta.date]
]
#if "abstract" in meta { pad(x: 2em, y: 1em, [#align(center)[*Abstract*] #meta.abstract]) }
#outline(depth: 2, indent: auto)
#v(1em)
"""


def fence_environments(source):
    """Put `$$` around the bare `\\begin{align}` that Jupyter accepts; what is already inside dollars stays."""
    pattern = r"\$\$.*?\$\$|^[ \t]*(\\begin\{(align|equation|gather|eqnarray|multline)(\*?)\}.*?\\end\{\2\3\})"
    return re.sub(pattern, lambda match: f"$$\n{match[1]}\n$$" if match[1] else match[0], source, flags=re.S | re.M)


class TypstPDFExporter(MarkdownExporter):
    """Notebook -> Markdown (nbconvert) -> Typst (pandoc) -> PDF; title, authors, date and abstract are metadata."""

    export_from_notebook = "PDF via Typst"

    @default("file_extension")
    def _file_extension_default(self):
        return ".pdf"

    @default("raw_template")
    def _raw_template_default(self):
        return MARKDOWN

    @property
    def default_config(self):
        """nbconvert's settings for Markdown and our tags."""
        config = super().default_config
        config.merge(TAGS)
        config.CoalesceStreamsPreprocessor.enabled = True  # it also drops what a carriage return overwrote
        return config

    def default_filters(self):
        """nbconvert's filters and our one."""
        yield from super().default_filters()
        yield "fence_environments", fence_environments

    def from_notebook_node(self, nb, resources=None, **kw):
        """Return the PDF's bytes and the resources."""
        markdown, resources = super().from_notebook_node(nb, resources, **kw)
        metadata = {"title": resources["metadata"].get("name", "Notebook"), **nb.metadata}
        # The notebook's own title would repeat the title block.
        markdown = re.sub(rf"\A\s*# {re.escape(metadata['title'])}[ \t]*$", "", markdown, flags=re.M)
        folder = Path(resources["metadata"].get("path") or ".").resolve()
        with tempfile.TemporaryDirectory() as scratch:
            for name, data in resources.pop("outputs", {}).items():
                path = Path(scratch, name)
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)
            Path(scratch, "filter.lua").write_text(PANDOC_FILTER, encoding="utf-8")
            options = ["--wrap=none", "--fail-if-warnings", "--extract-media=media", "--lua-filter=filter.lua"]
            options.append(f"--resource-path={scratch}{os.pathsep}{folder}")
            body = pypandoc.convert_text(markdown, "typst", READER, options, cworkdir=scratch, verify_format=False)
            source = Path(scratch, "report.typ")
            source.write_text(TYPST_PREAMBLE + body, encoding="utf-8")
            inputs = {"metadata": json.dumps(metadata)}
            try:
                pdf = typst.compile(source, format="pdf", ignore_system_fonts=True, sys_inputs=inputs)
            except typst.TypstError as error:  # its message names no place, the diagnostic shows the line
                raise RuntimeError(f"Typst cannot set this:\n{error.diagnostic}") from None
        return pdf, resources


def execute(nb, folder, profile):
    """Run every cell in `folder`, on the kernel of this very interpreter whatever other kernels are installed."""
    kernel = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), transport_encryption="auto")
    client = NotebookClient(nb, km=kernel, timeout=None, record_timing=False, resources={"metadata": {"path": folder}})
    code = [(index, cell) for index, cell in enumerate(nb.cells) if cell.cell_type == "code"]
    with client.setup_kernel(cleanup_kc=True, env={**os.environ, "REPORT_PROFILE": profile}):
        for number, (index, cell) in enumerate(tqdm(code, "Executing", unit="cell"), 1):
            cell.metadata.pop("execution", None)  # the times that an earlier run recorded
            try:
                client.execute_cell(cell, index)
            except (CellExecutionError, DeadKernelError) as error:
                first, last = cell.source.strip().splitlines()[0], strip_ansi(str(error)).strip().splitlines()[-1]
                raise RuntimeError(f"code cell {number} failed ({first}): {last}") from None


def write(path, data):
    """Write a file by way of a rename, so that an interrupted run leaves the old one whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def main(argv=None):
    """Execute the notebook, then write it, its PDF and its HTML; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", nargs="?", type=Path, default=Path("assignment1.ipynb"))
    parser.add_argument("--no-execute", action="store_true", help="export the outputs that the notebook already has")
    parser.add_argument("--profile", choices=("quick", "full"), default="full", help="REPORT_PROFILE for the cells")
    parser.add_argument("--output-dir", type=Path, help="where the three files go (default: beside the notebook)")
    args = parser.parse_args(argv)
    try:
        nb = nbformat.read(args.notebook, as_version=4)
        nbformat.validate(nb)
    except Exception as error:  # no file, not JSON, not a notebook: nbformat has an exception for each
        print(f"report.py: cannot read {args.notebook}: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    folder, output = args.notebook.resolve().parent, args.output_dir or args.notebook.parent
    resources = {"metadata": {"path": str(folder), "name": args.notebook.stem}}
    html = HTMLExporter(TAGS, embed_images=True, raw_template=HTML)
    exports = {
        ".ipynb": lambda: (nbformat.writes(nb) + "\n").encode(),
        ".pdf": lambda: TypstPDFExporter().from_notebook_node(nb, resources)[0],
        ".html": lambda: html.from_notebook_node(nb, resources)[0].encode(),
    }
    try:
        output.mkdir(parents=True, exist_ok=True)
        if not args.no_execute:
            execute(nb, str(folder), args.profile)
        for suffix, export in exports.items():
            start, path = time.perf_counter(), output / (args.notebook.stem + suffix)
            write(path, export())
            print(f"{path}  {path.stat().st_size / 1e6:.2f} MB  {time.perf_counter() - start:.1f} s")
    except (RuntimeError, OSError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
