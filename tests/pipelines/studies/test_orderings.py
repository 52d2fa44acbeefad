"""The study of orderings: each prior has its own order."""

import json

import pytest

from pipelines import study as command
from prior import load_prior
from prior.orderings import ORDERINGS
from tests.pipelines.test_study import flags_of, images

__all__ = ["images"]


@pytest.mark.slow
def test_orderings_study_completes(images, tmp_path):
    assert command.main(flags_of("orderings", images, tmp_path, "--seeds", "0")) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    nll = [results["summary"][name]["nats_per_code"]["mean"] for name in ORDERINGS]
    assert len(set(nll)) == len(nll)
    for name in ORDERINGS:
        assert load_prior(tmp_path / f"prior-{name}-0").config.ordering == name
