"""The grammar of checked values, captions and references: what is found, what is written, what is refused."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from helpers import InputError
from lib.export import literals, make

ROOT = Path(__file__).resolve().parent.parent


def notebook(*texts):
    """A notebook of Markdown cells; a text in a tuple is what code has displayed."""
    cells = []
    for text in texts:
        if isinstance(text, tuple):
            outputs = [new_output("display_data", {"text/markdown": one, "text/plain": "<M>"}) for one in text]
            cells.append(new_code_cell("show()", outputs=outputs))
        else:
            cells.append(new_markdown_cell(text))
    return new_notebook(cells=cells)


@pytest.mark.parametrize(
    ("before", "value", "after"),
    [
        ("It is 0.8913<!--= e -->, so", "7", "It is 7<!--= e -->, so"),
        ("**0.89<!--= e -->** and", "7", "**7<!--= e -->** and"),
        ("*0.89<!--= e -->*", "7", "*7<!--= e -->*"),
        ("(0.89<!--= e -->)", "7", "(7<!--= e -->)"),
        ("[0.89<!--= e -->](#x)", "7", "[7<!--= e -->](#x)"),
        ("“0.89<!--= e -->”", "7", "“7<!--= e -->”"),
        ("| a | 0.89<!--= e --> |\n|---|---|", "7", "| a | 7<!--= e --> |\n|---|---|"),
        ("|0.89<!--= e -->|", "7", "|7<!--= e -->|"),
        ("a<br>0.89<!--= e -->", "7", "a<br>7<!--= e -->"),
        ("0.89<!--= e -->", "-5.7e-09", "-5.7e-09<!--= e -->"),
        ("about ?<!--= e -->", "5,832", "about 5,832<!--= e -->"),
        ("86\u00a0%<!--= e -->", "87\u00a0%", "87\u00a0%<!--= e -->"),
        ("x <!--:-->0.89 ± 0.01<!--= e -->.", "0.9 ± 0.1", "x <!--:-->0.9 ± 0.1<!--= e -->."),
        ("x <!--:-->**a b**<!--= e -->.", "c", "x <!--:-->c<!--= e -->."),
        ("x <!--:-->one\ntwo<!--= e -->.", "one two", "x <!--:-->one\ntwo<!--= e -->."),
        ("x <!--:--> <!--= e -->", "", None),
        ("x ?<!--= e -->", "two words", "x <!--:-->two words<!--= e -->"),
        ("x <!--:-->:<!--= e -->", "-", "x <!--:-->-<!--= e -->"),
        ("0.1<!--= e -->0.2<!--= e -->", "7", "7<!--= e -->7<!--= e -->"),
        ("`0.1<!--= e -->` 1<!--= e -->", "7", "`0.1<!--= e -->` 7<!--= e -->"),
        ("```\n0.1<!--= e -->\n```\n1<!--= e -->", "7", "```\n0.1<!--= e -->\n```\n7<!--= e -->"),
        ("``a ` 0.1<!--= e -->`` 1<!--= e -->", "7", "``a ` 0.1<!--= e -->`` 7<!--= e -->"),
        ("0.1<!-- e --> 1<!--=e\n-->", "7", "0.1<!-- e --> 7<!--=e\n-->"),
        ("1<!--= e -->", "two words", None),  # the mark would begin the line
        ("<!--= e -->", "7", None),
        ("and <!--= e -->", "7", None),
        ("<!--:-->1 2<!--= e -->", "1", None),
        ("1<!--= e -- f -->", "7", None),
        ("| 1<!--= e | f --> |", "7", None),
    ],
)
def test_values(before, value, after):
    nb = notebook(before)
    if after is None:
        with pytest.raises(InputError, match="cell 0: "):
            literals.fill(nb, dict.fromkeys(literals.expressions(nb), value))
        return
    assert list(literals.expressions(nb)) == ["e"]
    changes = literals.fill(nb, {"e": value})
    assert nb.cells[0].source == after and bool(changes) == (before != after)
    assert literals.fill(nb, {"e": value}) == []
    assert all(change.startswith("cell 0 says ") and change.endswith(f"but e is {value}") for change in changes)


def test_values_in_outputs_are_not_touched_for_code_writes_them():
    nb = notebook(("0.1<!--= e -->",))
    assert literals.expressions(nb) == {} and literals.fill(nb, {}) == []


@pytest.mark.parametrize(
    "stray", ["3<!--= a", "3<!-- = 4 -->", "Figure 3<!--@Name-->", "**Figure 3.**<!--#Name-->", "x <!--: 3"]
)
def test_a_misspelt_comment_is_refused_for_nobody_would_check_it(stray):
    assert literals.expressions(notebook(f"`{stray}` 1<!--= e --> Figure ?<!--@a-->\n\n**Figure.**<!--#a-->")) == {
        "e": "cell 0"
    }
    with pytest.raises(
        InputError, match="cell 1: <!--.* is none that is known; allowed: a value, caption or reference"
    ):
        literals.expressions(notebook("x", f"1<!--= e --> v {stray}"))
    with pytest.raises(InputError, match="cell 0: <!--= --> has no expression"):
        literals.expressions(notebook("v 3<!--= -->"))


def test_a_long_expression_may_take_several_lines_and_holds_other_comments_apart():
    text = "x 1<!--= f(\n    a > b, '<'\n) --> y 2<!--= g --> <!-- words -->"
    assert list(literals.expressions(notebook(text))) == ["f(\n    a > b, '<'\n)", "g"]
    assert literals.plain(text) == "x 1 y 2 <!-- words -->"


def test_captions_are_numbered_in_their_order_and_references_follow():
    nb = notebook(
        "Figures ?<!--@b--> and 9<!--@a-->, (Table ?<!--@t-->), Figure\n1<!--@b-->; `Figure ?<!--@b-->`",
        ("**Table.**<!--#t--> Words.",),
        ("**Figure.**<!--#a--> Words.", "**Figure 7.**<!--#b--> As Figure ?<!--@a-->."),
        "![x](y.png)\n\n**Figure ?.**<!--#c-3_d--> Words.",
    )
    assert len(literals.number(nb)) == 9
    assert nb.cells[0].source == (
        "Figures 2<!--@b--> and 1<!--@a-->, (Table 1<!--@t-->), Figure\n2<!--@b-->; `Figure ?<!--@b-->`"
    )
    shown = [output.data["text/markdown"] for cell in nb.cells for output in cell.get("outputs", [])]
    assert shown[1:] == ["**Figure 1.**<!--#a--> Words.", "**Figure 2.**<!--#b--> As Figure 1<!--@a-->."]
    assert nb.cells[3].source.endswith("\n\n**Figure 3.**<!--#c-3_d--> Words.")
    assert literals.number(nb) == []
    assert literals.plain(nb.cells[0].source).startswith(
        "[Figures 2](#b) and [1](#a), ([Table 1](#t)), [Figure\n2](#b)"
    )


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["**Figure.**<!--#a--> x\n\n**Table.**<!--#a--> y"], "cell 0: two captions have the name a"),
        (["x", "Figure ?<!--@a-->"], "cell 1: no Figure has a caption named a"),
        (["**Table.**<!--#a--> y", "Figure ?<!--@a-->"], "cell 1: no Figure has a caption named a"),
        (["?<!--@a-->"], "cell 0: no figure or table has a caption named a"),
    ],
)
def test_names_are_unique_and_known(texts, message):
    with pytest.raises(InputError, match=message):
        literals.number(notebook(*texts))


def test_the_numbers_in_the_committed_text_are_those_of_the_tables():
    assert make.check(nbformat.read(ROOT / "assignment1.ipynb", 4), ROOT) == []
