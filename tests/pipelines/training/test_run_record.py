import json

import pytest

from pipelines.flags import TrainingFlags
from pipelines.recipes import PRIOR_RECIPES
from pipelines.training.flags import override_recipe
from pipelines.training.loop import TrainingError
from pipelines.training.run_record import FORMAT, pin_precision, pin_settings, run_settings

SETTINGS = {"batch_size": 8, "betas": (0.9, 0.99)}


def test_the_length_of_a_run_may_change_and_its_batches_may_not(tmp_path):
    def settings(**given):
        flags = TrainingFlags(out=tmp_path, **given)
        return run_settings(override_recipe(PRIOR_RECIPES, "tiny", flags), seed=0)

    assert settings(steps=5, save_every=1) == settings()
    assert settings(batch_size=5) != settings()


def test_a_run_resumed_with_other_settings_is_refused(tmp_path):
    pin_settings(tmp_path, SETTINGS)
    pin_settings(tmp_path, SETTINGS)
    with pytest.raises(TrainingError, match=r"asked\): batch_size: 8 -> 16\. Resume"):
        pin_settings(tmp_path, {**SETTINGS, "batch_size": 16})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, rf"written by an older version of Smalti \(format 1, this one has {FORMAT}\)"),
        ({"format": FORMAT + 1}, "written by a newer version of Smalti"),
    ],
)
def test_a_run_of_another_version_is_refused(tmp_path, change, message):
    (tmp_path / "run.json").write_text(json.dumps({**SETTINGS, **change}))
    with pytest.raises(TrainingError, match=message):
        pin_settings(tmp_path, SETTINGS)


def test_a_run_without_a_checkpoint_takes_other_settings(tmp_path):
    pin_settings(tmp_path, SETTINGS, begun=False)
    pin_settings(tmp_path, {**SETTINGS, "batch_size": 16}, begun=False)
    pin_settings(tmp_path, {**SETTINGS, "batch_size": 16}, begun=True)


def test_only_the_settings_that_differ_are_named(tmp_path):
    recipe = {"optimizer": {"learning_rate": 0.1, "betas": [0.9, 0.95]}, "preset": "tiny"}
    pin_settings(tmp_path, {"recipe": recipe, "seed": 0})
    other = {**recipe, "optimizer": {**recipe["optimizer"], "learning_rate": 0.2}}
    with pytest.raises(TrainingError) as raised:
        pin_settings(tmp_path, {"recipe": other, "seed": 1})
    assert "recipe.optimizer.learning_rate: 0.1 -> 0.2; seed: 0 -> 1. " in str(raised.value)
    assert "betas" not in str(raised.value)
    assert "preset" not in str(raised.value)


def test_a_run_resumed_in_another_precision_is_refused(tmp_path):
    pin_settings(tmp_path, SETTINGS, begun=False)
    pin_precision(tmp_path, "bfloat16")
    pin_settings(tmp_path, SETTINGS)
    pin_precision(tmp_path, "bfloat16")
    with pytest.raises(TrainingError, match='asked\\): precision: "bfloat16" -> "float32"'):
        pin_precision(tmp_path, "float32")
    assert json.loads((tmp_path / "run.json").read_text())["precision"] == "bfloat16"
    pin_settings(tmp_path, SETTINGS, begun=False)  # without a checkpoint
    pin_precision(tmp_path, "float32")


@pytest.mark.parametrize("text", ["", "[]", '{"format": [1]}', '{"a": 1, "a": 2}', "[" * 99_999])
def test_a_corrupt_record_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(TrainingError, match=r"run\.json|format"):
        pin_settings(tmp_path, SETTINGS)
