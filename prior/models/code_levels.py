"""Codes that are several small numbers, their levels, embedded and predicted by these.

The levels of a code are the digits of its number in mixed radix, the first one varying fastest: the
channels of FSQ, groups of bits of LFQ. An embedding and a head of K codes have K rows each, and
learn each code by itself; LevelEmbedding and LevelHead have one for each value of each level. The
head predicts the levels one after another, so the likelihood is exact: the log-probability of a
code is the sum of those of its levels, each given the levels before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import Annotated, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.config import ConfigError, Range
from ops.cpu import Linear
from ops.text import printable

Levels = tuple[Annotated[int, Range(least=2, most=2**16)], ...]
Starts = tuple[Annotated[int, Range(least=0, most=2**26)], ...]
MOST_LEVELS = 26  # a codebook has 2**26 codes at most


class CodeConfig(Protocol):
    """The fields of a prior's config that this module reads."""

    @property
    def codebook_size(self) -> int: ...
    @property
    def condition_vocab_size(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def code_levels(self) -> tuple[int, ...]: ...
    @property
    def condition_codes(self) -> tuple[int, ...]: ...


def check_code_levels(config: CodeConfig) -> None:
    """Raise ConfigError unless code_levels and condition_codes fit the vocabularies."""
    levels, size = config.code_levels, config.codebook_size
    if not levels:
        if config.condition_codes:
            raise ConfigError("condition_codes needs code_levels; leave it out.")
        return
    if not 2 <= len(levels) <= MOST_LEVELS or math.prod(levels) != size:
        raise ConfigError(
            f"code_levels must be two numbers or more whose product is codebook_size {size}; "
            f"found {printable(str(list(levels)), 100)}."
        )
    ends = [start + size for start in config.condition_codes]
    if any(
        start < end for start, end in zip(config.condition_codes, [0, *ends], strict=False)
    ) or ends[-1:] > [config.condition_vocab_size]:
        raise ConfigError(
            f"condition_codes must be rising starts of {size} codes each, among "
            f"{config.condition_vocab_size} condition tokens; found "
            f"{printable(str(list(config.condition_codes)), 100)}."
        )


def places_of(levels: Sequence[int]) -> list[int]:
    """What a level's value is multiplied by in the code's number: 1, then products of levels."""
    return list(accumulate(levels[:-1], mul, initial=1))


def split_codes(codes: Tensor, levels: Sequence[int]) -> list[Tensor]:
    """The value of each level, (...) int64 from 0, of codes (...)."""
    return [
        codes.div(place, rounding_mode="floor").remainder(level)
        for place, level in zip(places_of(levels), levels, strict=True)
    ]


def join_levels(values: Sequence[Tensor], levels: Sequence[int]) -> Tensor:
    """The codes (...) of each level's value (...): the inverse of split_codes."""
    return torch.stack(
        [value * place for value, place in zip(values, places_of(levels), strict=True)]
    ).sum(0)


class LevelEmbedding(nn.Embedding):
    """Embedding of tokens in which a code's vector is the sum of its levels' vectors.

    The tokens are numbered as in nn.Embedding: 0 .. K-1 are codes, and so are K tokens from
    K + start on for each start of condition_codes. Each of these ranges has a row for each value of
    each level, one level after another, in place of a row for each code; every other token has its
    own row. Rows are in the order of the tokens.
    """

    def __init__(self, config: CodeConfig, num_tokens: int) -> None:
        levels = config.code_levels
        self.levels, self.codebook_size = levels, config.codebook_size
        self.saved = config.codebook_size - sum(levels)
        """rows that each range of codes takes less than codes"""
        self.starts = [0, *(config.codebook_size + start for start in config.condition_codes)]
        self.first_rows = list(accumulate(levels[:-1], initial=0))
        """of each level, among the rows of a range"""
        super().__init__(num_tokens - len(self.starts) * self.saved, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) int64 -> (..., width)"""
        rows, is_code = self.rows(tokens)
        first, *others = (F.embedding(row, self.weight) for row in rows)
        total = others[0]
        for other in others[1:]:
            total = total + other
        return first + total.masked_fill(~is_code[..., None], 0)

    def rows(self, tokens: Tensor) -> tuple[list[Tensor], Tensor]:
        """For each level the rows (...) of tokens (...), and which tokens are codes (...), bool.

        Of a token that is no code only the first row counts.
        """
        own_rows, codes, ranges = tokens, torch.zeros_like(tokens), torch.zeros_like(tokens)
        is_code = torch.zeros_like(tokens, dtype=torch.bool)
        for number, start in enumerate(self.starts):
            inside = (tokens >= start) & (tokens < start + self.codebook_size)
            codes = torch.where(inside, tokens - start, codes)
            ranges = ranges + inside * (start - number * self.saved)
            own_rows = own_rows - self.saved * (tokens >= start + self.codebook_size)
            is_code = is_code | inside
        rows = [
            ranges + first + value
            for first, value in zip(self.first_rows, split_codes(codes, self.levels), strict=True)
        ]
        return [torch.where(is_code, rows[0], own_rows), *rows[1:]], is_code


class LevelHead(nn.Module):
    """Predicts the levels of a code one after another, each by a hidden layer of its own.

    The hidden layer of a level reads the features and the values of the levels before it.
    """

    def __init__(self, config: CodeConfig) -> None:
        super().__init__()
        self.levels, width = config.code_levels, config.width
        self.hidden = Linear(width, len(self.levels) * width)
        pairs = [(later, earlier) for later in range(len(self.levels)) for earlier in range(later)]
        sizes = [self.levels[earlier] for _, earlier in pairs]
        self.first_rows = dict(zip(pairs, accumulate(sizes, initial=0), strict=False))
        """of the values of an earlier level, as a later one reads them: (later, earlier) -> row"""
        self.earlier = nn.Embedding(sum(sizes), width)
        self.outputs = nn.ModuleList(Linear(width, level) for level in self.levels)

    def initialise(self) -> None:
        """Initialize the hidden layers so that features and earlier levels count alike at once.

        With the small weights of other layers, a level would long be predicted as if it did not
        depend on those before it.
        """
        nn.init.normal_(self.hidden.weight, std=self.hidden.in_features**-0.5)
        nn.init.normal_(self.earlier.weight, std=len(self.levels) ** -0.5)

    def hidden_inputs(self, features: Tensor) -> tuple[Tensor, ...]:
        """For each level what its hidden layer receives of features (..., width), (..., width)."""
        inputs: Tensor = self.hidden(features)
        return inputs.chunk(len(self.levels), dim=-1)

    def logits(self, inputs: Tensor, values: Sequence[Tensor]) -> Tensor:
        """Logits (..., levels[i]) of level i from its `inputs` (..., width), see hidden_inputs.

        `values` are those of the i levels before it, (...) int64 each.
        """
        for earlier, value in enumerate(values):
            row = value + self.first_rows[len(values), earlier]
            inputs = inputs + F.embedding(row, self.earlier.weight).to(inputs.dtype)
        logits: Tensor = self.outputs[len(values)](F.gelu(inputs))
        return logits

    def terms(self, features: Tensor, codes: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each level its logits (..., levels[i]) and its value (...) in codes (...).

        Each is predicted from features (..., width) and the values before it in `codes`.
        """
        values = split_codes(codes, self.levels)
        return [
            (self.logits(inputs, values[:level]), values[level])
            for level, inputs in enumerate(self.hidden_inputs(features))
        ]

    def forward(self, features: Tensor) -> Tensor:
        """Log-probabilities (..., K) of all codes, from features (..., width).

        It takes a hidden vector for each code but those that differ in the last level only: neither
        training nor sampling calls it.
        """
        logs = features.new_zeros(*features.shape[:-1], 1)
        for level, inputs in enumerate(self.hidden_inputs(features)):
            before = torch.arange(logs.shape[-1], device=features.device)  # codes of these levels
            values = split_codes(before, self.levels[:level]) if level else []
            logits = self.logits(inputs[..., None, :], values).to(logs.dtype)
            logs = (logs[..., None, :] + logits.log_softmax(-1).mT).flatten(-2)
        return logs


def code_embedding(config: CodeConfig, num_tokens: int) -> nn.Embedding:
    """The embedding (..., width) of a prior's tokens (...), by levels where the config has some."""
    if config.code_levels:
        return LevelEmbedding(config, num_tokens)
    return nn.Embedding(num_tokens, config.width)


def code_head(config: CodeConfig) -> Linear | LevelHead:
    """From features (..., width) to logits (..., K), by levels where the config has some."""
    if config.code_levels:
        return LevelHead(config)
    return Linear(config.width, config.codebook_size, bias=False)


def code_terms(head: nn.Module, features: Tensor, codes: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The predictions that make up that of a code: logits (..., n) and targets (...) of each.

    Features are (..., width), codes (...). Without levels there is one, of the code itself. The
    cross-entropy of a code is the sum of theirs.
    """
    if isinstance(head, LevelHead):
        return head.terms(features, codes)
    return [(head(features), codes)]
