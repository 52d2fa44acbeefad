import torch

from tests.prior.conditions.test_contract import EXAMPLES, SHAPE


def test_point_is_its_place_and_outside_the_window_a_token_of_its_own():
    points = torch.tensor([[[0.0, 0.0], [1.0, 0.5], [torch.nan, 0.5], [1.1, 0.5]]])
    tokens = EXAMPLES["keypoints"].tokens({"keypoints": points}, 1, SHAPE)
    assert tokens.tolist() == [[0, 4 * 8 + 7, 64, 64]]  # 0.5 * 7 = 3.5 goes to the even one
    assert EXAMPLES["keypoints"].null_token == 65
