"""What a finished run leaves for others: a config.json that says what its tokenizer means."""

import json
import pathlib
import types

import flax.linen as nn
import jax
import numpy as np
import pytest
import transformers

from jaxbert.config import Config, ModelConfig
from jaxbert.model.bert import BertForPreTraining
from jaxbert.results import Finished
from jaxbert.text.vocabulary import Vocabulary, load_tokenizer, save_tokenizer
from jaxbert.text.wordpiece import bert_tokenizer
from jaxbert.train.loop import FitResult
from jaxbert.weights.load import load

BERTS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "barks")
# As in a tokenizer of RoBERTa's kind, padding is not the first token.
OTHERS = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]", "dog", "barks")


def finished(workdir: pathlib.Path, pieces: tuple[str, ...]) -> Finished:
    """A run that reached its end, as far as its export looks at it."""
    tokenizer = bert_tokenizer({piece: i for i, piece in enumerate(pieces)}, lowercase=True)
    save_tokenizer(tokenizer, workdir / "tokenizer", 16)
    model = ModelConfig(len(pieces), 8, 1, 2, 16, max_position_embeddings=16)
    one = np.zeros((1, 4), np.int32)
    params = nn.unbox(BertForPreTraining(model).init(jax.random.key(0), one, one, one))["params"]
    prepared = types.SimpleNamespace(
        tokenizer_directory=workdir / "tokenizer",
        vocabulary=Vocabulary.of(load_tokenizer(workdir / "tokenizer")),
    )
    outcome = FitResult(types.SimpleNamespace(params=params), 1, False, None)
    return Finished(Config(workdir=str(workdir), model=model), prepared, {}, 0, outcome)  # pyright: ignore


@pytest.mark.parametrize(("pieces", "pad_id"), [(BERTS, 0), (OTHERS, 1)], ids=["berts", "robertas"])
def test_the_export_names_the_padding_of_its_tokenizer(tmp_path: pathlib.Path, pieces: tuple[str, ...], pad_id: int):
    folder = finished(tmp_path, pieces).export()
    file = folder / "config.json"
    values = json.loads(file.read_text())
    assert values["pad_token_id"] == pad_id
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert transformers.AutoConfig.from_pretrained(folder).pad_token_id == tokenizer.pad_token_id == pad_id
    # What comes back is the same with and without it.
    known = load(folder)
    file.write_text(json.dumps({key: value for key, value in values.items() if key != "pad_token_id"}))
    unknown = load(folder)
    assert known.config == unknown.config
    assert (known.unused_positions, known.groups) == (unknown.unused_positions, unknown.groups)
    jax.tree.map(np.testing.assert_array_equal, known.params, unknown.params)
