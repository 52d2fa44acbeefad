import pytest
import torch

from ops.config import ConfigError
from prior import ClassLabel, Conditions, StartOfSequence
from tests.prior.conditions.test_contract import SHAPE


def test_label_is_its_number_and_no_label_the_null_token():
    batch = {"label": torch.tensor([0, 4, -1])}
    assert ClassLabel(num_classes=5).tokens(batch, 3, SHAPE).tolist() == [[0], [4], [5]]


@pytest.mark.parametrize("labels", [[5, 0, 0], [-2, 0, 0]])
def test_labels_out_of_range_are_refused(labels):
    with pytest.raises(ConfigError, match="from 0 to 4"):
        ClassLabel(num_classes=5).tokens({"label": torch.tensor(labels)}, 3, SHAPE)


def test_labels_are_found_by_name_and_by_number():
    conditions = Conditions([ClassLabel(num_classes=2, label_names=("cat", "dog"))], 10)
    assert [conditions.label_number(label) for label in ("dog", "0")] == [1, 0]
    for wrong in ("2", "-1", "fox"):
        with pytest.raises(ConfigError, match="0 to 1 or a name"):
            conditions.label_number(wrong)
    with pytest.raises(ConfigError, match="without classes"):
        Conditions([StartOfSequence()], 10).label_number("0")
