"""Multiple choice: rows of several forms, the loss over the choices of each example, and how it is scored."""

import jax
import numpy as np
import pytest
import torch
from made_task_encoders import encoder_of, outputs_of, parameters_of, wordpiece

from jaxbert.data.examples import TrainingBatches, layout_of
from jaxbert.data.records import BadRecordError, ExamplesError, Record
from jaxbert.finetune.config import ChoiceConfig
from jaxbert.tasks.choice import BoundMultipleChoice, Choices, Chosen, MultipleChoice

SWAG = {"sent1": "She opens", "sent2": "The box", "ending0": "sings.", "ending1": "is red.", "ending2": "eats."}
ENDINGS = ("ending0", "ending1", "ending2")
EXAMPLES = [
    Choices("the cat", ("sat", "sees it", "was"), 1),
    Choices("a dog runs", ("and then", "it"), 0),
    Choices("in", ("big", "small", "red", "gone over there"), 3),
    Choices("on the mat", ("the tree", "the house"), 1),
]


def bind() -> BoundMultipleChoice:
    return MultipleChoice(ChoiceConfig()).bind(("0", "1", "2", "3"), [], encoder_of(wordpiece()))


def parse(values: dict, **settings) -> Choices:
    return MultipleChoice(ChoiceConfig(**settings)).parse(Record(values, "train.jsonl:1"))


@pytest.mark.parametrize("label", [1, "1", "B", "b", " 1 "])
def test_columns_of_choices(label: object):
    expected = Choices("She opens", ("The box sings.", "The box is red.", "The box eats."), 1)
    assert parse(SWAG | {"label": label}, choices=ENDINGS) == expected


def test_a_list_of_choices_and_numbers_from_1():
    values = {"premise": "It rained.", "options": ["He sang.", "Roads were wet."], "answer": 2}
    settings = {"context": "premise", "question": None, "choices": ("options",), "label": "answer", "first_number": 1}
    assert parse(values, **settings) == Choices("It rained.", ("He sang.", "Roads were wet."), 1)
    task = MultipleChoice(ChoiceConfig(**settings))
    assert list(task.labels_of(parse(values, **settings))) == ["2"]


@pytest.mark.parametrize(
    ("values", "settings", "text"),
    [
        ({"label": 3}, {}, "label is 3, and the 3 choices are 0 to 2"),
        ({"label": -1}, {}, "label is -1"),
        ({"label": "E"}, {}, "label is 'E'"),
        ({"label": "none"}, {}, "neither a number nor a letter"),
        ({"label": None}, {}, "neither a number nor a letter"),
        ({"label": 0, "ending1": " "}, {}, "ending1 is empty"),
        ({"label": 0, "ending0": "sings"}, {"choices": ("ending0",)}, "is 'sings', and no list of texts"),
        ({"label": 0, "ending0": ["sings"]}, {"choices": ("ending0",)}, "has 1 choices: there must be at least two"),
        ({"label": 0, "ending0": ["sings", 3]}, {"choices": ("ending0",)}, "no list of texts"),
    ],
)
def test_rows_that_are_none(values: dict, settings: dict, text: str):
    with pytest.raises(BadRecordError, match=text):
        parse(SWAG | values, **({"choices": ENDINGS} | settings))


def test_a_missing_column_is_named():
    with pytest.raises(ExamplesError, match=r"has no column 'ending3': set task\.choices"):
        parse(SWAG | {"label": 0})


def test_the_loss_is_torchs_over_the_choices_of_each_example():
    bound = bind()
    params, features = parameters_of(bound), bind().features(EXAMPLES)
    outputs = outputs_of(bound, params, features)
    logits = [
        [float(one["logit"]) for f, one in zip(features, outputs, strict=True) if f.example == n] for n in range(4)
    ]
    losses = [
        float(torch.nn.functional.cross_entropy(torch.tensor([some]), torch.tensor([example.right])))
        for some, example in zip(logits, EXAMPLES, strict=True)
    ]
    [batch] = TrainingBatches(features, 4, layout_of(features, 3), seed=0, together=True).batches(0, 1)
    assert (batch["real"].sum(1) > 1).any()
    sums = jax.jit(bound.forward, static_argnums=2)(params, batch, None)
    total, weight = (float(value) for value in sums["label_loss"])
    assert weight == float(bound.weights(batch)["label_loss"]) == 4
    assert total == pytest.approx(sum(losses), abs=1e-4)
    chosen = bound.decode(EXAMPLES, features, outputs)
    right = [one.choice == example.right for one, example in zip(chosen, EXAMPLES, strict=True)]
    assert float(sums["accuracy"][0]) == sum(right)
    assert [one.choice for one in chosen] == [int(np.argmax(some)) for some in logits]
    scored = bound.score(EXAMPLES, chosen)
    assert scored["loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert scored["accuracy"] == np.mean(right)
    wrong = bound.mistakes(EXAMPLES, chosen)
    assert [one.text for one in wrong] == [e.context for e, ok in zip(EXAMPLES, right, strict=True) if not ok]


def test_choices_elsewhere_change_nothing():
    """The gradient of one example is the same whatever examples share its rows and its batch."""
    bound = bind()
    params = parameters_of(bound)

    def gradient(examples: list[Choices]):
        features = bound.features(examples)
        [batch] = TrainingBatches(features, 4, layout_of(features, 1), seed=0, together=True).batches(0, 1)
        return jax.jit(jax.grad(lambda p: bound.forward(p, batch, None)["label_loss"][0]))(params)

    alone = [gradient([example]) for example in EXAMPLES[:2]]
    both = gradient(EXAMPLES[:2])
    for one, other, whole in zip(*(jax.tree.leaves(tree) for tree in (*alone, both)), strict=True):
        np.testing.assert_allclose(one + other, whole, atol=2e-5)


def test_probabilities_of_far_logits():
    bound = bind()
    [one] = bound.decode(
        [EXAMPLES[1]], bound.features([EXAMPLES[1]]), [{"logit": np.array(v)} for v in (-900.0, 900.0)]
    )
    np.testing.assert_array_equal(one.scores, [0, 1])
    assert bound.score([EXAMPLES[1]], [Chosen(1, one.scores)])["loss"] == pytest.approx(-np.log(1e-12))
