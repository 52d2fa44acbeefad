"""The study of orderings: the order is what differs, and it is kept."""

import json

import pytest

from pipelines import study as command
from prior import load_prior
from prior.orderings import ORDERINGS
from tests.pipelines.test_study import pictures, words

__all__ = ["pictures"]


@pytest.mark.slow
def test_orderings_study_goes_all_the_way(pictures, tmp_path):
    assert command.main(words("orderings", pictures, tmp_path, "--seeds", "0")) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    nll = [results["summary"][name]["nats_per_code"]["mean"] for name in ORDERINGS]
    assert len(set(nll)) == len(nll)
    for name in ORDERINGS:
        assert load_prior(tmp_path / f"prior-{name}-0").config.ordering == name
