"""Gains and losses of languages, by hand."""

import pytest

from mmbert_jax.report.languages import compare_languages, language_table

BEFORE = {"eng": {"loss": 2.0}, "fra": {"loss": 4.0}, "khm": {"loss": 5.0}, "xxx": {"loss": 1.0}}
AFTER = {"eng": {"loss": 2.1}, "fra": {"loss": 4.2}, "khm": {"loss": 3.0}}
COSTS = {
    "eng": {"new": False, "characters": 100, "tokens_before": 25, "tokens_after": 25},
    "khm": {"new": True, "characters": 100, "tokens_before": 240, "tokens_after": 60},
}


def test_changes_and_means():
    found = compare_languages({"before": BEFORE, "after": AFTER}, COSTS)
    assert list(found["languages"]) == ["eng", "fra", "khm"]
    khmer = found["languages"]["khm"]
    assert khmer["new"]
    assert khmer["change"] == {"after": pytest.approx(-0.4)}
    assert khmer["tokens_per_character"] == {"before": 2.4, "after": 0.6}
    assert khmer["loss_per_character"] == {"before": 3.0, "after": pytest.approx(1.8)}
    assert found["means"]["old"] == {"before": 3.0, "after": pytest.approx(3.15)}
    first = language_table(found).splitlines()[1]
    assert first.split() == ["khm", "(new)", "5.0000", "3.0000", "-40.00%", "0.600"]
