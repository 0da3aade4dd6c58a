"""Cards: valid for the hub, right for the head, true about where a model comes from, and the user's once edited."""

import json
import re

import pytest
from exported_model import run_tool
from test_versions import HEADS as MODELS
from test_versions import meta_of, random_params

from mmbert_jax.checkpoint import read_meta, restore_params, save_params
from mmbert_jax.checksums import sha256
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.hf.export import export_hf
from mmbert_jax.hf.imported import import_meta
from mmbert_jax.hf.load import load_model
from mmbert_jax.hf.model_card import licence_of
from mmbert_jax.merge.merge import merge
from mmbert_jax.merge.models import open_model
from mmbert_jax.merge.output import write_merged
from mmbert_jax.merge.recipe import make_recipe

hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("transformers")

TAGS = {
    "mlm": "fill-mask",
    "encoder": "feature-extraction",
    "classes_mean": "text-classification",
    "tokens": "token-classification",
    "spans": "question-answering",
}


@pytest.fixture(scope="module")
def exported_heads(tmp_path_factory, tokenizer_folder):
    """A folder with an export of each head."""
    folder = tmp_path_factory.mktemp("heads")
    tokenizer = load_tokenizer(tokenizer_folder)
    for name in TAGS:
        head = MODELS[name]
        params = random_params(head, 0)
        export_hf(folder / name, params, meta_of(head), tokenizer, verify=False)
    return folder


@pytest.mark.parametrize("name", TAGS)
def test_is_valid_and_its_example_runs(exported_heads, name, monkeypatch, capsys):
    check_card(exported_heads / name, TAGS[name], monkeypatch, capsys)


def check_card(folder, tag, monkeypatch, capsys) -> None:
    """What the hub's own library reads of a card; and its example prints something."""
    from transformers.pipelines import SUPPORTED_TASKS

    card = hub.ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == tag
    assert tag in SUPPORTED_TASKS or tag == "question-answering"
    assert {"modernbert", "mmbert_jax"} <= set(card.data.tags)
    assert not re.search(r"[{}]", card.text.replace("{tokenizer.mask_token}", "")), card.text
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    monkeypatch.chdir(folder.parent)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out  # an answer may be empty, its line is there


@pytest.mark.parametrize("name", ["classes_mean", "spans"])
def test_of_a_merged_folder(exported_heads, name, tmp_path, monkeypatch, capsys):
    for copy in ("a", "b"):
        (tmp_path / copy).symlink_to(exported_heads / name)
    models = [open_model(tmp_path / copy) for copy in ("a", "b")]
    recipe = make_recipe("linear", 2, None, {})
    write_merged(tmp_path / "merged", recipe, None, models, merge(recipe, None, models))
    check_card(tmp_path / "merged", TAGS[name], monkeypatch, capsys)
    digest = sha256(exported_heads / name / "model.safetensors")
    assert (tmp_path / "merged" / "README.md").read_text().count(digest[:12]) == 2


def test_says_what_a_shrunk_model_is(run, tokenizer_folder, tmp_path):
    """The settings of the larger model's training are not its own."""
    arguments = ("--checkpoint", run, "--num_layers", 3, "--output", tmp_path / "small")
    result = run_tool("shrink", *arguments)
    assert result.returncode == 0, result.stderr
    params, meta = restore_params(tmp_path / "small")
    tokenizer = load_tokenizer(tokenizer_folder)
    export_hf(tmp_path / "model", params, meta, tokenizer, verify=False)
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"sampled from `{run.name}`" in card
    assert "None of its own" in card
    assert "| `num_layers` | 4 | 3 |" in card
    assert "| decay_all | 12 | 12,288 |" in card
    assert "learning rate" not in card
    assert "added last" not in card


def test_says_where_an_imported_model_comes_from(exported_heads, tmp_path):
    folder = exported_heads / "mlm"
    model = load_model(folder)
    save_params(tmp_path / "run", model.params, import_meta(folder, model.config))
    meta = read_meta(tmp_path / "run")
    export_hf(tmp_path / "model", model.params, meta, load_tokenizer(folder), verify=False)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "imported into mmbert_jax from `mlm`" in card
    assert f"| `model.safetensors` | {sha256(folder / 'model.safetensors')[:12]} |" in card
    assert str(tmp_path) not in card
    assert hub.ModelCard(card).data.license is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nlicense: mit\ntags: [a]\n---\n# x", {"license": "mit"}),
        (
            "\ufeff---\r\nlicense: other\r\nlicense_name: gemma\r\nlicense_link: LICENSE\r\n---\r\n",
            {"license": "other", "license_name": "gemma", "license_link": "LICENSE"},
        ),
        ("# no front matter\n---\nlicense: mit\n---\n", {}),
        ("---\nlicense: [mit\n---\n", {}),
        ("---\n- mit\n---\n", {}),
        ("", {}),
    ],
)
def test_the_licence_of_an_imported_card(text, expected):
    assert licence_of(text) == expected


def test_an_imported_licence_goes_through(exported_heads, tmp_path):
    folder = exported_heads / "encoder"
    edited = folder / "README.md"
    before = edited.read_text()
    edited.write_text(before.replace("pipeline_tag", "license: apache-2.0\npipeline_tag"))
    model = load_model(folder)
    meta = import_meta(folder, model.config)
    edited.write_text(before)
    export_hf(tmp_path / "model", model.params, meta, load_tokenizer(folder), verify=False)
    assert hub.ModelCard.load(tmp_path / "model" / "README.md").data.license == "apache-2.0"


def test_an_edited_card_is_kept(params, meta, tokenizer_folder, tmp_path, capsys):
    tokenizer, folder = load_tokenizer(tokenizer_folder), tmp_path / "model"

    def export(step):
        export_hf(folder, params, meta | {"step": step}, tokenizer, verify=False)
        marker = json.loads((folder / "mmbert_jax_export.json").read_text())
        assert marker["step"] == step
        return (folder / "README.md").read_text(), capsys.readouterr().out

    first, _ = export(12)
    second, said = export(13)
    assert first != second  # what was not edited is written anew
    assert "edited" not in said
    (folder / "README.md").write_text("mine\n")
    for step in (14, 15):
        card, said = export(step)
        assert card == "mine\n"
        assert "README.md was edited and stays" in said
    (folder / "README.md").unlink()
    card, said = export(13)
    assert card == second
    assert "edited" not in said


def test_a_run_tells_from_which_checkpoint_it_started(params, meta, tokenizer_folder, tmp_path):
    past = {"phase": "phase2", "step": 3, "tokens": 4, "run": "/somewhere/phase2", "sums": "f" * 64}
    known = meta | {"history": [past]}
    tokenizer = load_tokenizer(tokenizer_folder)
    export_hf(tmp_path / "model", params, known, tokenizer, verify=False)
    assert (
        "| phase2 | 3 | 4 | phase2 | ffffffffffff |" in (tmp_path / "model/README.md").read_text()
    )
