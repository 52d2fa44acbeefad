"""A state dict with the keys of a published Net2NetTransformer's GPT, and its forward pass.

The weights are random. `published_logits` computes the network from the keys, independently of
prior.models.
"""

import math

import torch

CODES, WIDTH, HEADS, LAYERS, WINDOW = 11, 12, 3, 2, 3


def published_gpt(block_size=1 + WINDOW**2, prefix="transformer."):
    """Random float64 weights under the published keys, with the mask buffers."""
    shapes = {"tok_emb.weight": (CODES, WIDTH), "pos_emb": (1, block_size, WIDTH)}
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        linear = {f"attn.{name}": (WIDTH, WIDTH) for name in ("key", "query", "value", "proj")}
        linear |= {"mlp.0": (4 * WIDTH, WIDTH), "mlp.2": (WIDTH, 4 * WIDTH)}
        for name, shape in linear.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
        for name in ("ln1", "ln2"):
            shapes |= {f"{block}.{name}.{kind}": (WIDTH,) for kind in ("weight", "bias")}
    shapes |= {"ln_f.weight": (WIDTH,), "ln_f.bias": (WIDTH,), "head.weight": (CODES, WIDTH)}
    random = torch.Generator().manual_seed(0)
    tensors = {
        prefix + key: 0.4 * torch.randn(shape, generator=random, dtype=torch.float64)
        for key, shape in shapes.items()
    }
    for layer in range(LAYERS):
        mask = torch.ones(block_size, block_size).tril()[None, None]
        tensors[f"{prefix}blocks.{layer}.attn.mask"] = mask
    return tensors


def published_logits(tensors, tokens, prefix="transformer."):
    """Logits (T, K) of the published network for one sequence of tokens (T,), one at a time."""
    weights = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}

    def linear(name, x):
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    def norm(name, x):
        variance = ((x - x.mean()) ** 2).mean()
        standardized = (x - x.mean()) / torch.sqrt(variance + 1e-5)
        return standardized * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attention(name, before):
        """Attention output of the last of the normed vectors `before`, over all of them."""
        query = linear(f"{name}.query", before[-1]).view(HEADS, -1)
        keys = [linear(f"{name}.key", x).view(HEADS, -1) for x in before]
        values = [linear(f"{name}.value", x).view(HEADS, -1) for x in before]
        heads = []
        for head in range(HEADS):
            scores = [key[head] @ query[head] / math.sqrt(WIDTH / HEADS) for key in keys]
            probabilities = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
            heads.append(sum(p * v[head] for p, v in zip(probabilities, values, strict=True)))
        return linear(f"{name}.proj", torch.cat(heads))

    def mlp(name, x):
        hidden = linear(f"{name}.0", x)
        return linear(f"{name}.2", hidden * (1 + torch.erf(hidden / 2**0.5)) / 2)

    stream = [
        weights["tok_emb.weight"][token] + weights["pos_emb"][0, place]
        for place, token in enumerate(tokens)
    ]
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        normed = [norm(f"{block}.ln1", x) for x in stream]
        stream = [
            x + attention(f"{block}.attn", normed[: place + 1]) for place, x in enumerate(stream)
        ]
        stream = [x + mlp(f"{block}.mlp", norm(f"{block}.ln2", x)) for x in stream]
    return torch.stack([weights["head.weight"] @ norm("ln_f", x) for x in stream])
