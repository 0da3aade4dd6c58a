"""The recipe's five mixes through the code that training uses: against the published tokens, and sampled."""

import gzip
import json

import numpy as np
import pytest
from scipy.stats import chisquare
from shared_data import shared_file

from mmbert_jax.config_file import load
from mmbert_jax.data import corpus
from mmbert_jax.data.order import BLOCK, RowOrder
from mmbert_jax.data.pipeline import documents_of, open_data, records_of
from mmbert_jax.recipe.languages import CODE, ENGLISH
from mmbert_jax.report.counts import compare, read_counts
from mmbert_jax.report.mixtures import sizes_mixture

# English and code as large as their sources are; how large makes no difference, since their shares are the config's.
APART = {ENGLISH: 3e12, CODE: 3e11}


def published(column):
    return f"{shared_file('mmbert_tokens_per_language.csv')}:{column}"


def of_fineweb2():
    """Tokens of each language, 2.4 a word."""
    return {
        language: 2.4 * words
        for language, words in read_counts(f"{shared_file('fineweb2_languages.csv')}:words").items()
    }


def config_of(phase, **sources):
    """A published phase, all of its text by languages in one corpus; `sources` replace it shares, 0 takes one out."""
    config = load(f"configs/{phase}.py")
    with config.data.unlocked():
        for name, share in sources.items():
            if share:
                config.data.sources[name].share = share
            else:
                del config.data.sources[name]
    return config


def apart_from_english_and_code(mixture):
    shares = {}
    for entry in mixture.entries:
        if entry.language not in APART:
            shares[entry.language] = shares.get(entry.language, 0.0) + entry.share
    return shares


@pytest.mark.parametrize(
    ("phase", "column", "without", "languages", "distance"),
    [
        ("phase1", "pretrain", {}, 59, 0.085),
        ("phase2", "ext", {}, 108, 0.055),
        # Temperature acts on FineWeb2, so the published figures are held against that alone ...
        ("decay_110", "decay-mid", {"megawika": 0}, 108, 0.05),
        ("decay_english", "decay-eng", {"megawika": 0}, 108, 0.05),
        # ... and with MegaWika, which has a tenth of the tokens in half of the languages and sizes of its own.
        ("decay_110", "decay-mid", {}, 108, 0.06),
        ("decay_english", "decay-eng", {}, 108, 0.065),
        ("decay_all", "decay-all", {}, 1800, 0.08),
    ],
)
def test_shares_over_fineweb2_s_sizes(phase, column, without, languages, distance):
    config = config_of(phase, **without)
    mixture = sizes_mixture(config, of_fineweb2() | APART)
    found = compare(apart_from_english_and_code(mixture), published(column))
    assert len(found.languages) == languages
    assert found.total_variation <= distance
    assert max(entry.passes for entry in mixture.entries) <= config.data.max_passes * (1 + 1e-6)


def test_sizes_implied_by_phase_1_give_phase_2():
    """Phase 1's tokens to the power of 1/0.7 are the sizes that they used: phase 2 follows within half a percent.

    Languages that phase 2 adds have no such size, so FineWeb2 gives up their published part.
    """
    tokens, later = read_counts(published("pretrain")), read_counts(published("ext"))
    implied = {x: of ** (1 / 0.7) for x, of in tokens.items() if x not in APART}
    scale = 8e12 / sum(implied.values())
    sources = load("configs/phase2.py").data.sources
    here = sum(later[x] for x in sources.fineweb2.languages if x in implied)
    part = here / sum(later[x] for x in sources.fineweb2.languages)
    config = config_of("phase2", fineweb2=sources.fineweb2.share * part)
    mixture = sizes_mixture(config, {x: scale * of for x, of in implied.items()} | APART)
    found = compare(apart_from_english_and_code(mixture), published("ext"))
    assert len(found.languages) == 59
    assert found.total_variation <= 0.005


@pytest.mark.parametrize("phase", ["phase1", "phase2", "decay_all"])
def test_ten_million_sampled_rows_keep_to_the_shares(phase):
    """Rows that the order gives, language by language: no farther from the shares than random draws would be."""
    mixture = sizes_mixture(config_of(phase), of_fineweb2() | APART)
    shares = np.array([entry.share for entry in mixture.entries])
    order = RowOrder(shares, [entry.rows for entry in mixture.entries], seed=21)
    blocks = -(-10_000_000 // order.block)
    given = order.given(blocks)
    assert given.sum() == blocks * order.block >= 10_000_000
    expected = shares / shares.sum() * given.sum()
    assert chisquare(given, expected).pvalue > 0.99
    assert (given[expected >= 1] > 0).all()


@pytest.fixture(scope="module")
def real_text(tmp_path_factory, run_tool, trained):
    """(texts by language, corpus) of an eighth of the help pages in 30 languages."""
    folder = tmp_path_factory.mktemp("help")
    texts: dict[str, list[str]] = {}
    with (
        gzip.open(shared_file("help.jsonl.gz"), "rt", encoding="utf-8") as lines,
        (folder / "help.jsonl").open("w", encoding="utf-8") as file,
    ):
        for line in list(lines)[::8]:
            record = json.loads(line)
            texts.setdefault(record["language"], []).append(record["text"])
            file.write(line)
    done = run_tool(
        *("prepare_corpus", "--input", folder / "help.jsonl", "--row_length", 1024),
        *(
            "--tokenizer",
            trained / "tokenizer.model",
            "--workers",
            1,
            "--output",
            folder / "corpus",
        ),
    )
    assert done.returncode == 0, done.stderr
    return texts, folder / "corpus"


def test_tokens_in_are_tokens_out_and_what_was_dropped(real_text, trained):
    """Every document's tokens and its <eos> are in some row, but for the empty documents, which are counted."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = sentencepiece.SentencePieceProcessor(model_file=str(trained / "tokenizer.model"))
    texts, folder = real_text
    manifest = corpus.read_manifest(folder)
    lengths = [len(ids) for of in texts.values() for ids in model.encode(of, num_threads=2)]
    empty = sum(length == 0 for length in lengths)
    assert manifest["empty_documents"] == empty
    out = 0
    for split in corpus.SPLITS:
        rows = corpus.rows_source(folder, manifest, 1024, split)
        for record in rows.__getitems__(range(len(rows))):
            tokens, ends, _ = corpus.decode_row(record)
            assert len(tokens) <= 1024
            out += len(tokens) - len(ends)  # every piece begins with a <bos> of its own
    assert out == sum(lengths) + len(lengths) - empty


def test_ten_million_tokens_of_real_text(real_text):
    """Every language comes, with its share; no document comes again before the pass over its language is over.

    A piece of a document lies in one row, so that rows stand for documents.
    """
    _, folder = real_text
    rows = 3 * BLOCK  # whole blocks, in which passes end
    config = {
        "corpus": str(folder),
        "row_length": 1024,
        "temperature": 0.5,
        "max_passes": 100.0,
        "sources": {"all": {"share": 1.0, "languages": ()}},
    }
    data = open_data(config, rows, seed=3)
    assert data.order.block == BLOCK
    origins = documents_of(data, 0, rows)
    tokens: dict[str, int] = {}
    seen: dict[tuple[str, int], set[int]] = {}
    blocks: dict[tuple[str, int], list[int]] = {}
    for number, (origin, record) in enumerate(zip(origins, records_of(data, 0, rows), strict=True)):
        tokens[origin.language] = tokens.get(origin.language, 0) + len(corpus.decode_row(record)[0])
        key = origin.language, origin.pass_number
        assert origin.row not in seen.setdefault(key, set())
        seen[key].add(origin.row)
        blocks.setdefault(key, []).append(number // data.order.block)
    shares = {entry.language: entry.share for entry in data.mixture.entries}
    assert tokens.keys() == shares.keys() == set(real_text[0])
    assert sum(tokens.values()) >= 10_000_000
    counts = [sum(o.language == language for o in origins) for language in shares]
    assert chisquare(counts, np.array(list(shares.values())) * rows).pvalue > 0.99
    of_language = {entry.language: entry.rows for entry in data.mixture.entries}
    assert max(number for _, number in seen) >= 2
    for (language, number), of_pass in seen.items():
        # A pass that another has followed was whole, and they share no more than the block that one ends in.
        if (language, number + 1) in seen:
            assert len(of_pass) == of_language[language]
            assert max(blocks[language, number]) <= min(blocks[language, number + 1])
