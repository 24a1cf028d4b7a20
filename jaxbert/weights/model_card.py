"""README.md of an exported model: what it was trained on and how, what it reaches, and how to load it."""

import json
from collections.abc import Mapping
from typing import Any

# What the hub shows a model as.
_PIPELINES = {
    "ForPreTraining": "fill-mask",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "Model": "feature-extraction",
}


def model_card(
    name: str,
    architecture: str,
    *,
    data: str,
    steps: int | None = None,
    settings: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    embedder: bool = False,
    has_tokenizer: bool = True,
    made: str = "trained with jaxbert",
    adapter: bool = False,
) -> str:
    """The text of a card. `data` says in words what the model was trained on; the rest is left out where it is None.

    `settings` and `metrics` become tables, in their order; `embedder` shows how sentence-transformers loads it, `adapter` how
    peft does.
    """
    task = next((task for ending, task in _PIPELINES.items() if architecture.endswith(ending)), None)
    tags = ["jaxbert", "jax"] + (["sentence-transformers"] if embedder else [])
    head = {
        "library_name": "peft" if adapter else "sentence-transformers" if embedder else "transformers",
        "pipeline_tag": "sentence-similarity" if embedder else task,
        "tags": tags,
    }
    parts = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items() if value), "---", ""]
    parts += [f"# {name}", "", f"`{architecture}`, {made}.", "", "## Data", "", data, ""]
    if steps is not None or settings:
        rows = ({} if steps is None else {"steps": steps}) | dict(settings or {})
        parts += ["## Training", "", *_table(("setting", "value"), rows), ""]
    if metrics:
        rows = {name: f"{value:.4f}" for name, value in metrics.items()}
        parts += ["## Results", "", *_table(("metric", "value"), rows), ""]
    parts += [
        "## How to load it",
        "",
        "```python",
        *_loading(architecture, embedder, has_tokenizer, adapter),
        "```",
        "",
    ]
    return "\n".join(parts)


def _table(heads: tuple[str, str], rows: Mapping[str, Any]) -> list[str]:
    def cell(value: Any) -> str:
        return str(value).replace("|", "\\|").replace("\n", " ")

    return [
        f"| {heads[0]} | {heads[1]} |",
        "|---|---|",
        *(f"| {cell(name)} | {cell(value)} |" for name, value in rows.items()),
    ]


def _loading(architecture: str, embedder: bool, has_tokenizer: bool, adapter: bool) -> list[str]:
    lines = ["import jaxbert", 'model = jaxbert.load("PATH")', ""]
    if adapter:
        lines[1] = 'model = jaxbert.load("PATH")  # base="...": where its base model is, if not where it was'
    if embedder:
        return [*lines, "from sentence_transformers import SentenceTransformer", 'model = SentenceTransformer("PATH")']
    if adapter:
        names = f"from transformers import {architecture}"
        made = f'base = {architecture}.from_pretrained("BASE", num_labels=...)'
        return [*lines, "from peft import PeftModel", names, made, 'model = PeftModel.from_pretrained(base, "PATH")']
    names = f"AutoTokenizer, {architecture}" if has_tokenizer else architecture
    lines += [f"from transformers import {names}", f'model = {architecture}.from_pretrained("PATH")']
    return lines + (['tokenizer = AutoTokenizer.from_pretrained("PATH")'] if has_tokenizer else [])
