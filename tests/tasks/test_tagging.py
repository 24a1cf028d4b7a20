"""Tagging: what files become, first pieces, windows, what comes out of scores, and the loss beside torch's."""

import itertools
import pathlib

import jax
import numpy as np
import pytest
import torch
from made_task_encoders import byte_level, encoder_of, outputs_of, parameters_of, placed, wordpiece
from tokenizers import Tokenizer

from jaxbert.data.labelled import read_records
from jaxbert.data.records import BadRecordError, ExamplesError, Record
from jaxbert.finetune.config import ExamplesConfig, TaggingConfig
from jaxbert.tasks.entities import Span
from jaxbert.tasks.sentences import Sentence
from jaxbert.tasks.tagging import BoundTagging, Tagged, Tagging
from jaxbert.text.wordpiece import bert_tokenizer

TYPES = ("LOC", "PER")


def sentence_of(columns: str, **settings) -> Sentence:
    """ "Ada/B-PER slept/O" """
    lines = tuple(tuple(word.split("/")) for word in columns.split())
    return Tagging(TaggingConfig(**settings)).parse(Record({"columns": lines}, "train.conll:1"))


def spanned(text: str, entities: object, **settings) -> Sentence:
    return Tagging(TaggingConfig(**settings)).parse(Record({"text": text, "entities": entities}, "train.jsonl:1"))


def named(text: str, *names: str, **settings) -> Sentence:
    """With the entities "LOC:Paris", where these first stand."""
    pairs = [name.split(":") for name in names]
    return spanned(text, [[text.index(name), text.index(name) + len(name), kind] for kind, name in pairs], **settings)


def bind(tokenizer, max_length: int = 64, labels: tuple[str, ...] = TYPES, **settings) -> BoundTagging:
    task = Tagging(TaggingConfig(labels=labels, **settings))
    return task.bind(task.labels([]), [], encoder_of(tokenizer, max_length))


def perfect(bound: BoundTagging, sentences, features) -> list[dict[str, np.ndarray]]:
    """Outputs that are sure of the right tag at every place that is read."""
    outputs = []
    for feature in features:
        chances = np.full((len(feature.input_ids), len(bound.labels)), -20.0, np.float32)
        for place, word in feature.host["word_of"].items():
            chances[place, bound.labels.index(sentences[feature.example].tags[word])] = 0.0
        outputs.append({"log_probabilities": chances})
    return outputs


def as_trained(bound: BoundTagging, features) -> list[dict[str, np.ndarray]]:
    """Outputs that are sure of what is trained."""
    outputs = []
    for feature in features:
        chances = np.full((len(feature.input_ids), len(bound.labels)), -20.0, np.float32)
        chances[np.arange(len(feature.input_ids)), feature.tokens["tag"]] = 0.0
        outputs.append({"log_probabilities": chances})
    return outputs


def texts_of(sentence: Sentence | Tagged, text: str) -> list[str]:
    return [f"{kind}:{text[start:end]}" for start, end, kind in sentence.entities]


# Files.


def test_a_sentence_of_columns():
    sentence = sentence_of("Ada/B-PER Lovelace/I-PER saw/O Paris/B-LOC")
    assert sentence.text == "Ada Lovelace saw Paris"
    assert [sentence.text[start:end] for start, end in sentence.words] == ["Ada", "Lovelace", "saw", "Paris"]
    assert sentence.tags == ("B-PER", "I-PER", "O", "B-LOC")
    assert sentence.entities == sentence.strict == ((0, 12, "PER"), (17, 22, "LOC"))


@pytest.mark.parametrize(
    ("columns", "settings"),
    [
        ("Ada/NNP/x/B-PER slept/VBD/x/O", {}),
        ("B-PER/Ada/x O/slept/x", {"word_column": 1, "tag_column": 0}),
        ("x/Ada/B-PER/x x/slept/O/x", {"word_column": 1, "tag_column": -2}),
    ],
)
def test_columns_are_chosen(columns: str, settings):
    sentence = sentence_of(columns, **settings)
    assert (sentence.text, sentence.tags) == ("Ada slept", ("B-PER", "O"))


@pytest.mark.parametrize(
    ("scheme", "columns", "tags", "entities", "strict"),
    [
        # An I- that begins is mended for the model, and none to the strict reading.
        ("iob2", "a/I-X b/I-X c/O d/B-Y", "B-X I-X O B-Y", "X03 Y67", "Y67"),
        ("iob2", "a/B-X b/I-Y c/O", "B-X B-Y O", "X01 Y23", "X01"),
        # In IOB1 it is right.
        ("iob1", "a/I-X b/I-X c/B-X d/O", "B-X I-X B-X O", "X03 X45", "X03 X45"),
        ("bioes", "a/B-X b/E-X c/S-Y", "B-X E-X S-Y", "X03 Y45", "X03 Y45"),
        ("bioes", "a/I-X b/E-X c/O d/S-Y", "B-X E-X O S-Y", "X03 Y67", "Y67"),
        # Without its E- an entity of BIOES has no end (IOBES in seqeval/scheme.py).
        ("bioes", "a/B-X b/I-X c/O d/S-Y", "B-X E-X O S-Y", "X03 Y67", "Y67"),
        ("bioes", "a/B-X b/S-X", "S-X S-X", "X01 X23", "X23"),
    ],
)
def test_schemes_and_both_readings(scheme, columns: str, tags: str, entities: str, strict: str):
    sentence = sentence_of(columns, scheme=scheme)
    assert sentence.tags == tuple(tags.split())
    for found, expected in ((sentence.entities, entities), (sentence.strict, strict)):
        assert [f"{kind}{start}{end}" for start, end, kind in found] == expected.split()


def test_tags_of_words_stay_as_they_are():
    sentence = sentence_of("the/DT I-95/B-x dog/NN", scheme="words")
    assert (sentence.tags, sentence.entities) == (("DT", "B-x", "NN"), ())
    task = Tagging(TaggingConfig(scheme="words"))
    assert task.labels([sentence]) == ("B-x", "DT", "NN")
    assert bind(wordpiece(), labels=("B-x", "DT", "NN"), scheme="words").metric == "accuracy"


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ("Ada/NNP", {}, "'NNP' is no tag of IOB2: it has O and B-TYPE, I-TYPE"),
        ("Ada/B-PER und/O Eva/S-PER", {}, "word 3 of this sentence, 'Eva': 'S-PER' is no tag of IOB2"),
        ("Ada", {}, "has 1 columns"),
        ("Ada/B-PER", {"word_column": 1}, "has 2 columns: task.word-column 1 and task.tag-column -1 are one"),
        ("Ada/B-PER", {"tag_column": 2}, "task.tag-column 2 is none"),
        ("Ada/B-PER", {"tag_column": -3}, "task.tag-column -3 is none"),
        ("Ada/B-PER", {"word_column": 2}, "task.word-column 2 or"),
        ("Ada/B-PER", {"word_column": -3}, "task.word-column -3 or"),
    ],
)
def test_bad_columns_are_told(columns: str, settings, message: str):
    with pytest.raises(BadRecordError, match=message):
        sentence_of(columns, **settings)


def test_a_conll_file(tmp_path: pathlib.Path):
    (tmp_path / "a.conll").write_text(
        "-DOCSTART- O\n\nAda\tB-PER\nslept\tO\n\nin\tO\nNew York\tB-LOC\n", encoding="utf8"
    )
    stop = pytest.fail
    records = read_records(str(tmp_path / "a.conll"), ExamplesConfig(), lambda place, reason: stop(reason))
    sentences = [Tagging(TaggingConfig()).parse(record) for record in records]
    assert [sentence.text for sentence in sentences] == ["Ada slept", "in New York"]
    assert sentences[1].entities == ((3, 11, "LOC"),)


TEXT = "Ada saw Paris."


@pytest.mark.parametrize(
    "entities",
    [
        [[0, 3, "PER"], [8, 13, "LOC"]],
        [(8, 13, "LOC"), (0, 3, "PER")],
        [{"start": 0, "end": 3, "label": "PER"}, {"start": 8, "end": 13, "type": "LOC", "text": "Paris"}],
        {"PER": {"Ada": [[0, 3]]}, "LOC": {"Paris": [[8, 13]]}},
    ],
)
def test_forms_of_spans(entities):
    sentence = spanned(TEXT, entities)
    assert sentence.entities == sentence.strict == ((0, 3, "PER"), (8, 13, "LOC"))
    assert sentence.tags == ("B-PER", "O", "B-LOC", "O")


def test_cluener_ends_are_last_characters():
    """The first line of its dev.jsonl."""
    text = "彭小军认为，国内银行现在走的是台湾的发卡模式"
    label = {"address": {"台湾": [[15, 16]]}, "name": {"彭小军": [[0, 2]]}}
    sentence = Tagging(TaggingConfig(spans="label", inclusive_ends=True)).parse(
        Record({"text": text, "label": label}, "dev.jsonl:1")
    )
    assert texts_of(sentence, text) == ["name:彭小军", "address:台湾"]
    # A character of Chinese is a word.
    assert sentence.tags[:4] == ("B-name", "I-name", "I-name", "O")
    assert sentence.tags[15:17] == ("B-address", "I-address")


def test_the_same_name_may_stand_twice():
    sentence = spanned("Paris, Paris", {"LOC": {"Paris": [[0, 5], [7, 12]]}})
    assert sentence.entities == ((0, 5, "LOC"), (7, 12, "LOC"))


@pytest.mark.parametrize(
    ("entities", "message"),
    [
        ([[0, 3]], "is no span"),
        ([[0, 3, "PER", 1]], "is no span"),
        ([["0", 3, "PER"]], "is no span"),
        ([[0, True, "PER"]], "is no span"),
        ([[0, 3, None]], "is no span"),
        ([[0, 3, ""]], "has an empty type"),
        ({" ": {"Ada": [[0, 3]]}}, "has an empty type"),
        ([{"start": 0, "label": "PER"}], "is no span"),
        (["PER"], "is no span"),
        ([[8, 15, "LOC"]], "8 to 15 is not in its text of 14 characters"),
        ([[-1, 3, "PER"]], "-1 to 3 is not in its text"),
        ([[3, 3, "PER"]], "3 to 3 is not in its text"),
        ("Ada", "is no list of spans"),
        (None, "is no list of spans"),
        # Nearly CLUENER's form: one list too few, or no name.
        ({"PER": {"Ada": [0, 3]}}, "is no span"),
        ({"PER": {"Ada": 0}}, "is no span"),
        ({"PER": [[0, 3]]}, "is no"),
    ],
)
def test_bad_spans_are_told(entities, message: str):
    with pytest.raises(BadRecordError, match=message):
        spanned(TEXT, entities)


def test_missing_columns_and_wrong_settings_are_told():
    with pytest.raises(
        ExamplesError, match=r"train.jsonl:1: has no column 'spans': set task.spans to one of 'text', 'ent"
    ):
        spanned(TEXT, [], spans="spans")
    with pytest.raises(ExamplesError, match='"words" needs a file with a word and its tag'):
        spanned(TEXT, [], scheme="words")
    with pytest.raises(BadRecordError, match="text is empty"):
        spanned(" ", [])
    with pytest.raises(ExamplesError, match=r"data.train and data.dev have no entities: check task.tag-column"):
        Tagging(TaggingConfig()).labels([spanned(TEXT, [])])
    bound = bind(wordpiece())
    with pytest.raises(ExamplesError, match=r"label 'B-ORG' is none of the task's \(B-LOC"):
        bound.features([sentence_of("ACM/B-ORG")])


def test_a_type_that_is_not_listed_is_wrong_with_a_sentence():
    with pytest.raises(BadRecordError, match=r"label 'ORG' is not one of task.labels \(PER, LOC\)"):
        sentence_of("a/B-PER b/B-ORG", labels=("PER", "LOC"))
    with pytest.raises(BadRecordError, match=r"label 'ORG' is not one of task.labels \(PER\)"):
        spanned(TEXT, [[0, 1, "ORG"]], labels=("PER",))
    with pytest.raises(BadRecordError, match=r"label 'NN' is not one of task.labels \(DT\)"):
        sentence_of("a/DT b/NN", labels=("DT",), scheme="words")
    assert sentence_of("a/B-PER b/O", labels=("PER", "LOC")).tags == ("B-PER", "O")


def test_labels_are_the_tags_of_the_types():
    train = [sentence_of("a/B-PER b/I-PER"), sentence_of("c/O d/B-LOC")]
    assert Tagging(TaggingConfig()).labels(train) == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    chosen = Tagging(TaggingConfig(labels=("PER",), scheme="bioes")).labels(train)
    assert chosen == ("O", "B-PER", "I-PER", "E-PER", "S-PER")


def test_real_chinese_sentences_come_in(shared_data: pathlib.Path):
    path = shared_data / "labelled" / "cluener2020" / "dev.jsonl"
    task, bad = Tagging(TaggingConfig(spans="label", inclusive_ends=True)), []
    for record in read_records(str(path), ExamplesConfig(), lambda place, reason: bad.append(reason)):
        try:
            sentence = task.parse(record)
        except BadRecordError as error:
            bad.append(str(error))
            continue
        names = {(kind, name) for kind, found in record.values["label"].items() for name in found}
        assert {(kind, sentence.text[start:end]) for start, end, kind in sentence.entities} == names
    assert bad == []


# Pieces.


@pytest.mark.parametrize(
    ("tokenizer", "text", "names", "expected"),
    [
        (
            wordpiece("ada", "love", "##lace", "saw", "paris"),
            "Ada Lovelace saw Paris.",
            ("PER:Ada Lovelace", "LOC:Paris"),
            "[CLS] ada=B-PER love=I-PER ##lace saw=O paris=B-LOC .=O [SEP]",
        ),
        (
            byte_level("Ada Lovelace Paris." * 9),
            "Ada Lovelace Paris.",
            ("PER:Ada Lovelace", "LOC:Paris"),
            "<s> Ada=B-PER ĠLovelace=I-PER ĠParis=B-LOC .=O </s>",
        ),
        (byte_level(), "up Ad", ("PER:Ad",), "<s> u=O p Ġ A=B-PER d </s>"),
        (wordpiece("彭", "军"), "彭军，好", ("PER:彭军",), "[CLS] 彭=B-PER 军=I-PER [UNK]=O [UNK]=O [SEP]"),
        (wordpiece("naive", "cafe"), "naïve Café", ("LOC:Café",), "[CLS] naive=O cafe=B-LOC [SEP]"),
        (wordpiece(), "o'b-c", ("PER:o'b",), "[CLS] o=B-PER '=I-PER b=I-PER -=O c=O [SEP]"),
        # Three and four bytes: pieces of one character, of which the first is read.
        (byte_level(), "中🙂", ("LOC:🙂",), "<s> ä=O ¸ Ń ð=B-LOC Ł Ļ Ĥ </s>"),
        (byte_level(), "été", ("LOC:été",), "<s> Ã=B-LOC © t Ã © </s>"),
    ],
)
def test_the_first_piece_of_a_word_has_its_tag(tokenizer, text: str, names: tuple[str, ...], expected: str):
    bound = bind(tokenizer)
    (feature,) = bound.features([named(text, *names)])
    pieces = tokenizer.encode(text).tokens
    tagged = [
        f"{piece}={bound.labels[tag]}" if weight else piece
        for piece, tag, weight in zip(pieces, feature.tokens["tag"], feature.tokens["tag_weight"], strict=True)
    ]
    assert " ".join(tagged) == expected


TEXTS = [
    ("Angela Merkel was in Paris, not in New York.", ("PER:Angela Merkel", "LOC:Paris", "LOC:New York")),
    ("彭小军认为，台湾的银行", ("PER:彭小军", "LOC:台湾")),
    ("在Paris的李雷saw东京!", ("LOC:Paris", "PER:李雷", "LOC:东京")),
    ("🙂 Paris 👩‍👩‍👧 Ada 🙂🙂 Rome", ("LOC:Paris", "PER:Ada", "LOC:Rome")),
    ("so 🇫🇷 is a 🙂", ("LOC:🇫🇷", "PER:🙂")),
    ("naïve Ångström in Zürich", ("PER:Ångström", "LOC:Zürich")),
    # The same letters with combining marks.
    ("nai\u0308ve A\u030angstro\u0308m in Zu\u0308rich", ("PER:A\u030angstro\u0308m", "LOC:Zu\u0308rich")),
    ("Rene\u0301 in Orle\u0301ans", ("PER:Rene\u0301", "LOC:Orle\u0301ans")),
    ("O'Neill (Ada-Lee) \u00a0 at  \t Saint-Denis", ("PER:O'Neill", "PER:Ada-Lee", "LOC:Saint-Denis")),
    ("R2D2 flew from LV426", ("PER:R2D2", "LOC:LV426")),
    ("サッカーの東京タワー", ("PER:サッカー", "LOC:東京タワー")),
]


@pytest.mark.parametrize(
    "tokenizer",
    [
        wordpiece(
            "in",
            "paris",
            "zurich",
            "orleans",
            "rene",
            "r2d2",
            "彭",
            "台",
            "湾",
            "東",
            "京",
            "サッカ",
            "##ー",
            "##の",
            "タワー",
        ),
        byte_level(),
        byte_level(*[name.split(":")[1] for _, names in TEXTS for name in names] * 9),
    ],
    ids=["wordpiece", "bytes", "merged"],
)
@pytest.mark.parametrize(("text", "names"), TEXTS)
def test_what_a_perfect_model_finds_is_what_the_file_says(tokenizer, text: str, names: tuple[str, ...]):
    """Also where a piece is several words: "zurich" without its accents, "r2d2"; and whole names in "merged"."""
    bound, sentence = bind(tokenizer), named(text, *names)
    features = bound.features([sentence])
    (found,) = bound.decode([sentence], features, perfect(bound, [sentence], features))
    assert texts_of(found, text) == list(names)


# Marks and format characters that BERT's normalizer drops, some between letters and some at a word's end; Thai has no spaces.
MARKED = [
    ("वह दिल्ली में है", ("LOC:दिल्ली",)),
    ("قال مُحَمَّد هنا", ("PER:مُحَمَّد",)),
    ("آیت‌الله خامنه‌ای گفت", ("PER:خامنه‌ای",)),
    ("กรุงเทพ", ("LOC:กรุงเทพ",)),
    ("ผมอยู่กรุงเทพครับ", ("LOC:กรุงเทพ",)),
    ("אל יְרוּשָׁלַיִם באתי", ("LOC:יְרוּשָׁלַיִם",)),
    ("❤️ NY", ("LOC:❤️ NY",)),
    ("I ❤️ NY, 1️⃣ day", ("LOC:NY", "PER:1️⃣")),
    ("see Foo\u200dBar go", ("PER:Foo\u200dBar",)),
    ("in New\u00adcastle now", ("LOC:New\u00adcastle",)),
    ("in New\u200bYork, not York", ("LOC:New\u200bYork",)),
    # Nothing to the tokenizer, and words of their own: a private character, and an object that was replaced.
    ("Ada \ue000 Lee saw Jo\ufffdAnn", ("PER:Ada \ue000 Lee", "PER:Jo\ufffdAnn")),
]


def letters_of_marked() -> Tokenizer:
    """As BERT's tokenizer without a word of these languages: a piece for each character that its normalizer leaves."""
    cleaned = wordpiece().normalizer.normalize_str("".join(text for text, _ in MARKED))
    return wordpiece("r2d2", *(piece for letter in cleaned for piece in (letter, f"##{letter}")))


def check_whole(tokenizer: Tokenizer, text: str, names: tuple[str, ...], **settings) -> None:
    """A model that says what it was trained to say finds each entity whole, and is sure of it."""
    bound, sentence = bind(tokenizer, **settings), named(text, *names, **settings)
    assert list(Tagging(TaggingConfig()).oddities(sentence)) == []
    features = bound.features([sentence])
    (found,) = bound.decode([sentence], features, as_trained(bound, features))
    assert texts_of(found, text) == list(names)
    assert found.scores == pytest.approx((1.0,) * len(names))
    assert found.loss == pytest.approx(0)


@pytest.mark.parametrize("tags", ["iob2", "bioes"])
@pytest.mark.parametrize(
    ("text", "names"), [*MARKED, ("R2D2 flew", ("PER:R2D2",)), ("\u200fAda\u200f.", ("PER:Ada\u200f",))]
)
def test_what_the_tokenizer_drops_does_not_split_an_entity(text: str, names: tuple[str, ...], tags):
    check_whole(letters_of_marked(), text, names, tags=tags)


@pytest.mark.parametrize(("text", "names"), [one for one in MARKED if not one[0].startswith("ผม")])
def test_no_entity_is_split_with_a_real_vocabulary(shared_data: pathlib.Path, text: str, names: tuple[str, ...]):
    """All of the other Thai sentence is one unknown word to it."""
    path = shared_data / "vocab" / "bert-base-uncased-vocab.txt"
    pieces = path.read_text(encoding="utf8").splitlines()
    check_whole(bert_tokenizer({piece: n for n, piece in enumerate(pieces)}, True), text, names)


def test_an_entity_is_trained_from_its_first_word_that_is_read():
    bound, sentence = bind(wordpiece("ada", "lee")), sentence_of("\ue000/B-PER ada/I-PER \ufffd/I-PER lee/I-PER")
    (feature,) = bound.features([sentence])
    assert [bound.labels[tag] for tag in feature.tokens["tag"][1:-1]] == ["B-PER", "I-PER"]
    (found,) = bound.decode([sentence], [feature], as_trained(bound, [feature]))
    assert found.tags == ("O", "B-PER", "I-PER", "I-PER")


def test_what_the_tokenizer_does_not_see_is_outside():
    """A control character is a word of a CoNLL file and nothing to BERT."""
    bound, sentence = bind(wordpiece()), sentence_of("ada/B-PER \x02/B-LOC rome/B-LOC")
    features = bound.features([sentence])
    (found,) = bound.decode([sentence], features, perfect(bound, [sentence], features))
    assert found.tags == ("B-PER", "O", "B-LOC")


# Windows.


def long_sentence() -> Sentence:
    words = [f"w{n}" for n in range(60)]
    tags = ["B-PER" if n % 7 == 0 else "I-PER" if n % 7 == 1 else "O" for n in range(60)]
    return sentence_of(" ".join(f"{word}/{tag}" for word, tag in zip(words, tags, strict=True)))


@pytest.mark.parametrize("max_length", [16, 32, 64, 256])
def test_windows_have_every_word(max_length: int):
    bound, sentence = bind(wordpiece(), max_length), long_sentence()
    features = bound.features([sentence, sentence_of("a/O")])
    windows = [feature for feature in features if feature.example == 0]
    assert (len(windows) > 1) == (max_length < 256)
    assert all(len(feature.input_ids) <= max_length for feature in features)
    assert [feature.example for feature in features] == [0] * len(windows) + [1]
    read = [list(window.host["word_of"].values()) for window in windows]
    assert sorted({word for words in read for word in words}) == list(range(60))
    for before, after in itertools.pairwise(read):
        assert before[-1] >= after[0] - 1
        assert len({*before} & {*after}) <= max_length // 4
    for window in windows:
        places = list(window.host["word_of"])
        assert places == np.flatnonzero(window.tokens["tag_weight"]).tolist()
        # The tokens at those places are the first pieces: "w", and not "##4".
        assert {window.input_ids[place] for place in places} == {bound.encoder.tokenizer.token_to_id("w")}


def test_a_word_is_read_where_it_has_most_around_it():
    bound, sentence = bind(wordpiece(), 16), long_sentence()
    features = bound.features([sentence])
    around: dict[int, list[tuple[int, int, int]]] = {}
    for number, feature in enumerate(features):
        for place, word in feature.host["word_of"].items():
            around.setdefault(word, []).append((min(place, len(feature.input_ids) - 1 - place), -number, place))
    outputs = perfect(bound, [sentence], features)
    wrong = 0
    for places in around.values():
        for _, number, place in sorted(places)[:-1]:
            outputs[-number]["log_probabilities"][place] = [-20, 0, -20, -20, -20]
            wrong += 1
    assert wrong > 10
    (found,) = bound.decode([sentence], features, outputs)
    assert found.tags == sentence.tags
    assert found.entities == sentence.entities


# What comes out of scores.


def test_tags_are_legal_and_entities_have_the_mean_probability_of_their_words():
    bound, sentence = bind(wordpiece("ada", "lee", "saw")), sentence_of("ada/B-PER lee/I-PER saw/O")
    features = bound.features([sentence])
    chances = np.full((5, 5), 0.01)
    # O, B-LOC, I-LOC, B-PER, I-PER. Word by word it would be I-PER, I-PER, O.
    chances[1], chances[2] = [0.01, 0.01, 0.01, 0.4, 0.57], [0.05, 0.01, 0.01, 0.03, 0.9]
    chances[3, 0] = 0.96
    (found,) = bound.decode([sentence], features, [{"log_probabilities": np.log(chances)}])
    assert found.tags == ("B-PER", "I-PER", "O")
    assert found.entities == ((0, 7, "PER"),)
    assert found.scores == pytest.approx((0.65,))
    assert found.loss == pytest.approx(-np.log([0.4, 0.9, 0.96]).mean())


def test_tags_of_words_may_follow_as_they_like():
    bound = bind(wordpiece(), labels=("I-x", "O"), scheme="words")
    sentence = sentence_of("a/O b/I-x", scheme="words")
    features = bound.features([sentence])
    (found,) = bound.decode([sentence], features, perfect(bound, [sentence], features))
    assert (found.tags, found.entities) == (("O", "I-x"), ())
    assert bound.score([sentence], [found]) == {"accuracy": 1.0}


def predicted(sentence: Sentence, tags: str) -> Tagged:
    """As if the model had said so."""
    (one,) = [sentence_of(" ".join(f"w/{tag}" for tag in tags.split()))]
    edges = {start: n for n, (start, _) in enumerate(one.words)}
    ends = {end: n for n, (_, end) in enumerate(one.words)}
    found = tuple(Span(sentence.words[edges[s]][0], sentence.words[ends[e]][1], kind) for s, e, kind in one.entities)
    return Tagged(one.tags, found, (1.0,) * len(found), 0.0)


def test_measures_of_a_case_made_by_hand():
    """Gold has 5 entities (3 PER, 2 LOC), 4 are found (2 PER, 2 LOC), and 2 of these (1 PER, 1 LOC) are right."""
    gold = [
        sentence_of("a/B-PER b/I-PER c/O d/B-LOC e/O"),
        # An I- that begins: none to the strict reading.
        sentence_of("a/I-PER b/O c/B-PER d/O e/B-LOC f/I-LOC"),
    ]
    found = [predicted(gold[0], "B-PER O O B-LOC O"), predicted(gold[1], "B-PER O O O B-LOC O")]
    measures = bind(wordpiece()).score(gold, found)
    assert measures == pytest.approx(
        {
            "precision": 2 / 4,
            "recall": 2 / 5,
            "f1": 2 * 2 / (4 + 5),
            # 1 of 4 and of 4 is right.
            "strict_f1": 1 / 4,
            # PER 2 x 1 / (2 + 3), LOC 2 x 1 / (2 + 2).
            "macro_f1": (2 / 5 + 1 / 2) / 2,
            "accuracy": 8 / 11,
        }
    )


def test_a_perfect_model_has_perfect_measures():
    gold = [named(text, *names) for text, names in TEXTS[:3]] + [long_sentence(), sentence_of("a/O b/O")]
    bound = bind(wordpiece(), 32)
    features = bound.features(gold)
    found = bound.decode(gold, features, perfect(bound, gold, features))
    assert set(bound.score(gold, found).values()) == {1.0}
    assert bound.mistakes(gold, found) == []


def test_reports_show_types_tags_and_mistakes():
    gold = sentence_of("ada/B-PER lee/I-PER saw/O rome/B-LOC")
    found = predicted(gold, "B-PER I-PER O B-PER")
    bound = bind(wordpiece())
    types, strict, words = bound.tables([gold], [found])
    assert [row[0] for row in types.rows] == ["LOC", "PER", "all"]
    assert types.rows[1][1:] == ["0.500", "1.000", "0.667", "1"]
    assert strict.rows == types.rows
    assert [row[0] for row in words.rows] == list(bound.labels)
    names, counts = bound.confusion([gold], [found])
    assert counts[names.index("B-LOC"), names.index("B-PER")] == 1
    assert counts.sum() == 4
    ((text, right, wrong, _),) = bound.mistakes([gold], [found])
    assert (text, right, wrong) == ("ada lee saw rome", "ada lee (PER), rome (LOC)", "ada lee (PER), rome (PER)")


def test_types_are_reported_in_both_readings():
    """An I- that begins is an entity to conlleval, and none to the strict reading, which its support shows."""
    gold = sentence_of("ada/B-PER saw/O lee/I-PER in/O rome/B-LOC")
    found = predicted(gold, "B-PER O B-PER O B-LOC")
    types, strict, _ = bind(wordpiece()).tables([gold], [found])
    assert [one.title for one in (types, strict)] == [
        "Whole entities, by type (conlleval)",
        "Whole entities, by type (strict)",
    ]
    whole = ["1.000", "1.000", "1.000"]
    assert types.rows == [["LOC", *whole, "1"], ["PER", *whole, "2"], ["all", *whole, "3"]]
    assert strict.rows == [
        ["LOC", *whole, "1"],
        ["PER", "0.500", "1.000", "0.667", "1"],
        ["all", "0.667", "1.000", "0.800", "2"],
    ]


# The model.

SENTENCES = [
    "ada/B-PER slept/O",
    "she/O saw/O new/B-LOC york/I-LOC today/O",
    "lee/B-PER",
    "rome/B-LOC and/O oslo/B-LOC are/O far/O apart/O",
]


def test_the_loss_is_torch_cross_entropy_over_first_pieces():
    bound = bind(wordpiece("new", "saw"))
    params = parameters_of(bound)
    features = bound.features([sentence_of(one) for one in SENTENCES])
    batch = placed(features).arrays
    assert batch["input_ids"].shape[0] < len(features)
    logits = jax.jit(lambda params, batch: bound.apply(params, batch, None))(params, batch)
    targets = np.where(batch["tag_weight"] > 0, batch["tag"], -100)
    assert (targets != -100).sum() == sum(len(one.split()) for one in SENTENCES)
    flat = torch.tensor(np.asarray(logits).reshape(-1, len(bound.labels)))
    expected = torch.nn.CrossEntropyLoss(ignore_index=-100)(flat, torch.tensor(targets.reshape(-1)).long())
    sums = jax.jit(lambda params, batch: bound.forward(params, batch, None))(params, batch)
    total, weight = sums["tag_loss"]
    assert float(total / weight) == pytest.approx(expected.item(), rel=1e-5)
    assert expected.item() > 0.5
    assert float(bound.weights(batch)["tag_loss"]) == float(weight) == (targets != -100).sum()
    right = (np.asarray(logits).argmax(-1) == targets).sum()
    assert float(sums["accuracy"][0]) == right


def test_sentences_that_share_a_row_are_tagged_as_if_alone():
    bound = bind(wordpiece())
    params = parameters_of(bound)
    features = bound.features([sentence_of(one) for one in SENTENCES])
    together = outputs_of(bound, params, features)
    for feature, found in zip(features, together, strict=True):
        (alone,) = outputs_of(bound, params, [feature])
        np.testing.assert_allclose(found["log_probabilities"], alone["log_probabilities"], atol=1e-5)
        np.testing.assert_allclose(np.exp(found["log_probabilities"]).sum(-1), 1, atol=1e-5)


ODD = "have an entity that is no run of whole words, or overlaps another one: it counts as right, and cannot be found"


@pytest.mark.parametrize(
    ("found", "odd"),
    [
        ([], False),
        ([[0, 3, "PER"], [8, 13, "LOC"]], False),
        # Within a word; with a space at its end; one in the other; the same place twice.
        ([[0, 2, "PER"]], True),
        ([[0, 4, "PER"]], True),
        ([[0, 7, "PER"], [4, 7, "LOC"]], True),
        ([[0, 3, "PER"], [0, 3, "LOC"]], True),
    ],
)
def test_entities_that_no_tags_can_say_are_odd(found: list, odd: bool):
    task = Tagging(TaggingConfig())
    assert list(task.oddities(spanned("Ada saw Paris", found))) == [ODD] * odd


def test_tags_that_are_none_of_iob2_are_odd():
    odd = Tagging(TaggingConfig()).oddities(sentence_of("EU/I-ORG says/O"))
    assert ["task.scheme iob1" in one for one in odd] == [True]
    assert not [*Tagging(TaggingConfig(scheme="iob1")).oddities(sentence_of("EU/I-ORG says/O", scheme="iob1"))]


def test_tags_of_a_file_are_never_odd():
    for scheme, columns in (("iob1", "a/I-x b/B-x c/I-y"), ("bioes", "a/I-x b/E-x"), ("words", "a/B-x b/N")):
        task = Tagging(TaggingConfig(scheme=scheme))
        assert list(task.oddities(sentence_of(columns, scheme=scheme))) == []


@pytest.mark.parametrize("scheme", ["iob1", "iob2", "bioes"])
def test_the_model_may_tag_otherwise_than_its_files(scheme):
    columns = {"iob1": "a/I-x b/I-x c/O", "iob2": "a/B-x b/I-x c/O", "bioes": "a/B-x b/E-x c/O"}[scheme]
    for tags, expected in (("iob2", ("B-x", "I-x", "O")), ("bioes", ("B-x", "E-x", "O"))):
        sentence = sentence_of(columns, scheme=scheme, tags=tags)
        assert sentence.tags == expected
        bound = bind(wordpiece("a", "b", "c"), labels=("x",), scheme=scheme, tags=tags)
        assert len(bound.labels) == (5 if tags == "bioes" else 3)
        features = bound.features([sentence])
        (found,) = bound.decode([sentence], features, perfect(bound, [sentence], features))
        assert (found.tags, found.entities) == (expected, ((0, 3, "x"),))


def test_a_word_that_is_nothing_to_the_tokenizer_is_outside_whatever_number_that_has():
    bound = BoundTagging(TaggingConfig(), ("B-LOC", "I-LOC", "O"), encoder_of(wordpiece()))
    sentence = Tagging(TaggingConfig()).parse(Record({"columns": [["paris", "B-LOC"], ["\u200b", "O"]]}, "a.conll:1"))
    features = bound.features([sentence])
    (found,) = bound.decode([sentence], features, perfect(bound, [sentence], features))
    assert found.tags == ("B-LOC", "O")
