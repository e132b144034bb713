"""A notebook with one of each thing that a notebook may hold, its outputs already there."""

import base64
import io
import re

import nbformat
import numpy as np
import pandas as pd
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

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
LONG_WORD = "".join(f"w{i:03}" for i in range(60))
LONG_CHAIN = "a" + "".join(f".b{i}(c[{i}])" for i in range(30))
LONG_LINE = "result = compute(" + ", ".join(f"argument_{i}={i}" for i in range(40)) + ")"
LINE_110 = "x = " + "0123456789" * 10 + "  # end"[:6]
WIDE = pd.DataFrame(np.arange(32).reshape(2, 16) / 7, columns=[f"hidden_size_{i}" for i in range(16)])
STYLED = pd.DataFrame({"optimizer": ["nadam", "sgd"], "val_accuracy": [0.8812, 0.8523]}).style.hide(axis="index")
STYLED = STYLED.format({"val_accuracy": "{:.3f}"}).highlight_max("val_accuracy").set_caption("Two runs, styled.")
LEVELS = pd.DataFrame({"rule": ["sgd", "adam", "adam"], "loss": [0.5, 0.25, 0.75]}).groupby("rule").agg(["mean", "max"])


def picture(width=300, height=150, colour="navy"):
    data = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(data, "PNG", dpi=(100, 100))
    return data.getvalue()


def encoded(**kw):
    return {"image/png": base64.b64encode(picture(**kw)).decode(), "text/plain": "<Figure size 640x480>"}


def shown(**kw):
    return new_output("display_data", encoded(**kw))


def cell(source="pass", *outputs, tags=(), **metadata):
    return new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags), **metadata})


def printed(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def said(text):
    return new_output("display_data", {"text/markdown": text, "text/plain": "<M>"})


def html(frame):
    return new_output("display_data", {"text/html": frame._repr_html_() or frame.to_html(), "text/plain": "PLAINTABLE"})


def texts():
    attached = new_markdown_cell("![Attached](attachment:a.png)\n\n**Figure.**<!--#attached--> An attachment.")
    attached.attachments = {"a.png": {"image/png": base64.b64encode(picture(colour="red")).decode()}}
    return [
        new_markdown_cell(
            "# A *plain* title\n\nThe first words, with `inline_code` and [a link](https://example.com/page)."
        ),
        new_markdown_cell(
            "## Data\n\nSee [maths](#The-maths), Figure 9<!--@two--> and Tables ?<!--@levels--> and ?<!--@words-->.\n"
            "- a list\n- without a blank line: **0.89<!--= f'{x > 1}' -->** or <!--:-->1 ± 2<!--= y -->\n\n"
            "![Saved](figures/a%20b.png)\n\n**Figure 7.**<!--#saved--> A *saved* file."
        ),
        new_markdown_cell(
            "Text <img src='figures/a b.png' alt='inline' width='90'> and a line<br>break.\n\n" + LONG_WORD
        ),
        cell(
            "two_figures()",
            shown(colour="green"),
            said('**Figure.**<!--#one--> A caption with $x_1$, "quotes" and [brackets].'),
            shown(),
            said("**Figure.**<!--#two--> The second."),
        ),
        cell("no_caption()", shown(colour="teal")),
        attached,
        new_markdown_cell("## The maths\n\n" + "\n\n".join(f"F{i}: ${formula}$" for i, formula in enumerate(FORMULAS))),
        new_markdown_cell(f"Bare:\n\n{BACKPROP}\n\nDollars:\n\n$$\n{BACKPROP}\n\\tag{{BP}}\n$$"),
        new_markdown_cell("Too wide:\n\n$$" + "+".join(f"x_{{{i}}}" for i in range(80)) + "$$"),
    ]


def outputs():
    return [
        new_markdown_cell("## Code and output"),
        cell(f"{LONG_LINE}\n{LONG_CHAIN}", printed(LONG_WORD + "\n")),
        cell(LINE_110),
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
        cell("source()", said("```python\ndef shown(x): return x\n```")),
    ]


def tables():
    prose = "| what | number |\n|---|---|\n| prose " + "that goes on and on " * 12 + "| 1 |"
    return [
        new_markdown_cell(f"### Tables\n\n**Table.**<!--#prose--> Prose.\n\n{prose}"),
        cell("WIDE", html(WIDE)),
        cell("STYLED", html(STYLED)),
        cell("LEVELS", said("**Table.**<!--#levels--> Two levels."), html(LEVELS), html(LEVELS.style)),
        cell(
            "words",
            said("**Table.**<!--#words--> Words."),
            html(pd.DataFrame({"word": [LONG_WORD.upper()], "n": [-0.5]}).style),
        ),
        cell("long", said("**Table.**<!--#long--> Long."), html(pd.DataFrame({"n": range(1000, 1080)}).style)),
    ]


def sample():
    authors = [{"name": 'Ann "A" O\'Hara'}, {"name": "B. #2"}]
    metadata = {"title": "A *plain* title", "authors": authors, "date": "2026-05-04", "abstract": "Abstract words."}
    return new_notebook(metadata=metadata, cells=texts() + outputs() + tables())


def save(notebook, folder, name):
    """Write the notebook, and the picture that it refers to, into a folder."""
    (folder / "figures").mkdir(exist_ok=True)
    (folder / "figures" / "a b.png").write_bytes(picture(2400, 900))
    nbformat.write(notebook, folder / name)
    return folder / name
