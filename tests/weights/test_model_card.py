"""The model card: valid front matter, every figure that was given, nothing that was not."""

import yaml

from jaxbert.weights.model_card import model_card


def test_a_card_says_what_was_given():
    text = model_card(
        "tiny",
        "BertForPreTraining",
        data="The documentation of this Python.",
        steps=1200,
        settings={"batch size": 32, "a|b": "c\nd"},
        metrics={"mlm_loss": 3.14159},
    )
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["jaxbert", "jax"],
    }
    for line in (
        "# tiny",
        "The documentation of this Python.",
        "| steps | 1200 |",
        "| batch size | 32 |",
        "| a\\|b | c d |",
        "| mlm_loss | 3.1416 |",
        'model = jaxbert.load("PATH")',
        'model = BertForPreTraining.from_pretrained("PATH")',
        'tokenizer = AutoTokenizer.from_pretrained("PATH")',
    ):
        assert line in body.splitlines(), line


def test_what_is_not_known_is_left_out():
    text = model_card("m", "BertModel", data="Text.", has_tokenizer=False)
    assert "Training" not in text
    assert "Results" not in text
    assert "AutoTokenizer" not in text
    assert 'pipeline_tag: "feature-extraction"' in text


def test_an_embedder_is_shown_as_one():
    text = model_card("m", "BertModel", data="Text.", embedder=True)
    assert 'model = SentenceTransformer("PATH")' in text
    assert 'library_name: "sentence-transformers"' in text
