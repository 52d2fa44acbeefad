"""Drawing a sample several times and keeping the one that a score likes best.

The paper's classifier rejection: what scores is how sure a classifier is of the class that was
asked for, and the codes of the surest picture stay (Esser et al. 2021, section 4.4 and table 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from ops.config import ConfigError
from prior.sampling.distributions import Draw

Score = Callable[[Tensor, int], float]
"""What codes (rows, columns) of the sample of that number are worth; more is better."""

CANDIDATE_SHIFT = 48  # bits of a sample's number that are left to the sample itself
MAX_CANDIDATES = 1 << (64 - CANDIDATE_SHIFT)


def candidate_number(sample: int, candidate: int) -> int:
    """The number by which a candidate's uniforms are keyed; a sample's first is the sample itself.

    Raises ConfigError for more candidates or samples than there are numbers.
    """
    if candidate and not (sample >> CANDIDATE_SHIFT == 0 and candidate < MAX_CANDIDATES):
        raise ConfigError(
            f"Candidates need sample numbers below 2**{CANDIDATE_SHIFT} and are at most "
            f"{MAX_CANDIDATES}; found candidate {candidate} of sample {sample}."
        )
    return candidate << CANDIDATE_SHIFT | sample


class Rejection:
    """The best candidate so far of each sample.

    A sample is settled by the first candidate whose score reaches `accept`, so it is the same
    whichever samples are drawn beside it. Without `score`, each sample's first candidate stays.
    """

    def __init__(self, score: Score | None, accept: float | None) -> None:
        self.best: dict[int, Draw] = {}
        self._score, self._accept = score, accept
        self._scores: dict[int, float] = {}

    def offer(self, sample: int, candidate: Draw) -> None:
        """Keep the candidate (rows, columns) where it is better than what is there."""
        if self.settled([sample]):
            return
        score = 0.0 if self._score is None else float(self._score(candidate.codes, sample))
        if sample not in self.best or score > self._scores[sample]:
            self.best[sample], self._scores[sample] = candidate, score

    def settled(self, samples: Iterable[int]) -> bool:
        """Whether further candidates change none of these samples."""
        return all(sample in self.best and self._is_settled(sample) for sample in samples)

    def _is_settled(self, sample: int) -> bool:
        if self._score is None:
            return True
        return self._accept is not None and self._scores[sample] >= self._accept
