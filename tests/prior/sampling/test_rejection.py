import pytest
import torch

from ops.config import ConfigError
from prior.sampling.distributions import Draw
from prior.sampling.rejection import Rejection, candidate_number


def candidate(value):
    return Draw(torch.full((2, 3), value), torch.zeros(2, 3))


def first_code(codes, sample):
    return float(codes[0, 0]) + sample


def kept(rejection, sample):
    return int(rejection.best[sample].codes[0, 0])


def test_the_best_candidate_stays():
    rejection = Rejection(first_code, None)
    for value in (3, 7, 5):
        rejection.offer(0, candidate(value))
    assert kept(rejection, 0) == 7
    assert not rejection.settled([0])


def test_the_first_that_is_good_enough_stays():
    rejection = Rejection(first_code, 5)
    for value in (3, 6, 9):
        rejection.offer(0, candidate(value))
    assert kept(rejection, 0) == 6
    assert rejection.settled([0])
    assert not rejection.settled([0, 1])


def test_where_none_is_good_enough_the_best_stays():
    rejection = Rejection(first_code, 100)
    for value in (3, 6, 4):
        rejection.offer(0, candidate(value))
    assert kept(rejection, 0) == 6


def test_samples_are_scored_by_their_number():
    rejection = Rejection(lambda codes, sample: float(codes[0, 0]) * (-1) ** sample, None)
    for value in (3, 6, 4):
        rejection.offer(0, candidate(value))
        rejection.offer(1, candidate(value))
    assert (kept(rejection, 0), kept(rejection, 1)) == (6, 3)


def test_candidates_are_keyed_apart_and_the_first_is_the_sample_itself():
    numbers = {candidate_number(sample, c) for sample in range(20) for c in range(10)}
    assert len(numbers) == 200
    assert candidate_number(17, 0) == 17
    assert candidate_number(2**60, 0) == 2**60


@pytest.mark.parametrize(("sample", "number"), [(2**48, 1), (0, 2**16)])
def test_numbers_that_would_meet_are_refused(sample, number):
    with pytest.raises(ConfigError, match="Candidates"):
        candidate_number(sample, number)
