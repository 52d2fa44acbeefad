import torch

from pipelines.flags import TrainTokenizerFlags
from pipelines.training import tokenizer_run


def test_loader_workers_default_to_a_part_of_the_cores(monkeypatch, tmp_path):
    def default(device, **given):
        flags = TrainTokenizerFlags(recipe="tiny", data=tmp_path, out=tmp_path, **given)
        return tokenizer_run.loader_workers(flags, torch.device(device))

    monkeypatch.setattr(tokenizer_run, "num_cores", lambda: 3)
    assert [default("cpu"), default("cuda"), default("cpu", num_workers=3)] == [0, 2, 3]
    assert default("cuda", workers=2) == 0  # of --cpus-per-worker 1
    monkeypatch.setattr(tokenizer_run, "num_cores", lambda: 64)
    assert [default("cpu"), default("cuda"), default("cuda", num_workers=0)] == [4, 4, 0]
