"""The Predictor beside transformers on the same weights, on random models of each kind."""

import pathlib
import shutil
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from made_predictors import POSITIONS, SENTENCES, WORDS, write_model

from jaxbert.predict import programs
from jaxbert.predict.predictor import Predictor
from jaxbert.predict.texts import PredictError
from jaxbert.weights.embedder import Embedder, write_embedder
from jaxbert.weights.load import load

LONG = " ".join(WORDS * 12)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_model(tmp_path_factory.mktemp("bert"), "bert", "BertForPreTraining")


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_model(tmp_path_factory.mktemp("roberta"), "roberta", "RobertaForMaskedLM")


def assert_same_candidates(ours: list, theirs: list):
    """Candidates as lists, or lists of lists for several masks."""
    if isinstance(theirs[0], list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same_candidates(one, other)
        return
    assert [c["token"] for c in ours] == [c["token"] for c in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert {k: v for k, v in one.items() if k != "score"} == {k: v for k, v in other.items() if k != "score"}


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("top_k", [1, 5, 20])
def test_fill_mask_is_the_pipelines(family: str, top_k: int, request: pytest.FixtureRequest):
    folder = request.getfixturevalue(family)
    ours = load(folder).predictor("fill-mask")
    theirs = transformers.pipeline("fill-mask", str(folder))
    mask = "[MASK]" if family == "bert" else "<mask>"
    texts = [
        f"the cat sat on the {mask}.",
        f"{mask} big dog runs",
        f"a {mask} sees the {mask} house",
        f"{mask}{mask} {mask}",
    ]
    for text in texts:
        assert_same_candidates(ours.fill_mask(text, top_k), theirs(text, top_k=top_k))
    # A list gives what its texts give one by one.
    together = ours.fill_mask(texts, top_k)
    for text, found in zip(texts, together, strict=True):
        assert_same_candidates(found, ours.fill_mask(text, top_k))


def test_next_sentence_is_torchs(bert: pathlib.Path):
    predictor = load(bert).predictor("next-sentence")
    model = transformers.BertForNextSentencePrediction.from_pretrained(bert).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    first, second = SENTENCES[:40], SENTENCES[20:60]
    with torch.no_grad():
        logits = model(**tokenizer(first, second, padding=True, return_tensors="pt")).logits
    expected = torch.softmax(logits, -1)[:, 0].numpy()
    assert expected.std() > 0.01
    np.testing.assert_allclose(predictor.next_sentence(first, second), expected, atol=1e-5)
    assert predictor.next_sentence(first[3], second[3]) == pytest.approx(expected[3], abs=1e-5)


def torch_embeddings(folder: pathlib.Path, texts: list[str], pooling: str, length: int = POSITIONS) -> np.ndarray:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state.numpy()
    mask = inputs["attention_mask"].numpy()[..., None]
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "mean":
        return (hidden * mask).sum(1) / mask.sum(1)
    return np.where(mask, hidden, -np.inf).max(1)


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_embeddings_are_torchs_in_their_order(family: str, pooling: str, request: pytest.FixtureRequest):
    folder = request.getfixturevalue(family)
    predictor = load(folder).predictor("embed")
    texts = [*SENTENCES[:50], "", " ".join(WORDS * 2), "a"]
    expected = torch_embeddings(folder, texts, pooling)
    found = predictor.embed(texts, pooling)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(predictor.embed(texts[7], pooling), expected[7], atol=1e-5)
    scaled = predictor.embed(texts, pooling, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(scaled * np.linalg.norm(expected, axis=1)[:, None], expected, atol=1e-4)


def test_the_type_that_is_computed_in_may_be_chosen(bert: pathlib.Path):
    """Vectors stay float32, and are off by what bfloat16 rounds."""
    wide, narrow = (
        load(bert).predictor("embed", dtype=dtype).embed(SENTENCES[:20]) for dtype in ("float32", "bfloat16")
    )
    assert wide.dtype == narrow.dtype == np.float32
    off = np.linalg.norm(narrow - wide, axis=1) / np.linalg.norm(wide, axis=1)
    assert np.all((off > 1e-4) & (off < 3e-2)), off


def test_a_text_does_not_depend_on_its_company(bert: pathlib.Path):
    predictor = load(bert).predictor("embed", tokens_per_batch=512)
    alone = np.stack([predictor.embed(text) for text in SENTENCES[:20]])
    np.testing.assert_allclose(predictor.embed(SENTENCES)[:20], alone, atol=1e-5)
    np.testing.assert_allclose(predictor.embed(SENTENCES[::-1])[::-1][:20], alone, atol=1e-5)


def test_a_stream_of_texts_compiles_a_handful_of_programs(bert: pathlib.Path):
    predictor = load(bert).predictor("embed", tokens_per_batch=2048)
    programs.pooled.cache_clear()
    rng = np.random.default_rng(0)
    for count in [*range(1, 30), 300]:
        words = rng.integers(1, 45, count)
        predictor.embed([" ".join(rng.choice(WORDS, n)) for n in words], "mean")
    program: Any = programs.pooled(predictor._config, "mean")
    assert 1 < program._cache_size() <= 6


def test_long_texts_are_cut_with_a_warning(bert: pathlib.Path):
    predictor = load(bert).predictor("embed")
    assert predictor.max_length == POSITIONS
    with pytest.warns(UserWarning, match=r"1 of 2 texts are longer than 96 tokens and were cut; long_texts=\"window\""):
        found = predictor.embed([LONG, "a cat"])
    np.testing.assert_allclose(found, torch_embeddings(bert, [LONG, "a cat"], "mean"), atol=1e-5)
    shorter = load(bert).predictor("embed", max_length=20)
    with pytest.warns(UserWarning, match="longer than 20 tokens"):
        found = shorter.embed([LONG])
    np.testing.assert_allclose(found, torch_embeddings(bert, [LONG], "mean", 20), atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_windows_read_a_long_text_whole(bert: pathlib.Path, pooling: str):
    predictor = load(bert).predictor("embed", max_length=32, long_texts="window")
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    windows = tokenizer(
        LONG, truncation=True, max_length=32, stride=7, return_overflowing_tokens=True, add_special_tokens=True
    )["input_ids"]
    assert len(windows) > 5
    with torch.no_grad():
        model = transformers.AutoModel.from_pretrained(bert).eval()
        hidden = [model(torch.tensor([ids])).last_hidden_state[0].numpy() for ids in windows]
    by_window = {
        "cls": lambda h: h[0],
        "mean": lambda h: h.mean(0),
        "max": lambda h: h.max(0),
    }
    vectors = np.stack([by_window[pooling](h) for h in hidden])
    weights = np.array([len(ids) for ids in windows])
    expected = vectors.max(0) if pooling == "max" else (vectors * weights[:, None]).sum(0) / weights.sum()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = predictor.embed(["a cat", LONG, "a dog"], pooling)
    np.testing.assert_allclose(found[1], expected, atol=1e-5)
    np.testing.assert_allclose(found[2], predictor.embed("a dog", pooling), atol=1e-5)


def test_a_mask_is_found_in_the_window_that_shows_most_around_it(bert: pathlib.Path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    words = [word for word in WORDS if len(tokenizer.tokenize(word)) == 1] * 9
    text = f"{' '.join(words[:36])} [MASK] {' '.join(words[:20])}"
    windows = tokenizer(text, truncation=True, max_length=40, stride=9, return_overflowing_tokens=True)["input_ids"]
    mask = tokenizer.mask_token_id
    places = {number: ids.index(mask) for number, ids in enumerate(windows) if mask in ids}
    assert len(places) == 2
    around = {number: min(place, len(windows[number]) - 1 - place) for number, place in places.items()}
    best = max(around, key=lambda number: around[number])
    # Not the first one, which a reader without a choice would take.
    assert best == max(places)
    with torch.no_grad():
        model = transformers.BertForMaskedLM.from_pretrained(bert).eval()
        expected = torch.softmax(model(torch.tensor([windows[best]])).logits[0, places[best]], -1)
    windowed = load(bert).predictor("fill-mask", max_length=40, long_texts="window").fill_mask(text)
    for candidate in windowed:
        assert candidate["score"] == pytest.approx(float(expected[candidate["token"]]), abs=1e-5)
    cut = load(bert).predictor("fill-mask", max_length=40)
    late = f"{' '.join(words[:60])} [MASK]"
    for one in (late, f"[MASK] {late}"):
        with pytest.raises(PredictError, match=r"text 1 has a \[MASK\] behind the 40 tokens that are read of it"):
            cut.fill_mask(["a [MASK]", one])


def test_a_pair_loses_the_end_of_its_longer_text(bert: pathlib.Path):
    predictor = load(bert).predictor("next-sentence", max_length=24)
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    model = transformers.BertForNextSentencePrediction.from_pretrained(bert).eval()
    pairs = [(LONG, "a cat"), ("a cat", LONG), (LONG, LONG), (" ".join(WORDS[:11]), " ".join(WORDS[:12]))]
    for first, second in pairs:
        inputs = tokenizer(first, second, truncation="longest_first", max_length=24, return_tensors="pt")
        with torch.no_grad():
            expected = float(torch.softmax(model(**inputs).logits, -1)[0, 0])
        with pytest.warns(UserWarning, match="were cut"):
            assert predictor.next_sentence(first, second) == pytest.approx(expected, abs=1e-5)


def test_a_window_of_a_pair_is_around_where_its_texts_meet(bert: pathlib.Path):
    predictor = load(bert).predictor("next-sentence", max_length=24, long_texts="window")
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    model = transformers.BertForNextSentencePrediction.from_pretrained(bert).eval()
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (LONG, " ".join(SENTENCES)))
    begin, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert len(second) > len(first) > 24
    ids = [begin, *first[-10:], end, *second[:11], end]
    types = [0] * 12 + [1] * 12
    with torch.no_grad():
        logits = model(torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits
    with pytest.warns(UserWarning, match="were cut"):
        found = predictor.next_sentence(LONG, " ".join(SENTENCES))
    assert found == pytest.approx(float(torch.softmax(logits, -1)[0, 0]), abs=1e-5)


def test_a_pair_of_very_long_texts_costs_what_it_is_long(bert: pathlib.Path):
    # In the square of their length, these would take ten gigabytes.
    text = "the cat " * 20_000
    for long_texts in ("truncate", "window"):
        predictor = load(bert).predictor("next-sentence", max_length=24, long_texts=long_texts)
        with pytest.warns(UserWarning, match="were cut"):
            assert 0 < predictor.next_sentence(text, text) < 1


def test_an_embedders_folder_says_how(bert: pathlib.Path, tmp_path: pathlib.Path):
    """Pooling, prompt, lower-casing and length of a sentence-transformers folder, as that library computes them."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = shutil.copytree(bert, tmp_path / "embedder")
    embedder = Embedder(
        "max",
        normalize=True,
        max_length=20,
        lowercase=True,
        settings={"prompts": {"query": "the dog: ", "document": ""}, "default_prompt_name": "query"},
    )
    write_embedder(folder, 32, embedder, POSITIONS)
    loaded = load(folder)
    assert loaded.embedder == embedder
    texts = [*SENTENCES[:9], "THE CAT", LONG]
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    with pytest.warns(UserWarning, match="longer than 20"):
        found = loaded.predictor("embed").embed(texts)
    np.testing.assert_allclose(found, theirs.encode(texts), atol=1e-5)
    plain = loaded.predictor("embed").embed(texts[:9], prompt="")
    np.testing.assert_allclose(plain, theirs.encode(texts[:9], prompt=""), atol=1e-5)
    assert np.abs(plain - found[:9]).max() > 1e-3
    with pytest.raises(PredictError, match="text 1 is of the type int"):
        loaded.predictor("embed").embed(["a", 3])  # pyright: ignore[reportArgumentType]
    # It reads no more than the model has positions for.
    write_embedder(folder, 32, Embedder("mean", max_length=900), POSITIONS)
    assert load(folder).predictor("embed").max_length == POSITIONS


def test_an_empty_list_gives_an_empty_result(bert: pathlib.Path):
    predictor = load(bert).predictor()
    assert predictor.embed([]).shape == (0, 32)
    assert predictor.fill_mask([]) == []
    assert predictor.next_sentence([], []) == []


def test_what_cannot_be_served_is_said_in_one_line(bert: pathlib.Path, roberta: pathlib.Path, tmp_path: pathlib.Path):
    predictor = load(bert).predictor()
    faults = [
        (lambda: predictor.fill_mask("no mask here"), r"text 0 has no \[MASK\]: put one"),
        (lambda: predictor.fill_mask("a [MASK]", top_k=0), "top_k 0"),
        (lambda: predictor.fill_mask("a [MASK]", top_k=10**6), "top_k 1000000"),
        (lambda: predictor.fill_mask("a [MASK]", top_k=2.5), "top_k 2.5"),  # pyright: ignore[reportArgumentType]
        (lambda: predictor.fill_mask(None), "texts are a str or a list"),  # pyright: ignore[reportArgumentType]
        (lambda: load(bert).predictor(max_length=0), "max_length 0: the model reads 3 to 96"),
        (lambda: predictor.embed(["a", 3]), "text 1 is of the type int"),  # pyright: ignore[reportArgumentType]
        (lambda: predictor.embed(["a\ud800"]), "text 0 has a lone surrogate"),
        (lambda: predictor.embed("a", "sum"), "pooling is 'sum'"),  # pyright: ignore[reportArgumentType]
        (lambda: predictor.next_sentence(["a"], ["b", "c"]), "two lists of the same length"),
        (lambda: predictor.next_sentence("a", ["b"]), "two lists of the same length"),
        (lambda: predictor.next_sentence(1, 2), "texts are a str or a list"),  # pyright: ignore
        (lambda: predictor.embed([("a", "b")]), "text 0 is a pair: embed takes texts"),  # pyright: ignore
        (lambda: load(bert).predictor(max_length="9"), "max_length 9: the model reads"),  # pyright: ignore
        (lambda: load(bert).predictor(dtype="half"), "dtype is 'half': choose one of auto, float32, bfloat16$"),  # pyright: ignore
        (lambda: load(bert).predictor(tokens_per_batch=-5), "tokens_per_batch -5: at least 1"),
        (
            lambda: load(roberta).predictor("next-sentence"),
            "next-sentence needs the head 'pooler', and its heads are: mlm",
        ),
        (lambda: load(bert).predictor("ner"), "there is no task 'ner'"),  # pyright: ignore[reportArgumentType]
        (lambda: load(bert).predictor(max_length=POSITIONS + 1), "max_length 97: the model reads 3 to 96"),
        (lambda: load(bert).predictor(long_texts="cut"), "long_texts is 'cut'"),
    ]
    for call, text in faults:
        with pytest.raises(PredictError, match=text) as caught:
            call()
        assert "\n" not in str(caught.value)
    bare = shutil.copytree(bert, tmp_path / "bare")
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (bare / name).unlink()
    with pytest.raises(PredictError, match="came without a tokenizer"):
        load(bare).predictor()


def test_a_tokenizer_in_files_of_its_own_kind(roberta: pathlib.Path, tmp_path: pathlib.Path):
    """vocab.json and merges.txt, as roberta-base has them, without a tokenizer.json."""
    folder = shutil.copytree(roberta, tmp_path / "old")
    transformers.AutoTokenizer.from_pretrained(roberta).backend_tokenizer.model.save(str(folder))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "RobertaTokenizer"}')
    expected = load(roberta).predictor("embed").embed(SENTENCES[:5])
    found = Predictor(load(folder), "embed").embed(SENTENCES[:5])
    np.testing.assert_allclose(found, expected, atol=1e-6)
