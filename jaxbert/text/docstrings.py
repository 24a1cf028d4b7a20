"""A docstring's prose: markup is taken off; code, doctests, tables, formulas and references are left out.

It reads reStructuredText, numpydoc, Google-style sections and plain text, by lines and indentation, because docstrings
seldom follow one grammar. What is left is one paragraph a line.
"""

import inspect
import re
from collections.abc import Iterator

# Directives whose body is prose; the body of every other known one (code, math, tables, figures) is left out.
_PROSE_DIRECTIVES = frozenset(
    "note notes warning deprecated versionadded versionchanged admonition tip important caution hint attention "
    "danger error topic sidebar container epigraph dropdown legacy".split()
)
# Titles that only name a part of a docstring; a title that says something stays, as a paragraph.
_PART_TITLES = frozenset(
    "parameters returns return yields yield raises warns warnings receives attributes methods notes note "
    "examples example references args arguments kwargs usage attrs fields type properties result results output outputs "
    "input inputs options".split()
) | {"see also", "other parameters", "keyword arguments", "keyword args", "example usage"}

_FENCE = re.compile(r"(```|~~~)")
_PROMPT = re.compile(r"(>>>|\.\.\. |In \[\d+\]|Out\[\d+\]|\$ |% python)")
_UNDERLINE = re.compile(r"([-=~^*+#\"'`_.:<>])\1{1,}$")
_GRID = re.compile(r"\+[-=+]{3,}|\|.*\|$")
_SIMPLE_BORDER = re.compile(r"[=-]{2,}(?:[ \t]+[=-]{2,})+$")
_DIRECTIVE = re.compile(r"\.\.\s+([\w:+-]+?)::\s*(.*)$")
_EXPLICIT = re.compile(r"\.\.(?:\s|$)")
_COLUMN_GAP = re.compile(r"(?<=\S)(?: {3,}|\t+)(?=\S)")
_BULLET = re.compile(r"(?:[-*+•]|\(?(?:\d{1,2}|[a-zA-Z]|#)[.)])\s+(?=\S)")
_ITEM = re.compile(r"(?:\*{0,2}[\w.]+\*{0,2}(?:, \*{0,2}\w+)*(?: ?\([^)]*\))?|``[^`]+``|`[^`]+`) ?: ")
_NUMPY_ITEM = re.compile(r"(\*{0,2}[\w.]+(?:, ?\*{0,2}[\w.]+)*) : (.+)$")
_FIELD = re.compile(r":(?:param|parameter|arg|argument|key|keyword|kwarg|raises?|except|var|ivar|cvar)\s+([^:]+):\s*")
_TYPE_FIELD = re.compile(r":(?:type|vartype)\s+[^:]+:.*|:rtype:.*|:meta [^:]*:.*")
_RETURN_FIELD = re.compile(r":returns?:\s*")
_OPTION = re.compile(r":(?!returns?:|yields?:|raises:)[\w-]+:(?:\s.*)?$")

_ROLE = re.compile(r":[\w:+.-]*\w:`([^`]*)`|`([^`]*)`:\w+:")
_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{0,2}")
_MARKDOWN_LINK = re.compile(r"\[([^\]]+)\]\((?:https?:|#|\.|/)[^)]*\)")
_LITERAL = re.compile(r"``+(.+?)``+")
_BACKTICKS = re.compile(r"`([^`]+)`_{0,2}")
_STRONG = re.compile(r"(?<![\w*])\*\*([^\s*](?:[^*]*[^\s*])?)\*\*(?!\w)")
_EMPHASIS = re.compile(r"(?<![\w*])\*([^\s*,)](?:[^*]*[^\s*])?)\*(?!\w)")
_FOOTNOTE = re.compile(r"\s*\[[^\[\]\s]{1,24}\]_")
_URL = re.compile(r"<?\b(?:https?|ftp)://[^\s>)\]]*[^\s>)\].,;:]>?")
_TEMPLATE = re.compile(r"%\(\w+\)s|\$?\{\w*\}")
_LATEX_NOISE = re.compile(
    r"\\(?:left|right|mathrm|mathbf|mathbb|mathcal|text|operatorname|big|Big|quad|,|;|!)(?![a-z])|[{}$]"
)

_WORD = re.compile(r"[\"'(\[“‘]*(?:[A-Za-z][a-z]+(?:[-'’/][A-Za-z]?[a-z]+)*|[aAI])[\"')\]”’]*[.,;:!?]*[\"')]?$")
_SMALL_WORDS = frozenset(
    "the a an of to in is are be and or for with if by as on that this it from not at was can will has have when which "
    "whether does do no all any each used may should must than its into".split()
)


def prose(docstring: str) -> str:
    """The prose of a docstring, one paragraph a line; "" when it has none."""
    if "\n--\n\n" in docstring:  # the text signature that C functions carry in front
        docstring = docstring.partition("\n--\n\n")[2]
    lines = _without_blocks(inspect.cleandoc(docstring).split("\n"))
    paragraphs = (_clean(paragraph) for paragraph in _paragraphs(lines))
    return "\n".join(paragraph for paragraph in paragraphs if _reads_like_prose(paragraph))


def count_words(text: str) -> int:
    """The plain words in a text: letters only, so that neither numbers nor identifiers count."""
    return sum(_WORD.match(token) is not None for token in text.split())


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _block_end(lines: list[str], start: int, indent: int) -> int:
    """The first line from `start` on that is neither blank nor deeper than `indent`."""
    while start < len(lines) and (not lines[start].strip() or _indent(lines[start]) > indent):
        start += 1
    return start


def _chunk_end(lines: list[str], start: int) -> int:
    """The first blank line from `start` on."""
    while start < len(lines) and lines[start].strip():
        start += 1
    return start


def _fence_end(lines: list[str], start: int) -> int:
    """The line behind a fenced block's closing fence; the next line where none closes it."""
    fence = lines[start].strip()[:3]
    closing = (n for n in range(start + 1, len(lines)) if lines[n].strip().startswith(fence))
    return next(closing, start) + 1


def _table_end(lines: list[str], start: int) -> int:
    """The line behind a simple table's last border."""
    width = len(lines[start].split())
    last, borders, n = start, 1, start + 1
    # A simple table has three borders, or two without a head row; blank lines may stand between its rows.
    while n < len(lines) and borders < 3:
        if _SIMPLE_BORDER.match(lines[n].strip()) and len(lines[n].split()) == width:
            last, borders = n, borders + 1
        elif borders >= 2 and not lines[n].strip():
            break
        n += 1
    return last + 1


def _without_blocks(lines: list[str]) -> list[str]:
    """The lines outside code, doctests, tables, comments and references. An empty line stands for what was left out."""
    kept: list[str] = []
    n = 0
    while n < len(lines):
        line = lines[n].rstrip()
        text, indent = line.strip(), _indent(line)
        directive = _DIRECTIVE.match(text)
        if _FENCE.match(text):
            end = n + 1 if text[3:].rstrip().endswith(text[:3]) else _fence_end(lines, n)
        elif _PROMPT.match(text) or _GRID.match(text):
            end = _chunk_end(lines, n)
        elif _SIMPLE_BORDER.match(text):
            end = _table_end(lines, n)
        elif directive:
            end = n + 1 if directive[1].lower() in _PROSE_DIRECTIVES else _block_end(lines, n + 1, indent)
            argument = re.sub(r"^[\d.]+\s+", "", directive[2])
            if end == n + 1 and " " in argument:
                kept += ["", " " * indent + argument]
                n = end
                continue
        elif text.rstrip(":").lower() in ("see also", "references") and _is_title(lines, n):
            end = next((m for m in range(n + 2, len(lines)) if _is_title(lines, m)), len(lines))
        elif _EXPLICIT.match(text):
            end = _block_end(lines, n + 1, indent)
        elif len(_COLUMN_GAP.findall(line)) >= 2 or _OPTION.match(text) or _TYPE_FIELD.match(text):
            end = n + 1
        elif text.endswith("::"):
            kept.append(line.rstrip(": ") + ":" if text.strip(": ") else "")
            end = _block_end(lines, n + 1, indent)
        else:
            kept.append(line)
            n += 1
            continue
        kept.append("")
        n = end
    return kept


def _is_title(lines: list[str], n: int) -> bool:
    following = lines[n + 1].strip() if n + 1 < len(lines) and lines[n].strip() else ""
    return len(following) >= 2 and _UNDERLINE.match(following) is not None


def _paragraphs(lines: list[str]) -> Iterator[str]:
    """The lines joined to paragraphs: these end at blank lines, titles, list items and where the indentation shrinks."""
    held: list[str] = []
    indent = 0
    for n, line in enumerate(lines):
        text = line.strip()
        title = _is_title(lines, n)
        part = text.rstrip(":").lower() in _PART_TITLES and (title or text.endswith(":") or text.istitle())
        starts = not text or title or part or _indent(line) < indent or _BULLET.match(text) or _ITEM.match(text)
        if (starts or _FIELD.match(text) or _RETURN_FIELD.match(text)) and held:
            yield " ".join(held)
            held = []
        underline = _UNDERLINE.match(text) and len(text) >= 2
        if not text or part or underline:
            indent = 0
            continue
        if title:
            yield text
            continue
        deeper = n + 1 < len(lines) and lines[n + 1].strip() and _indent(lines[n + 1]) > _indent(line)
        held.append(_item(text) if deeper and not held else text)
        indent = _indent(line)
    if held:
        yield " ".join(held)


def _item(text: str) -> str:
    """The head of a definition list's item, as the beginning of a sentence."""
    numpy_item = _NUMPY_ITEM.match(text)
    if numpy_item:
        return f"{numpy_item[1]} ({numpy_item[2]}):"
    short = len(text) < 60 and text[-1] not in ".,;:!?-" and not _BULLET.match(text)
    return f"{text}:" if short else text


def _role(match: re.Match[str]) -> str:
    content = match[1] if match[1] is not None else match[2]
    if match[0].startswith(":math:"):
        return re.sub(r"\\([A-Za-z]+)", r"\1 ", _LATEX_NOISE.sub("", content))
    content = re.sub(r"\s*<[^>]*>$", "", content)
    return content.rsplit(".", 1)[-1] if content.startswith("~") else content.lstrip("!")


def _clean(paragraph: str) -> str:
    """A paragraph without inline markup."""
    text = _BULLET.sub("", paragraph, count=1) if _BULLET.match(paragraph) else paragraph
    text = _RETURN_FIELD.sub("Returns ", _FIELD.sub(r"\1: ", text))
    text = _MARKDOWN_LINK.sub(r"\1", _LINK.sub(r"\1", _ROLE.sub(_role, text)))
    text = _BACKTICKS.sub(r"\1", _LITERAL.sub(r"\1", text))
    text = _EMPHASIS.sub(r"\1", _STRONG.sub(r"\1", text))
    text = _URL.sub("", _FOOTNOTE.sub("", _TEMPLATE.sub("", text)))
    text = re.sub(r"\\ ", "", text)
    return " ".join(re.sub(r"\(\s*\)$|<\s*>", "", text).split())


def _reads_like_prose(paragraph: str) -> bool:
    """Whether a paragraph is mostly words, and not a signature, code, a table's row or a formula."""
    tokens = paragraph.split()
    words = sum(_WORD.match(token) is not None for token in tokens)
    if words < 2 or words < 0.55 * len(tokens):
        return False
    # "Minimize:" announced a formula or code that is gone.
    if len(tokens) < 4 and tokens[-1].endswith(":"):
        return False
    # Real sentences have small words; a long run of names and values has none.
    return len(tokens) < 8 or any(token.strip("(\"'").lower() in _SMALL_WORDS for token in tokens)
