import torch

from prior import Conditions, Inpaint
from tests.prior.conditions.test_contract import EXAMPLES
from tests.prior.conditions.test_joined import generators


def test_unknown_codes_are_masked():
    codes, known = torch.tensor([[[1, 2]]]), torch.tensor([[[True, False]]])
    tokens = Inpaint(codebook_size=9).tokens({"codes": codes, "known": known}, 1, (1, 2))
    assert tokens.tolist() == [[[1, 9]]]


def test_training_masks_are_of_every_kind_and_never_all_known():
    conditions = Conditions([EXAMPLES["inpaint"]], 9)
    codes = torch.zeros(400, 12, 16, dtype=torch.int64)
    tokens = conditions.training_tokens({"codes": codes}, generators(400), 0.0)
    known = (tokens == 9).view(400, 12, 16)
    shares = known.double().mean((1, 2))
    assert (shares < 1).all()
    assert 60 < (shares == 0).sum() < 140  # everything is unknown in a quarter
    halves = {tuple(mask.flatten().tolist()) for mask in known[shares == 0.5]}
    assert len(halves) >= 4
    assert ((shares > 0) & (shares != 0.5)).sum() > 100
