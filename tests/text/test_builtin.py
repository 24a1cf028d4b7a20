"""The built-in corpus: read without importing, the same every time, prose alone."""

import json
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

from jaxbert.config import DataConfig
from jaxbert.text import builtin
from jaxbert.text.corpus import Rejects, documents, listing
from jaxbert.text.docstrings import count_words, prose

DOCUMENTED = ("numpy", "scipy", "jax", "flax", "optax", "orbax")
NAMED = ("textwrap", "numpy.lib._function_base_impl", "pydoc_data.topics")
READ = """
import json, os, sys
from jaxbert.text import builtin
{patch}
found = builtin.builtin_documents()
imported = sorted({{name.partition(".")[0] for name in sys.modules}})
json.dump({{"documents": found, "imported": imported}}, sys.stdout)
"""


def read_in_fresh_process(patch: str = "", cwd: pathlib.Path | None = None, **environment: str) -> dict:
    """The built-in corpus as a new interpreter reads it, and the top-level modules that it had imported by then."""
    paths = os.pathsep.join([str(pathlib.Path(__file__).parents[2]), *sys.path])
    output = subprocess.run(
        [sys.executable, "-c", READ.format(patch=textwrap.dedent(patch))],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        cwd=cwd,
        check=True,
        capture_output=True,
    )
    return json.loads(output.stdout)


@pytest.fixture(scope="module")
def part() -> dict:
    """A quarter of the corpus, with the modules that are looked at by name."""
    return read_in_fresh_process(f"""
        sources = [s for n, s in enumerate(builtin._sources()) if n % 4 == 0 or s.module in {NAMED}]
        builtin._sources = lambda: sources
    """)


def test_every_package_is_read_and_none_imported(part: dict):
    assert not {*DOCUMENTED, "pydoc_data", "tensorflow", "torch"}.intersection(part["imported"])
    words = dict.fromkeys((*DOCUMENTED, "pydoc_data", "textwrap"), 0)
    for identity, text in part["documents"]:
        top = identity.removeprefix("builtin:").partition(".")[0]
        if top in words:
            words[top] += len(text.split())
    assert all(count > 500 for count in words.values()), words
    assert sum(len(text.split()) for _, text in part["documents"]) > 250_000


def test_one_object_is_one_document(part: dict):
    identities, texts = zip(*part["documents"], strict=True)
    assert len(set(identities)) == len(identities)
    assert len(set(texts)) == len(texts)
    assert min(map(count_words, texts)) >= 5
    found = dict(part["documents"])
    assert found["builtin:textwrap.dedent"].startswith("Remove any common leading whitespace from every line")
    # In an installation with an older or newer Python the words differ, the objects do not.
    for name in ("textwrap.TextWrapper", "numpy.lib._function_base_impl.average", "pydoc_data.topics.with"):
        assert f"builtin:{name}" in found
    assert not [identity for identity in identities if re.search(r"\.(tests|_vendor|conftest)\.", identity)]


def test_no_prompts_code_or_tables(part: dict):
    lines = [line for _, text in part["documents"] for line in text.split("\n")]
    for pattern in (r"^\s*>>>", r"^\s*\.\. \w+::", r"^[=\-~+| ]{6,}$", r"```", r":(?:func|class|meth):`", r"^\s*$"):
        matching = [line for line in lines if re.search(pattern, line)]
        assert not matching[:3], pattern
    # A prompt inside a sentence ("the >>> prompt") is prose, and rare.
    assert sum(">>>" in line for line in lines) < 0.0005 * len(lines)


def test_the_same_in_every_process(tmp_path: pathlib.Path):
    # A twentieth of the files, so that it is quick; another hash seed, locale, folder and number of processes.
    few = "sources = builtin._sources()[::20]; builtin._sources = lambda: sources; os.cpu_count = lambda: {count}"
    first = read_in_fresh_process(few.format(count=1), PYTHONHASHSEED="1", LC_ALL="C")
    second = read_in_fresh_process(few.format(count=3), tmp_path, PYTHONHASHSEED="2", PYTHONUTF8="1", TZ="Asia/Tokyo")
    assert len(first["documents"]) > 500
    assert first["documents"] == second["documents"]
    assert not {*DOCUMENTED}.intersection(second["imported"])


SOURCE = '''
"""A package that must not be imported, with a docstring of its own."""

raise ImportError("imported after all")


class Counter:
    """Counts how often it is asked to count.

    Parameters
    ----------
    start : int
        The number from which the counting begins.

    >>> Counter(3).count()
    4
    """

    def count(self):
        """Count once more and return the number that it has reached."""

        def inner():
            """Not less documented than the functions that hold it."""

    async def later(self):
        """Count once more and return the number that it has reached."""

    def label(self):
        """Short label."""


if True:
    def conditional():
        """Defined on some platforms and documented on every one of them."""
'''


def test_a_package_of_ones_own(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    files = {
        "__init__.py": SOURCE.encode(),
        "broken.py": b'"""A file that is no valid Python in this version."""\nprint "hello"\n',
        "latin.py": '# -*- coding: latin-1 -*-\n"""The caf\xe9 is read in the encoding that the file declares."""\n'.encode(
            "latin-1"
        ),
        "nul.py": b'"""A file with a zero byte in it is passed over."""\n\0',
        "tests/test_it.py": b'"""Tests are no documentation, so this one is left out."""\n',
        "_vendor/other.py": b'"""Neither is what belongs to somebody else."""\n',
    }
    for name, content in files.items():
        path = tmp_path / "documented_package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(builtin, "_PACKAGES", {"documented_package": "documented-package", "not_installed": "no"})
    monkeypatch.setattr(builtin.sys, "stdlib_module_names", frozenset())
    builtin.builtin_documents.cache_clear()
    try:
        found = {d.identity: d.text for d in documents(["builtin"], DataConfig(), Rejects())}
        listed = listing(["builtin"], DataConfig())
    finally:
        builtin.builtin_documents.cache_clear()
    name = "builtin:documented_package"
    assert found == {
        name: "A package that must not be imported, with a docstring of its own.",
        f"{name}.Counter": "Counts how often it is asked to count.\nstart (int): The number from which the counting begins.",
        f"{name}.Counter.count": "Count once more and return the number that it has reached.",
        f"{name}.Counter.count.inner": "Not less documented than the functions that hold it.",
        f"{name}.conditional": "Defined on some platforms and documented on every one of them.",
        f"{name}.latin": "The café is read in the encoding that the file declares.",
    }
    assert [entry["name"] for entry in listed] == ["builtin:python", "builtin:documented-package", "builtin:no"]
    assert listed[2]["version"] == "not installed"


PROSE = [
    (
        """Fit a line to the points.

        The result is the line of least squares:

        >>> fit([1, 2], [3, 4])
        (1.0, 2.0)

        It is exact for two points, and an estimate for more.
        """,
        "Fit a line to the points.\nThe result is the line of least squares:\nIt is exact for two points, and an estimate for more.",
    ),
    (
        """Some code comes next::

            x = fit(points)
            print(x)

        And this is what the code has done to the points.

        .. code-block:: python

            y = x + 1

        .. note::

            A note is prose that a reader wants to keep.
        """,
        "Some code comes next:\nAnd this is what the code has done to the points.\nA note is prose that a reader wants to keep.",
    ),
    (
        """The modes are in a table that is left out here.

        ======  ==========
        mode    meaning
        ======  ==========
        read    a cell that reads like a sentence
        write   and another one for the file
        ======  ==========

        +-------+--------+
        | a     | b      |
        +-------+--------+

        ```python
        # a comment that reads like a sentence of the text
        ```

        After the tables the text goes on as before.
        """,
        "The modes are in a table that is left out here.\nAfter the tables the text goes on as before.",
    ),
    (
        """Return the *first* item of ``items`` as :class:`~package.Item`, see `the guide <https://x.y/z>`_.

        :param items: the items to take the first one of
        :returns: the first of the items that were given
        """,
        "Return the first item of items as Item, see the guide.\n"
        "items: the items to take the first one of\nReturns the first of the items that were given",
    ),
    (
        """A paragraph that is
        broken over several lines is
        one line in the corpus.

        * A bullet is a paragraph of its own,
          with all of its lines.
        * The next one is another paragraph.
        """,
        "A paragraph that is broken over several lines is one line in the corpus.\n"
        "A bullet is a paragraph of its own, with all of its lines.\nThe next one is another paragraph.",
    ),
    (">>> only_code(1)\n1\n", ""),
    ("", ""),
    ("x = [1, 2, 3]; y = {'a': 1}", ""),
]


@pytest.mark.parametrize(("docstring", "expected"), PROSE)
def test_prose(docstring: str, expected: str):
    assert prose(docstring) == expected
