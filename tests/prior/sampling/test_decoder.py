import pytest
import torch

from prior import GPT, GPTConfig
from prior.models.presets import MODERN
from prior.sampling.decoder import Decoder, Request
from prior.sampling.inference_copy import inference_copy

SHAPE = 4, 4  # rows and columns of a window
OPTIONS = [{}, *({name: value} for name, value in MODERN.items()), MODERN]


def small_gpt(seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {"window": 4, "num_layers": 2, "num_heads": 2, "width": 8} | changes
    model = GPT(
        GPTConfig(codebook_size=11, condition_vocab_size=3, condition_length=2, **sizes)
    ).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def random_tokens(batch, length):
    return torch.cat([torch.randint(11, 14, (batch, 2)), torch.randint(11, (batch, length - 2))], 1)


def logits_after(decoder, *requests):
    return decoder.model.head(decoder.next_features(requests))


def logits_of_pieces(decoder, tokens, cuts):
    """Logits after each piece of tokens (P, T)."""
    cache, first, logits = decoder.new_cache(*tokens.shape), 0, []
    for cut in cuts:
        positions = torch.arange(first, first + cut)
        logits.append(
            logits_after(decoder, Request(tokens[:, positions], positions, cache, SHAPE))[0]
        )
        first += cut
        assert cache.length == first
    return torch.stack(logits, 1)


@torch.inference_mode()
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("cuts", [[1] * 18, [18], [7, 1, 1, 6, 3]])
def test_decoding_in_pieces_equals_one_forward(cuts, options):
    model, tokens = small_gpt(**options), random_tokens(2, 18)
    ends = torch.tensor(cuts).cumsum(0) - 1
    torch.testing.assert_close(
        logits_of_pieces(Decoder(model), tokens, cuts), model(tokens)[:, ends]
    )


@torch.inference_mode()
@pytest.mark.parametrize("options", [{}, MODERN, {"num_layers": 1}])
def test_requests_decoded_together_equal_separate_forwards(options):
    model = small_gpt(**options)
    decoder, tokens = Decoder(model), [random_tokens(3, 12) for _ in range(3)]
    caches = [decoder.new_cache(3, 12) for _ in range(3)]
    # A whole sequence and two parts; then a single token, a rest and a single token.
    for cuts in ([(0, 12), (0, 5), (0, 9)], [(11, 12), (5, 11), (9, 10)]):
        requests = []
        for own, cache, (start, end) in zip(tokens, caches, cuts, strict=True):
            cache.length = start
            requests.append(Request(own[:, start:end], torch.arange(start, end), cache, SHAPE))
        logits = logits_after(decoder, *requests)
        for own, row, (_, end) in zip(tokens, logits, cuts, strict=True):
            torch.testing.assert_close(row, model(own[:, :end])[:, -1])


@torch.inference_mode()
def test_a_cache_can_be_reused():
    model = small_gpt()
    decoder, (first, second) = Decoder(model), (random_tokens(2, 10), random_tokens(2, 10))
    cache = decoder.new_cache(2, 10)
    decoder.next_features([Request(first, torch.arange(10), cache, SHAPE)])
    cache.length = 0
    logits = logits_after(decoder, Request(second, torch.arange(10), cache, SHAPE))[0]
    torch.testing.assert_close(logits, model(second)[:, -1])


@torch.inference_mode()
def test_recompute_activations_does_not_change_decoding():
    model, tokens = small_gpt(), random_tokens(2, 10)
    expected = model(tokens)[:, -1]
    model.recompute_activations = True
    torch.testing.assert_close(logits_of_pieces(Decoder(model), tokens, [10])[:, 0], expected)


@torch.inference_mode()
@pytest.mark.parametrize("options", [{}, MODERN])
def test_float32_equals_float64_up_to_rounding(options):
    # With packed weights where the processor supports them.
    model = small_gpt(width=32, **options)
    tokens = random_tokens(3, 18)
    expected = logits_of_pieces(Decoder(model), tokens, [7, 1, 10])
    logits = logits_of_pieces(Decoder(inference_copy(model.float())), tokens, [7, 1, 10])
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-4)


def test_cache_bytes_is_the_size_of_a_cache():
    decoder = Decoder(small_gpt())
    cache = decoder.new_cache(3, 5)
    assert decoder.cache_bytes(3, 5) == sum(x.nbytes for x in cache.keys + cache.values)
