"""Both kinds of tokenisers, against the libraries called directly and against each other; what is no tokeniser."""

import gzip
import hashlib
import io
import json
import shutil

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import shared_file
from small_tokenizer import write_small_tokenizer

from mmbert_jax.data.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, load_tokenizer
from mmbert_jax.errors import UserError

PLAIN = (
    "",
    " ",
    "a",
    " a",
    "a ",
    "  leading and trailing  ",
    "tab\tand\nnew\r\nlines\n\n\n",
    "digits 0123456789 and 3.14, 10,000",
    "▁ is a space to sentencepiece",
    "non-breaking\u00a0and ideographic\u3000spaces\u2003\u200b\ufeff",
    "e\u0301 is not é, nor ﬁ fi",
    "👩‍👩‍👧‍👦🏳️‍🌈🇺🇳",
    "\U0010ffff\ue000\x00\x01\x7f",
    "<pad><eos><bos><unk></s>[MASK]",
    "<eos> in a text is letters",
    "<0x41> too",
    "𐎀𐎁𓀀𒀀 and ᚠᚢᚦ",
    "x" * 3000,
    " " * 3000,
)


@pytest.fixture(scope="module")
def both(trained):
    return SentencePieceTokenizer(trained / "tokenizer.model"), HuggingFaceTokenizer(
        trained / "tokenizer.json"
    )


@pytest.fixture(scope="module")
def bare(trained):
    """The two libraries without this project's wrapping."""
    return (
        sentencepiece.SentencePieceProcessor(model_file=str(trained / "tokenizer.model")),
        tokenizers.Tokenizer.from_file(str(trained / "tokenizer.json")),
    )


@pytest.fixture(scope="module")
def declarations():
    """Two sections of every language's declaration."""
    sections: dict[str, list[str]] = {}
    with gzip.open(shared_file("udhr.jsonl.gz"), "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            of_language = sections.setdefault(record["language"], [])
            if len(of_language) < 2:
                of_language.append(record["text"])
    return sections


# --- the same ids ---


def test_model_and_its_export_agree_on_every_declaration(both, bare, declarations):
    assert len(declarations) > 400
    texts = [text for of_language in declarations.values() for text in of_language]
    expected = bare[0].encode(texts)
    assert both[0].encode_batch(texts) == expected
    assert both[1].encode_batch(texts) == expected
    ids = [encoding.ids for encoding in bare[1].encode_batch(texts, add_special_tokens=False)]
    assert ids == expected
    # The comparison is worth something: many scripts, and bytes where the vocabulary has no piece.
    assert any(5 <= i < 261 for ids in expected for i in ids)
    assert not any(3 in ids for ids in expected)


def test_space_runs_agree(both, bare, declarations):
    for language in sorted(declarations)[::10]:
        text = declarations[language][0]
        for spaced in (text.replace(" ", "   "), f"  {text} \n ", text.replace(" ", " \t ")):
            expected = bare[0].encode(spaced)
            assert both[0].encode(spaced) == expected
            assert both[1].encode(spaced) == expected


@pytest.mark.parametrize("text", PLAIN, ids=[repr(text[:12]) for text in PLAIN])
def test_edge_cases_agree_and_come_back(both, bare, text):
    expected = bare[0].encode(text)
    for tokenizer in both:
        assert tokenizer.encode(text) == expected
        assert tokenizer.decode(expected) == text.replace("▁", " ")
    assert not set(expected) & {0, 1, 2, 3, 4}


@settings(max_examples=150)
@given(text=st.text(max_size=40))
def test_any_text_agrees_and_comes_back(trained, both, bare, text):
    for tokenizer in both:
        ids = tokenizer.encode(text)
        if "<mask>" not in text:
            assert ids == bare[0].encode(text)
        assert tokenizer.decode(ids) == text.replace("▁", " ")


def test_characters_without_a_piece_become_their_bytes(both):
    # Byte pieces stand at 5 to 260, right behind the special tokens.
    for tokenizer in both:
        assert tokenizer.encode("ᚠ") == [5 + byte for byte in "ᚠ".encode()]


# --- the mask ---

MASKED = {
    "a <mask>": ("a", ""),
    "a<mask> b": ("a", " b"),
    "a   <mask>b": ("a", "b"),
    "a\n<mask>\n": ("a", "\n"),
    "a\u3000<mask>": ("a", ""),
    "a\u0085<mask>": ("a", ""),
    # Not white space to Unicode, though Python strips them.
    "a\x1c<mask>": ("a\x1c", ""),
    "a \x1f<mask>": ("a \x1f", ""),
    "<mask>": ("", ""),
    " <mask> the end": ("", " the end"),
}


@pytest.mark.parametrize("text", MASKED, ids=[repr(text) for text in MASKED])
def test_mask_is_one_token_and_takes_the_space_on_its_left(both, bare, text):
    left, right = MASKED[text]
    expected = [*bare[0].encode(left), 4, *bare[0].encode(right)]
    for tokenizer in both:
        assert tokenizer.encode(text) == expected


def test_several_masks_in_a_batch(both, bare):
    expected = [4, 4, *bare[0].encode(" x"), 4]
    for tokenizer in both:
        assert tokenizer.encode_batch(["no", "<mask> <mask> x <mask>"]) == [
            bare[0].encode("no"),
            expected,
        ]


@pytest.mark.parametrize(
    "code_point", [*range(1, 0x30), *range(0x80, 0xA1), 0x1680, 0x180E, 0x2028]
)
def test_white_space_before_a_mask_agrees(both, code_point):
    text = f"a{chr(code_point)}<mask>"
    assert both[0].encode(text) == both[1].encode(text)


# --- what a tokeniser says of itself ---


def test_vocabulary_size_hash_and_files(trained, both, bare):
    for tokenizer, name in zip(both, ("tokenizer.model", "tokenizer.json"), strict=True):
        assert tokenizer.vocab_size == 2000 == bare[0].get_piece_size()
        assert tokenizer.sha256 == hashlib.sha256((trained / name).read_bytes()).hexdigest()
        assert tokenizer.files() == [trained / name]


def test_special_tokens_decode_to_nothing(both, bare):
    ids = bare[0].encode("words here")
    for tokenizer in both:
        assert tokenizer.decode([2, *ids, 1, 0, 0]) == "words here"


# --- finding one ---


def test_a_folder_with_both_gives_tokenizer_json(trained):
    assert isinstance(load_tokenizer(trained), HuggingFaceTokenizer)
    assert isinstance(load_tokenizer(str(trained / "tokenizer.model")), SentencePieceTokenizer)


def test_a_folder_with_one_model_gives_it(trained, tmp_path):
    shutil.copy(trained / "tokenizer.model", tmp_path / "gemma.model")
    assert load_tokenizer(tmp_path).path == tmp_path / "gemma.model"


def test_several_models_are_named(trained, tmp_path):
    for name in ("a.model", "b.model"):
        shutil.copy(trained / "tokenizer.model", tmp_path / name)
    with pytest.raises(UserError, match=r"several sentencepiece models \(a.model, b.model\); name"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "neither tokenizer.json nor a *.model here; make one with tools/train_tokenizer.py"),
        ("absent", "no such tokeniser; make one with tools/train_tokenizer.py"),
        ("absent.model", "no such tokeniser; make one with tools/train_tokenizer.py"),
        ("vocab.txt", "not a tokeniser: expected a *.model or a tokenizer.json"),
    ],
)
def test_nothing_there(tmp_path, name, message):
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name}: {message}"


@pytest.mark.parametrize("content", [b"", b"words", b"\x00\xff" * 50, b"{}", b"[1]", b'{"a": '])
@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_a_file_that_is_no_tokeniser(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{tmp_path}/{name}: not a "):
        load_tokenizer(tmp_path)


def test_a_truncated_tokenizer_json(tmp_path):
    file = write_small_tokenizer(tmp_path / "small") / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(UserError, match="tokenizer.json: not a tokenizer.json"):
        load_tokenizer(tmp_path / "small")


def test_other_special_ids_in_a_tokenizer_json(tmp_path):
    file = write_small_tokenizer(tmp_path / "small") / "tokenizer.json"
    text = file.read_text().replace("<bos>", "<s>")
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path / "small")
    assert str(caught.value).startswith(
        f"{file}: no token is known for bos (cls_token, bos_token); "
        "ids 0 to 4 are <pad>, <eos>, <s>, <unk>, <mask>. Name the tokens in a tokenizer_config.json"
    )


@pytest.mark.parametrize("options", [{}, {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}])
def test_other_special_ids_in_a_sentencepiece_model(tmp_path, options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words to train on, and some more of them"] * 9),
        model_writer=model,
        model_type="bpe",
        vocab_size=40,
        minloglevel=2,
        **options,
    )
    (tmp_path / "other.model").write_bytes(model.getvalue())
    with pytest.raises(
        UserError, match="ids 0 to 4 are .*, but a sentencepiece model needs <pad>, <eos>"
    ):
        load_tokenizer(tmp_path)


# --- ids that a model has no row for, and special tokens that a text can spell ---

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]


def changed(folder, change):
    """A small tokenizer.json with something else in it."""
    file = write_small_tokenizer(folder) / "tokenizer.json"
    description = json.loads(file.read_text())
    change(description)
    file.write_text(json.dumps(description))
    return folder


def test_ids_with_a_hole(tmp_path):
    folder = changed(tmp_path / "t", lambda d: d["model"]["vocab"].update(Z=600))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("Z") == [600]
    assert tokenizer.vocab_size == 601


def test_an_added_token_beyond_the_vocabulary_counts(tmp_path):
    token = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    added = token | {"id": 324, "content": "[new]"}
    folder = changed(tmp_path / "t", lambda d: d["added_tokens"].append(added))
    assert load_tokenizer(folder).encode("[new]") == [324]
    assert load_tokenizer(folder).vocab_size == 325


def ignore_merges(d):
    d["model"]["ignore_merges"] = True


def ignore_merges_of_words(d):
    ignore_merges(d)
    d |= {"normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}}


def word_level(d):
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, "the", "end"])}
    d["model"] = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    d |= {"normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": None}


def word_piece(d):
    word_level(d)
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, "the", "<", "##eos", "##>"])}
    d["model"] = {"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##"}
    d["model"] |= {"max_input_chars_per_word": 100, "vocab": vocabulary}


@pytest.mark.parametrize("change", [ignore_merges, ignore_merges_of_words, word_level, word_piece])
def test_a_tokeniser_that_takes_letters_for_special_tokens_is_refused(tmp_path, change):
    with pytest.raises(UserError, match="the letters <.*> in a text become the special token"):
        load_tokenizer(changed(tmp_path / "t", change))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_sentencepiece_takes_them_for_letters(tmp_path, kind):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the end < eos > p a d is the end of an island"] * 50),
        model_writer=model,
        model_type=kind,
        vocab_size=285,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        user_defined_symbols=["<mask>"],
        **{f"{name}_id": i for i, name in enumerate(("pad", "eos", "bos", "unk"))},
        **{f"{name}_piece": f"<{name}>" for name in ("pad", "eos", "bos", "unk")},
        minloglevel=2,
    )
    (tmp_path / "t.model").write_bytes(model.getvalue())
    assert min(load_tokenizer(tmp_path).encode("the <eos> end<pad> is <bos>")) > 4


def test_a_byte_order_mark_before_a_tokenizer_json(tmp_path):
    file = write_small_tokenizer(tmp_path / "t") / "tokenizer.json"
    plain = load_tokenizer(tmp_path / "t").encode("the end")
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_tokenizer(tmp_path / "t").encode("the end") == plain


@pytest.mark.parametrize("store", ["gs_bucket", "s3_bucket"])
def test_a_tokeniser_in_a_bucket(request, store, trained, both):
    from etils import epath

    folder = epath.Path(request.getfixturevalue(store)) / "tokenizer"
    for name in ("tokenizer.model", "tokenizer.json"):
        (folder / name).write_bytes((trained / name).read_bytes())
    for tokenizer, name in zip(both, ("tokenizer.model", "tokenizer.json"), strict=True):
        found = load_tokenizer(f"{folder}/{name}")
        assert (found.sha256, found.vocab_size) == (tokenizer.sha256, tokenizer.vocab_size)
        assert found.encode("the end") == tokenizer.encode("the end")
    assert load_tokenizer(folder).path == folder / "tokenizer.json"
    with pytest.raises(UserError, match="absent: no such tokeniser"):
        load_tokenizer(f"{folder}/absent")
