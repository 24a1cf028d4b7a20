"""Small random models with tokenizers of their own, as transformers saves them."""

import pathlib

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from jaxbert.config import VocabularyConfig
from jaxbert.text.vocabulary import save_tokenizer
from jaxbert.text.wordpiece import train_tokenizer

POSITIONS = 96
WORDS = "the a cat dog sat on mat in house tree runs sees big small red and then it was gone over there".split()
SENTENCES = [" ".join(WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(3 + i % 9)) + "." for i in range(200)]


def wordpiece() -> Tokenizer:
    return train_tokenizer(SENTENCES, VocabularyConfig(size=180, min_frequency=1))


def byte_level() -> Tokenizer:
    """RoBERTa's kind: byte-level BPE, two </s> between the texts of a pair."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def write_model(folder: pathlib.Path, family: str, architecture: str, **settings) -> pathlib.Path:
    """A folder with random weights of two layers, and the tokenizer of its family; `settings` go to its config.json."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = wordpiece() if family == "bert" else byte_level()
    offset = 0 if family == "bert" else 2
    config = transformers.CONFIG_MAPPING[family](
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=POSITIONS + offset,
        type_vocab_size=2 if family == "bert" else 1,
        pad_token_id=0 if family == "bert" else 1,
        **settings,
    )
    model = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder, POSITIONS)
    return folder
