"""What a finished run leaves: a Hugging Face folder of its model, and a report."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxbert import report as reports
from jaxbert.config import Config
from jaxbert.model.bert import BertForMaskedLM
from jaxbert.text.prepare import Prepared
from jaxbert.text.rows import Rows
from jaxbert.text.units import Split
from jaxbert.text.vocabulary import load_tokenizer
from jaxbert.train.loop import FitResult
from jaxbert.train.processes import describe_devices
from jaxbert.weights import huggingface
from jaxbert.weights.model_card import model_card


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run that reached its last step."""

    config: Config
    """Resolved."""
    prepared: Prepared
    rows: Mapping[tuple[Split, int], Rows]
    num_parameters: int
    outcome: FitResult

    def export(self) -> Path:
        """Write WORKDIR/model, a Hugging Face folder that transformers' BertForPreTraining loads; its path.

        Every process takes part, since each may hold only a part of the parameters; process 0 writes.
        """
        folder = Path(self.config.workdir) / "model"
        params = multihost_utils.process_allgather(self.outcome.state.params, tiled=True)
        if jax.process_index() != 0:
            return folder
        config, architecture = self.config, "BertForPreTraining"
        card = model_card(
            config.name,
            architecture,
            data=", ".join(f"`{text}`" for text in config.data.text),
            steps=self.outcome.step,
            settings={
                "global batch": f"{config.train.batch_size} rows of {config.data.max_length} tokens",
                "peak learning rate": config.optimizer.peak_learning_rate,
                "seed": config.seed,
            },
            metrics={f"held-out {name}": value for name, value in (self.outcome.evaluation or {}).items()},
        )
        huggingface.save(
            folder,
            config.model,
            params,
            self.prepared.tokenizer_directory,
            architecture=architecture,
            card=card,
            # transformers takes 0 where nothing is said, which in a tokenizer of RoBERTa's kind is another token.
            extra={"pad_token_id": self.prepared.vocabulary.pad_id},
            overwrite=True,
        )
        return folder

    def report(self, heldout: Iterable[reports.Arrays], seconds: float) -> reports.Baselines:
        """Write report.md and curves.png, and print the table and the examples.

        `heldout`: whole held-out batches, as they were evaluated; `seconds`: how long the run took since its last start.
        Every process takes part, as in `export`.
        """
        last_length = self.config.phases()[-1].max_length
        examples = self._examples(last_length)
        special_ids = self.prepared.vocabulary.special_ids
        baselines = reports.unigram_baselines(self.rows["train", last_length].token_counts, special_ids, heldout)
        if jax.process_index() == 0:
            workdir = Path(self.config.workdir)
            rows = reports.table(dict(self.outcome.evaluation or {}), baselines)
            reports.draw_curves(workdir / "metrics.jsonl", workdir / "curves.png", baselines)
            page = reports.to_markdown(self.config.name, self._facts(last_length, seconds), rows, examples)
            (workdir / "report.md").write_text(page, encoding="utf8")
            reports.show(rows, examples)
        return baselines

    def _examples(self, length: int) -> list[reports.Example]:
        model = BertForMaskedLM(self.config.model)

        @jax.jit
        def probabilities(params: Any, row: dict[str, jax.Array]) -> jax.Array:
            logits: Any = model.apply({"params": params}, *(row[name] for name in reports.ROW))
            return jax.nn.softmax(logits)

        def predict(row: reports.Arrays) -> np.ndarray:
            found = probabilities(self.outcome.state.params, row)
            return np.asarray(multihost_utils.process_allgather(found, tiled=True))

        tokenizer = load_tokenizer(str(self.prepared.tokenizer_directory))
        sentences = reports.read_samples(self.prepared.samples)
        return reports.fill_mask_examples(sentences, tokenizer, self.prepared.vocabulary.mask_id, predict, length)

    def _facts(self, length: int, seconds: float) -> list[tuple[str, str]]:
        train, heldout = (self.rows[split, length].manifest for split in ("train", "heldout"))
        return [
            ("model", f"{self.num_parameters:,} parameters, {self.config.model.num_layers} layers"),
            ("vocabulary", f"{self.prepared.vocabulary.size:,} tokens"),
            ("training rows", f"{train['num_rows']:,}, {train['num_tokens']:,} tokens, {train['fill']:.1%} filled"),
            ("held-out rows", f"{heldout['num_rows']:,}, {heldout['num_tokens']:,} tokens"),
            ("steps", f"{self.outcome.step:,}"),
            ("devices", describe_devices()),
            ("time of this start", f"{seconds:.0f} s"),
        ]
