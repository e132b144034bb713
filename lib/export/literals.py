"""Keep the text of a notebook equal to its tables: checked values, numbered captions, references to them.

All forms are Markdown with HTML comments, which no viewer shows:

- A checked value: `0.8913<!--= f"{best().mean():.4f}" -->`. The value is the run of characters directly before the comment, up to
  white space or one of `* _ | ( [ " $ > and the backtick. A value that holds one of these begins with a mark of its own:
  `<!--:-->0.8913 ± 0.0027<!--= ... -->`. The mark may not begin a line, which Markdown would take for a block of HTML.
  The expression is Python, its value is shown as `str` writes it, and it may not contain `--`, which ends a comment.
- A caption: a paragraph `**Figure 3.**<!--#name--> One image of ...` after the picture, `**Table 3.**<!--#name--> ...` before the
  table, in a Markdown cell or a Markdown output. The number may be missing.
- A reference: `Figure 3<!--@name-->`. It begins as `Figure ?<!--@name-->`; `number` writes the number.

What stands in code spans and code blocks is left alone.
"""

import re

from helpers import InputError

NAME = "[a-z0-9_-]+"
CODE = r"(?<!`)(?P<ticks>`++).+?(?<!`)(?P=ticks)(?!`)"
VALUE = r"""(?:<!--:-->(?P<marked>(?:(?!<!--).)*?)|(?P<run>[^ \t\n*_|(\["$>`]*))<!--=(?P<expression>.*?)-->"""
REFERENCE = rf"(?:(?P<word>Figure|Table)s?[ \n\u00a0])?(?P<digits>\d+|\?)<!--@(?P<name>{NAME})-->"
CAPTION = rf"^\*\*(?P<kind>Figure|Table)(?: (?:\d+|\?))?\.\*\*<!--#(?P<name>{NAME})-->"


def replace(pattern, function, text):
    """Return `text` with each match of `pattern` outside code replaced by what `function` makes of it."""
    either = re.compile(f"(?P<code>{CODE})|{pattern}", re.S | re.M)
    return either.sub(lambda match: match[0] if match["code"] else function(match), text)


def texts(nb):
    """Yield (place, holder, key) of every Markdown text: those of the cells, and those that code has displayed."""
    for index, cell in enumerate(nb.cells):
        if cell.cell_type == "markdown":
            yield f"cell {index}", cell, "source"
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                yield f"output of cell {index}", output.data, "text/markdown"


def expressions(nb):
    """Return {expression: place} of the checked values of all Markdown cells; raise InputError for a malformed one."""
    found = {}

    def note(match):
        expression = match["expression"].strip()
        value = match["run"] if match["marked"] is None else match["marked"]
        line = match.string[match.string.rfind("\n", 0, match.start()) + 1 : match.start()]
        if not value.strip():
            raise InputError(f"{place}: no value stands before <!--= {expression} -->; write ? there")
        if match["marked"] is not None and not line.strip():
            raise InputError(f"{place}: <!--:--> begins a line; write a word before it")
        if "--" in expression:
            raise InputError(f"{place}: {expression} contains --, which ends an HTML comment")
        found.setdefault(expression, place)
        return match[0]

    for place, holder, key in texts(nb):
        if key == "source":
            replace(VALUE, note, holder[key])
    return found


def fill(nb, values):
    """Write into the Markdown cells what `values`, {expression: str}, say; return a sentence for each change."""
    changes = []

    def correct(match):
        value = values[match["expression"].strip()]
        old = match["run"] if match["marked"] is None else match["marked"]
        if old.split() == value.split():
            return match[0]
        changes.append(f"{place} says {old}, but {match['expression'].strip()} is {value}")
        return match[0].replace(old, value, 1)

    for place, holder, key in texts(nb):
        if key == "source":
            holder[key] = replace(VALUE, correct, holder[key])
    return changes


def number(nb):
    """Number the captions in their order and write the numbers into the references; return a sentence for each change.

    Raises InputError for a name that two captions have, or none.
    """
    places, counts, changes = {}, {"Figure": 0, "Table": 0}, []

    def count(match):
        kind, name = match["kind"], match["name"]
        if name in places:
            raise InputError(f"{place}: two captions have the name {name}")
        counts[kind] += 1
        places[name] = (kind, counts[kind])
        return f"**{kind} {counts[kind]}.**<!--#{name}-->"

    def refer(match):
        name = match["name"]
        kind, rank = places.get(name, (None, None))
        if kind is None or match["word"] not in (None, kind):
            raise InputError(f"{place}: no caption of a {match['word'] or 'figure or table'} has the name {name}")
        return re.sub(r"(\d+|\?)<!--@", f"{rank}<!--@", match[0])

    for pattern, function in (CAPTION, count), (REFERENCE, refer):
        for place, holder, key in texts(nb):
            new = replace(pattern, function, holder[key])
            if new != holder[key]:
                changes.append(f"{place}: numbers of figures or tables have changed")
            holder[key] = new
    return changes


def plain(text):
    """Return Markdown without the comments of the values, and with the references as links."""
    text = replace(VALUE, lambda match: match["run"] if match["marked"] is None else match["marked"], text)
    return replace(REFERENCE, lambda match: f"[{match[0].split('<!--')[0]}](#{match['name']})", text)
