"""Where each source of the published phases is to be had, how its files lie, in which columns, under which licence.

Plain data, as the data sets' pages on the Hugging Face hub had it in November 2026; docs/data.md is made from it. What
was not found there says so. The published cards name the sources and their tokens (sources.py), not the releases they
were taken from: where a release is inferred from the name alone, the remark says that too.
"""

from typing import NamedTuple

UNKNOWN = "not found"

# The 20 languages of FineWeb2-HQ, by the names of its folders.
FINEWEB2_HQ = tuple(
    "arb ces cmn dan deu ell fas fra hun ind ita jpn nld pol por rus spa swe tur vie".split()
)


class Corpus(NamedTuple):
    """A public data set, or a part of one.

    Attributes:
      title: what it is.
      hub: its name among the data sets of huggingface.co.
      files: pattern of its files there; `{language}` stands for the folder of a language.
      text: the column of the text.
      language: where the language stands: a column, "folder", or the code that all of it has.
      licence: SPDX-like, as the hub has it.
      remark: what else has to be known; may be empty.
    """

    title: str
    hub: str
    files: str
    text: str
    language: str
    licence: str
    remark: str = ""


_DOLMA = "allenai/dolma"
_DOLMINO = "allenai/dolmino-mix-1124"
_PROLONG = "princeton-nlp/prolong-data-64K"
_BY_NAME = "release inferred from the name; its files are listed in urls/v1_7.txt, their folders were not looked at"
_FILES_NOT_SEEN = "names of the files were not looked at"
_PROLONG_REMARK = (
    "MDS with `input_ids` of Llama 3's tokeniser and `indices` of the documents, no text: prepare it with"
    " `--tokens_of`, naming that tokeniser's `tokenizer.json`"
)

# Source, as sources.py names it -> where it comes from.
CORPORA = {
    "fineweb2": Corpus(
        "FineWeb2, the web in 1,800 languages without English",
        "HuggingFaceFW/fineweb-2",
        "data/{language}/train/*.parquet",
        "text",
        "folder",
        "odc-by",
        "folders are `deu_Latn`; `deu_Latn_removed` is not to be read; the columns `language` and `language_script`"
        " make up the folder's name",
    ),
    "fineweb2_hq": Corpus(
        "FineWeb2-HQ, the best tenth of FineWeb2 in 20 languages",
        "epfml/FineWeb2-HQ",
        "{language}/*.parquet",
        "text",
        "folder",
        "odc-by",
        "in FineWeb2's place in phase 2 (the cards of the decay phases do not name it); its rows have embeddings, so"
        " only the columns that are needed should be read",
    ),
    "dclm": Corpus(
        "DCLM-Baseline, English web",
        "mlfoundations/dclm-baseline-1.0-parquet",
        "**/*.parquet",
        "text",
        "eng",
        "cc-by-4.0",
        _FILES_NOT_SEEN,
    ),
    "dclm_dolmino": Corpus(
        "DCLM as Dolmino filters it",
        _DOLMINO,
        "data/dclm/*/dclm-*.json.zst",
        "text",
        "eng",
        "odc-by",
    ),
    "megawika": Corpus(
        "MegaWika 2, Wikipedia in 50 languages",
        "jhu-clsp/megawika-2",
        "{language}/*.jsonl",
        "text",
        "folder",
        UNKNOWN,
        "a JSON object per article, languages by ISO 639-1; the hub states no licence (MegaWika 1: cc-by-sa-4.0);"
        f" {_FILES_NOT_SEEN}",
    ),
    "starcoder": Corpus(
        "StarCoder, program code, as in Dolma 1.7",
        _DOLMA,
        "starcoder/starcoder-*.json.gz",
        "text",
        "code",
        "odc-by",
        _BY_NAME,
    ),
    "arxiv": Corpus(
        "arXiv, as in Dolma 1.7",
        _DOLMA,
        "arxiv/arxiv-*.json.gz",
        "text",
        "eng",
        "odc-by",
        _BY_NAME,
    ),
    "stackexchange": Corpus(
        "StackExchange, as in Dolma 1.7",
        _DOLMA,
        "stackexchange/stackexchange-*.json.gz",
        "text",
        "eng",
        "odc-by",
        _BY_NAME,
    ),
    "stackexchange_dolmino": Corpus(
        "StackExchange, as Dolmino filters it",
        _DOLMINO,
        "data/stackexchange/**/*.json*",
        "text",
        "eng",
        "odc-by",
        _FILES_NOT_SEEN,
    ),
    "tulu_flan": Corpus(
        "Flan, as Tulu has it, of Dolma 1.7",
        _DOLMA,
        "tulu_flan/tulu_flan-*.json.gz",
        "text",
        "eng",
        "odc-by",
        _BY_NAME,
    ),
    "dolmino_math": Corpus(
        "mathematics of Dolmino",
        _DOLMINO,
        "data/math/**/*.json*",
        "text",
        "eng",
        "odc-by",
        _FILES_NOT_SEEN,
    ),
    "pes2o": Corpus(
        "peS2o, scientific papers",
        _DOLMINO,
        "data/pes2o/**/*.json*",
        "text",
        "eng",
        "odc-by",
        f"Dolma 1.7 has it too, and the cards do not say which was taken; {_FILES_NOT_SEEN}",
    ),
    "books": Corpus(
        "books of Project Gutenberg, as in Dolma 1.7",
        _DOLMA,
        "books/books-*.json.gz",
        "text",
        "eng",
        "odc-by",
        _BY_NAME,
    ),
    "wikipedia": Corpus(
        "Wikipedia of Dolmino",
        _DOLMINO,
        "data/wiki/**/*.json*",
        "text",
        "eng",
        "odc-by",
        f"the card names Wikipedia without its languages or its origin: both are inferred; {_FILES_NOT_SEEN}",
    ),
    "prolong_textbooks": Corpus(
        "textbooks of ProLong",
        _PROLONG,
        "textbooks/*/shard.*.mds",
        "input_ids",
        "eng",
        UNKNOWN,
        _PROLONG_REMARK,
    ),
    "prolong_code": Corpus(
        "repositories of The Stack, of ProLong",
        _PROLONG,
        "thestackv1_concat_by_repo-65536/*/shard.*.mds",
        "input_ids",
        "code",
        UNKNOWN,
        _PROLONG_REMARK,
    ),
}

# All of a phase as mmBERT was trained on it: MDS, `input_ids` of Gemma 2's tokeniser, without text; licence mit.
TOKENISED = {
    "phase1": (
        "jhu-clsp/mmBERT-pretrain-p1-fineweb2-langs",
        "jhu-clsp/mmBERT-pretrain-p3-others",
        f"its second part: {UNKNOWN}",
    ),
    "phase2": ("jhu-clsp/mmBERT-midtraining-data",),
    "decay": ("jhu-clsp/mmBERT-decay-data",),
}
