"""A Net2NetTransformer's GPT as it is published: its keys written out, its weights made up.

`published_logits` computes what such a model does, read off the keys, with nothing of ours.
"""

import math

import torch

CODES, WIDTH, HEADS, LAYERS, WINDOW = 11, 12, 3, 2, 3


def published_gpt(block_size=1 + WINDOW**2, prefix="transformer."):
    """Random weights under the published keys, float64, with all that lies around them."""
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
    """What the published network makes of one sequence of token numbers (T,), place by place."""
    weights = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}

    def linear(name, x):
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    def norm(name, x):
        spread = ((x - x.mean()) ** 2).mean()
        standard = (x - x.mean()) / torch.sqrt(spread + 1e-5)
        return standard * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attention(name, before):
        """What the last of the normed vectors `before` gathers from all of them."""
        query = linear(f"{name}.query", before[-1]).view(HEADS, -1)
        keys = [linear(f"{name}.key", x).view(HEADS, -1) for x in before]
        values = [linear(f"{name}.value", x).view(HEADS, -1) for x in before]
        heads = []
        for head in range(HEADS):
            scores = [key[head] @ query[head] / math.sqrt(WIDTH / HEADS) for key in keys]
            shares = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
            heads.append(sum(s * v[head] for s, v in zip(shares, values, strict=True)))
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
