"""Keep the text of a notebook equal to its tables: checked values, numbered captions, references to them.

All forms are Markdown with HTML comments, which no viewer shows:

- A checked value: `0.8913<!--= f"{best().mean():.4f}" -->`. The value is the run of characters directly before the
  comment, back to white space, a backtick or one of `* _ | ( [ " “ ‘ $ >`. A value that holds one of these begins with
  a mark: `about <!--:-->0.8913 ± 0.0027<!--= ... -->`. The mark may not begin a line, which Markdown takes for HTML.
  The expression is Python; the value is what `str` makes of it. It may not contain `--`, which ends a comment, nor
  `|` in a row of a table.
- A caption: a paragraph `**Figure 3.**<!--#name--> One image of ...` after the picture, `**Table 3.**<!--#name--> ...`
  before the table, in a Markdown cell or a Markdown output. The number may be missing.
- A reference: `Figure 3<!--@name-->`. It begins as `Figure ?<!--@name-->`; `number` writes the number.

What stands in code spans and code blocks is left alone.
"""

import re

from helpers import InputError

NAME = "[a-z0-9_-]+"
CODE = r"(?<!`)(?P<ticks>`++).+?(?<!`)(?P=ticks)(?!`)"
PLAIN = r"""[^ \t\n*_|(\["“‘$>`]"""
VALUE = rf"(?P<mark><!--:-->)?(?P<value>(?(mark)(?:(?!<!--).)*?|{PLAIN}*))<!--=(?P<expression>.*?)-->"
REFERENCE = rf"(?P<text>(?:(?P<kind>Figure|Table)s?[ \n\u00a0])?(?:\d+|\?))<!--@(?P<name>{NAME})-->"
CAPTION = rf"^\*\*(?P<kind>Figure|Table)(?: (?:\d+|\?))?\.\*\*<!--#(?P<name>{NAME})-->"
STRAY = r"<!--\s*[=@#:].{0,30}"


def replace(pattern, function, text):
    """Return `text` with each match of `pattern` outside code replaced by what `function` makes of it."""
    either = re.compile(f"(?P<code>{CODE})|{pattern}", re.S | re.M)
    return either.sub(lambda match: match[0] if match["code"] else function(match), text)


def rewrite(nb, pattern, function, outputs):
    """Replace each match by function(place, match) in the Markdown cells, and in Markdown outputs if asked to."""
    for index, cell in enumerate(nb.cells):
        place = f"cell {index}"
        if cell.cell_type == "markdown":
            cell.source = replace(pattern, lambda match: function(place, match), cell.source)  # noqa: B023
        for output in cell.get("outputs", []) if outputs else []:
            if "text/markdown" in output.get("data", {}):
                old = output.data["text/markdown"]
                output.data["text/markdown"] = replace(pattern, lambda match: function(place, match), old)  # noqa: B023


def expressions(nb):
    """Return {expression: its first place} of the checked values; raise InputError for one that is not well formed."""
    found = {}

    def note(place, match):
        expression = match["expression"].strip()
        if not expression:
            raise InputError(f"{place}: <!--= --> has no expression; write one there")
        line = match.string[: match.start()].rpartition("\n")[2]
        if not match["value"].strip():
            raise InputError(f"{place}: no value stands before <!--= {expression} -->; write ? there")
        if match["mark"] and not line.strip():
            raise InputError(f"{place}: <!--:--> begins a line, before {expression}; write a word before it")
        if "--" in expression:
            raise InputError(f"{place}: {expression} contains --, which ends an HTML comment")
        if line.lstrip().startswith("|") and "|" in expression:
            raise InputError(f"{place}: {expression} contains |, which ends a cell of the table")
        found.setdefault(expression, place)
        return match[0]

    rewrite(nb, VALUE, note, outputs=False)
    _refuse_strays(nb)
    return found


def _refuse_strays(nb):
    """Raise InputError for a comment that begins like one of the forms and is none: nobody would check it."""

    def refuse(index, match):
        allowed = "a value, caption or reference, as lib/export/literals.py describes them"
        raise InputError(f"cell {index}: {match[0]} is none that is known; allowed: {allowed}")

    for index, cell in enumerate(nb.cells):
        text = cell.source if cell.cell_type == "markdown" else ""
        for pattern in (VALUE, REFERENCE, CAPTION):
            text = replace(pattern, lambda match: "", text)
        replace(STRAY, lambda match: refuse(index, match), text)  # noqa: B023


def fill(nb, values):
    """Write the values of the expressions, {expression: str}, into the Markdown cells; return a sentence per change."""
    changes = []

    def correct(place, match):
        value = values[match["expression"].strip()]
        if match["value"].split() == value.split():
            return match[0]
        changes.append(f"{place} says {match['value']}, but {match['expression'].strip()} is {value}")
        mark = match["mark"] or ("" if re.fullmatch(f"{PLAIN}+", value) else "<!--:-->")
        return f"{mark}{value}<!--={match['expression']}-->"

    rewrite(nb, VALUE, correct, outputs=False)
    expressions(nb)  # a mark may have come to the beginning of a line
    return changes


def number(nb):
    """Number the captions in their order, write the numbers into the references; return a sentence per change.

    Raises InputError for a name that two captions have, or none.
    """
    known, counts, changes = {}, {"Figure": 0, "Table": 0}, []

    def note(place, old, new):
        if old != new:
            changes.append(f"{place} says {old.split('<!--')[0]}, not {new.split('<!--')[0]}")
        return new

    def count(place, match):
        kind, name = match["kind"], match["name"]
        if name in known:
            raise InputError(f"{place}: two captions have the name {name}")
        counts[kind] += 1
        known[name] = (kind, counts[kind])
        return note(place, match[0], f"**{kind} {counts[kind]}.**<!--#{name}-->")

    def refer(place, match):
        kind, rank = known.get(match["name"], (None, None))
        if kind is None or match["kind"] not in (None, kind):
            raise InputError(f"{place}: no {match['kind'] or 'figure or table'} has a caption named {match['name']}")
        return note(place, match[0], re.sub(r"(\d+|\?)<!--@", f"{rank}<!--@", match[0]))

    rewrite(nb, CAPTION, count, outputs=True)
    rewrite(nb, REFERENCE, refer, outputs=True)
    return changes


def plain(text):
    """Return Markdown without the comments of the values, and with the references as links."""
    text = replace(VALUE, lambda match: match["value"], text)
    return replace(REFERENCE, lambda match: f"[{match['text']}](#{match['name']})", text)
