"""The built-in labelled set: which package a docstring of this Python installation comes from."""

import hashlib
import re
from collections.abc import Iterator

from jaxbert.data.records import Record
from jaxbert.text.builtin import builtin_documents

_PACKAGES = ("flax", "jax", "numpy", "optax", "orbax", "scipy")
# What gives the answer away.
_NAMES = re.compile(r"\b(flax|nnx|linen|jax|jnp|xla|numpy|np|optax|orbax|scipy|python)\b", re.IGNORECASE)
# Objects of a package, at most, so that none is most of the set; words of a docstring, which is long enough to tell.
_MOST, _WORDS = 900, 60


def builtin_records() -> Iterator[Record]:
    """The beginnings of docstrings as "text", their package as "label" ("python" for the standard library), one object each.

    The names of the packages are taken out of the texts. The set is the same whenever the versions are.
    """
    objects: dict[str, list[tuple[bytes, str, str]]] = {}
    for name, text in builtin_documents():
        package = name.removeprefix("builtin:").split(".", 1)[0]
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        objects.setdefault(package if package in _PACKAGES else "python", []).append((digest, name, text))
    chosen = [
        (digest, name, text, package)
        for package, all_of in objects.items()
        for digest, name, text in sorted(all_of)[:_MOST]
    ]
    for _, name, text, package in sorted(chosen):
        words = _NAMES.sub("it", text).split()[:_WORDS]
        yield Record({"text": " ".join(words), "label": package}, name)
