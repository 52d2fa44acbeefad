import json

import pytest
import torch

from ops.config import ConfigError
from prior import CONDITIONS, ClassLabel, Conditions, StartOfSequence

EXAMPLES = {"sos": StartOfSequence(), "class": ClassLabel(num_classes=5)}
BATCH = {"label": torch.tensor([0, 4, -1])}


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_condition_keeps_the_contract(name):
    condition = EXAMPLES[name]
    assert isinstance(condition, CONDITIONS[name])
    assert condition.name == name
    for tokens in (condition.tokens(BATCH, 3), condition.null_tokens(3)):
        assert tokens.dtype == torch.int64
        assert tokens.shape == (3, condition.length)
        assert 0 <= tokens.min() <= tokens.max() < condition.vocab_size


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_condition_survives_json(name):
    conditions = Conditions([EXAMPLES[name]], 7)
    read = Conditions.from_json(json.loads(json.dumps(conditions.to_json())), 7)
    assert read.parts == conditions.parts
    assert read.codebook_size == 7


def test_a_label_is_its_number_and_none_is_the_null_token():
    assert ClassLabel(num_classes=5).tokens(BATCH, 3).tolist() == [[0], [4], [5]]


@pytest.mark.parametrize("labels", [[5, 0, 0], [-2, 0, 0]])
def test_labels_out_of_range_are_refused(labels):
    with pytest.raises(ConfigError, match="from 0 to 4"):
        ClassLabel(num_classes=5).tokens({"label": torch.tensor(labels)}, 3)


def test_missing_labels_are_refused():
    with pytest.raises(ConfigError, match="needs labels"):
        ClassLabel(num_classes=5).tokens({}, 3)


def test_joined_conditions_have_their_own_parts_of_the_vocabulary():
    conditions = Conditions([StartOfSequence(), ClassLabel(num_classes=5), StartOfSequence()], 100)
    assert conditions.length == 3
    assert conditions.vocab_size == 8
    assert conditions.tokens(BATCH, 3).tolist() == [
        [100, 101, 107],
        [100, 105, 107],
        [100, 106, 107],
    ]
    assert conditions.null_tokens(1).tolist() == [[100, 106, 107]]


def test_dropping_replaces_about_the_share_of_rows():
    conditions = Conditions([ClassLabel(num_classes=5)], 10)
    tokens = torch.full((1000, 1), 12)
    generator = torch.Generator().manual_seed(0)
    dropped = conditions.drop(tokens, 0.1, generator)
    assert set(dropped.flatten().tolist()) == {12, 15}
    assert 70 < (dropped == 15).sum() < 130
    assert torch.equal(conditions.drop(tokens, 0.0, generator), tokens)
    assert torch.equal(conditions.drop(tokens, 1.0, generator), conditions.null_tokens(1000))


def test_only_what_can_be_told_can_guide():
    assert not Conditions([StartOfSequence()], 10).can_guide
    assert Conditions([ClassLabel(num_classes=2)], 10).can_guide


def test_labels_are_found_by_name_and_by_number():
    conditions = Conditions([ClassLabel(num_classes=2, label_names=("cat", "dog"))], 10)
    assert [conditions.label_number(label) for label in ("dog", "0")] == [1, 0]
    for wrong in ("2", "-1", "fox"):
        with pytest.raises(ConfigError, match="0 to 1 or a name"):
            conditions.label_number(wrong)
    with pytest.raises(ConfigError, match="without classes"):
        Conditions([StartOfSequence()], 10).label_number("0")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Conditions([], 10), "at least one condition"),
        (lambda: ClassLabel(num_classes=0), "at least 1"),
        (lambda: ClassLabel(num_classes=2, label_names=("a",)), "1 names"),
        (lambda: Conditions.from_json([{"name": "smell"}], 10), "smell"),
    ],
)
def test_conditions_that_cannot_be_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
