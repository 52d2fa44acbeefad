import pytest
import torch

from ops.checkpoint import CheckpointError
from prior import GPT, ClassLabel, Conditions, Coordinates, StartOfSequence
from prior.importers import import_compvis_gpt
from prior.orderings import ORDERINGS
from tests.prior.published_gpt import (
    CODES,
    HEADS,
    WIDTH,
    WINDOW,
    published_gpt,
    published_logits,
)

CLASSES = Conditions([ClassLabel(num_classes=5)], CODES)
START = Conditions([StartOfSequence()], CODES)


def imported(tensors, conditions, **options):
    config, imported_tensors = import_compvis_gpt(
        tensors, conditions, window=WINDOW, num_heads=HEADS, **options
    )
    model = GPT(config).double().eval()
    model.load_state_dict(imported_tensors)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_a_published_class_model_has_the_published_logits(prefix):
    tensors = published_gpt(prefix=prefix)
    model = imported(tensors, CLASSES)
    codes = torch.randint(CODES, (5, WINDOW**2), generator=torch.Generator().manual_seed(1))
    prefixes = CLASSES.tokens({"label": torch.arange(5)}, 5)
    for label in range(5):
        found = model.code_logits(prefixes[label : label + 1], codes[None, label].view(1, 3, 3))
        # The published model reads a class as the code of the same number.
        tokens = torch.cat([torch.tensor([label]), codes[label]])[:-1]
        expected = published_logits(tensors, tokens, prefix)
        torch.testing.assert_close(found.view(-1, CODES), expected)


@torch.inference_mode()
@pytest.mark.parametrize("block_size", [WINDOW**2, 1 + WINDOW**2, 2 * WINDOW**2])
def test_a_published_model_without_conditions_starts_with_token_0(block_size):
    # Published models may lack the last code's position, or have positions for longer sequences.
    tensors = published_gpt(block_size)
    model = imported(tensors, START)
    codes = torch.randint(CODES, (1, 3, 3), generator=torch.Generator().manual_seed(1))
    found = model.code_logits(START.null_tokens(1), codes)
    expected = published_logits(tensors, [0, *codes.flatten().tolist()][:-1])
    torch.testing.assert_close(found.view(-1, CODES), expected)


@torch.inference_mode()
def test_a_published_model_with_coordinates_has_the_published_logits():
    conditions = Conditions([Coordinates(codebook_size=CODES, downsample_factor=4)], CODES)
    tensors = published_gpt(2 * WINDOW**2)
    model = imported(tensors, conditions)
    codes = torch.randint(CODES, (1, 3, 3), generator=torch.Generator().manual_seed(1))
    batch = {"codes": codes, "place": torch.tensor([[2, 1, 6, 5]])}
    condition_inputs = conditions.tokens(batch, 1)
    found = model.code_logits(condition_inputs, codes)
    # The published model reads a coordinate as the code of the same number.
    tokens = torch.cat([condition_inputs.flatten() - CODES, codes.flatten()])[:-1]
    expected = published_logits(tensors, tokens)[-(WINDOW**2) :]
    torch.testing.assert_close(found.view(-1, CODES), expected)


def test_the_null_token_is_the_mean_of_all_classes():
    tensors = published_gpt()
    _, found = import_compvis_gpt(tensors, CLASSES, window=WINDOW, num_heads=HEADS)
    table = found["token_embedding.weight"]
    assert torch.equal(table[:CODES], tensors["transformer.tok_emb.weight"])
    assert torch.equal(table[CODES:-1], table[:5])
    torch.testing.assert_close(table[-1], table[:5].mean(0))


def test_keys_of_the_autoencoders_are_left_out():
    tensors = published_gpt()
    around = {"first_stage_model.encoder.conv_in.weight": torch.zeros(3)}
    around["permuter.forward_shuffle_idx"] = torch.arange(9)
    _, found = import_compvis_gpt(tensors | around, CLASSES, window=WINDOW, num_heads=HEADS)
    _, expected = import_compvis_gpt(tensors, CLASSES, window=WINDOW, num_heads=HEADS)
    assert found.keys() == expected.keys()


NOT_CAUSAL = torch.ones(1, 1, 10, 10).tril()
NOT_CAUSAL[..., 0, 1] = 1


@pytest.mark.parametrize(
    ("key", "replacement", "message"),
    [
        ("blocks.1.attn.key.bias", None, r"blocks\.1\.attn\.key\.bias is missing"),
        ("tok_emb.weight", None, "Not a published GPT"),
        ("pos_emb", None, "pos_emb is missing"),
        ("head.weight", torch.zeros(7, WIDTH), r"head\.weight is \(7, 12\), expected \(11, 12\)"),
        ("tok_emb.weight", torch.zeros(7, WIDTH), r"tok_emb\.weight is \(7, 12\)"),
        ("blocks.0.attn.value.weight", torch.zeros(WIDTH, 4), r"value\.weight is \(12, 4\)"),
        ("pos_emb", torch.zeros(1, 8, WIDTH), "pos_emb has 8 rows"),
        ("pos_emb", torch.zeros(10, WIDTH), r"pos_emb is \(10, 12\)"),
        ("blocks.0.attn.rotary", torch.zeros(1), r"rotary is not a key"),
        ("blocks.0.attn.mask", NOT_CAUSAL, r"blocks\.0\.attn\.mask is not a causal mask"),
    ],
)
def test_an_invalid_state_dict_is_rejected_by_its_key(key, replacement, message):
    tensors = published_gpt()
    if replacement is None:
        del tensors[f"transformer.{key}"]
    else:
        tensors[f"transformer.{key}"] = replacement
    with pytest.raises(CheckpointError, match=message):
        import_compvis_gpt(tensors, CLASSES, window=WINDOW, num_heads=HEADS)


@torch.inference_mode()
@pytest.mark.parametrize("name", ORDERINGS)
def test_a_published_order_is_recognized(name):
    cells = torch.from_numpy(ORDERINGS[name](WINDOW, WINDOW, 1))
    order = {
        "permuter.forward_shuffle_idx": cells,
        "permuter.backward_shuffle_idx": cells.argsort(),
    }
    tensors = published_gpt() | order
    model = imported(tensors, CLASSES)
    assert model.config.ordering == name
    codes = torch.randint(CODES, (1, WINDOW, WINDOW), generator=torch.Generator().manual_seed(1))
    found = model.code_logits(CLASSES.tokens({"label": [2]}, 1), codes)
    # The published model permutes the flat codes before the transformer reads them.
    tokens = torch.cat([torch.tensor([2]), codes.flatten()[cells]])[:-1]
    expected = published_logits(tensors, tokens)
    torch.testing.assert_close(found.view(-1, CODES)[cells], expected)


@pytest.mark.parametrize(
    "order",
    [
        {"forward_shuffle_idx": torch.arange(9).flip(0)},
        {"forward_shuffle_idx": torch.arange(9), "backward_shuffle_idx": torch.arange(9).flip(0)},
        {"forward_shuffle_idx": torch.arange(16)},
        {"weight": torch.arange(9)},
    ],
)
def test_an_order_of_codes_without_a_name_is_rejected(order):
    tensors = published_gpt() | {f"permuter.{key}": cells for key, cells in order.items()}
    with pytest.raises(
        CheckpointError, match=r"permuter\..* is an order of codes that has no name"
    ):
        import_compvis_gpt(tensors, CLASSES, window=WINDOW, num_heads=HEADS)


def test_more_classes_than_tokens_are_rejected():
    many = Conditions([ClassLabel(num_classes=12)], CODES)
    with pytest.raises(CheckpointError, match=r"tok_emb\.weight has 11 rows.*'class'"):
        import_compvis_gpt(published_gpt(), many, window=WINDOW, num_heads=HEADS)
