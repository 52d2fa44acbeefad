"""Condition inputs from files, against what the tokenizers make of the same images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ops.config import ConfigError
from ops.images import resize_and_crop, to_pixels
from ops.low_resolution import enlarged
from pipelines.conditioning.encoder import ConditionEncoder
from pipelines.conditioning.flags import parse_conditions
from prior.conditions import (
    Boxes,
    Conditions,
    Inpaint,
    Keypoints,
    LowResolution,
    Segmentation,
    StartOfSequence,
)
from tests.conftest import photograph
from tokenizer import build_tokenizer
from tokenizer.modalities import ModalityConfig

SIZE = 24, 40  # height, width
IMAGE = build_tokenizer("tiny", seed=0).eval()
MAPS = build_tokenizer("tiny", seed=1, modality=ModalityConfig(kind="segmentation", num_classes=9))
MAPS = MAPS.eval()
CODES = IMAGE.config.codebook_size
F = IMAGE.config.downsample_factor


def conditions(*parts):
    return Conditions(parts or [StartOfSequence()], CODES)


def encoder_of(flags, *parts, size=SIZE):
    files = parse_conditions(flags, conditions(*parts))
    return ConditionEncoder(files, conditions(*parts), IMAGE, {"segmentation": MAPS}, size)


@pytest.fixture
def images(tmp_path):
    """Three images, 0.png, 1.png and 2.png, of the canvas's size."""
    for seed in range(3):
        Image.fromarray(photograph(seed, *SIZE)).save(tmp_path / f"{seed}.png")
    return tmp_path


def codes_of(image):
    with torch.inference_mode():
        return IMAGE.encode(to_pixels(image))[0]


def test_half_is_made_of_the_upper_half_alone_and_samples_take_the_files_in_turn(images):
    forced = encoder_of([f"half={images}"]).forced([0, 1, 2, 3, 7])
    assert forced.shape == (5, SIZE[0] // F, SIZE[1] // F)
    half = forced.shape[1] // 2
    assert (forced[:, half:] == -1).all()
    for place, seed in enumerate([0, 1, 2, 0, 1]):
        upper = photograph(seed, *SIZE)[: half * F]
        assert torch.equal(forced[place, :half], codes_of(upper))


def test_image_of_another_shape_is_cropped_to_its_middle(tmp_path):
    image = photograph(0, 100, 60)
    Image.fromarray(image).save(tmp_path / "high.png")
    forced = encoder_of([f"half={tmp_path / 'high.png'}"]).forced([0])
    upper = resize_and_crop(image, SIZE)[: forced.shape[1] // 2 * F]
    assert torch.equal(forced[0, : forced.shape[1] // 2], codes_of(upper))


def test_label_maps_are_encoded_by_their_own_tokenizer(tmp_path):
    labels = np.random.default_rng(0).integers(0, 9, SIZE, np.uint8)
    Image.fromarray(labels).save(tmp_path / "map.png")
    part = Segmentation(codebook_size=MAPS.config.codebook_size)
    condition_inputs = encoder_of([f"segmentation={tmp_path}"], part).condition_inputs([0, 5])
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), 9).permute(2, 0, 1)
    with torch.inference_mode():
        expected = MAPS.encode(one_hot[None].float())[0]
    assert torch.equal(condition_inputs["segmentation"], expected.expand(2, -1, -1))


def test_small_image_is_enlarged_to_the_canvas(tmp_path):
    """One that is as small as the ratio says is not shrunk first."""
    small = photograph(0, SIZE[0] // 4, SIZE[1] // 4)
    Image.fromarray(small).save(tmp_path / "small.png")
    part = LowResolution(codebook_size=CODES, ratio=4)
    condition_inputs = encoder_of([f"low_res={tmp_path}"], part).condition_inputs([0])
    assert torch.equal(condition_inputs["low_res"][0], codes_of(enlarged(small, SIZE)))


def test_holes_are_unknown_and_the_rest_stays(tmp_path):
    image = photograph(0, *SIZE)
    layers = np.dstack([image, np.full(SIZE, 255, np.uint8)])
    layers[: 2 * F + 1, :F, 3] = 0
    Image.fromarray(layers).save(tmp_path / "holes.png")
    encoder = encoder_of([f"inpaint={tmp_path}"], Inpaint(codebook_size=CODES))
    forced, condition_inputs = encoder.forced([0])[0], encoder.condition_inputs([0])
    unknown = torch.zeros(SIZE[0] // F, SIZE[1] // F, dtype=torch.bool)
    unknown[:4, :2] = True  # the three cells that the hole touches, and those around them
    assert torch.equal(forced < 0, unknown)
    filled = np.where(layers[..., 3:] > 0, image, image[layers[..., 3] > 0].mean(0).round())
    assert torch.equal(forced[~unknown], codes_of(filled.astype(np.uint8))[~unknown])
    assert torch.equal(condition_inputs["known"][0], ~unknown)
    assert torch.equal(condition_inputs["codes"][0], forced)


def test_preview_of_half_is_white_below(images):
    shown = encoder_of([f"half={images}"]).preview("half", 1)
    upper = SIZE[0] // F // 2 * F
    np.testing.assert_array_equal(shown[:upper], photograph(1, *SIZE)[:upper])
    assert (shown[upper:] == 255).all()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("half", "must be NAME=PATH"),
        ("depth=x", "does not take the condition 'depth', but inpaint, half"),
        ("class=x", "given by --labels"),
        ("inpaint={whole}", "0.png: nothing in it is transparent"),
        ("half={text}", "text.png: "),
    ],
)
def test_inputs_that_cannot_be_used_are_refused(images, flag, message):
    (images / "text.png").write_text("no image")
    flag = flag.format(whole=images / "0.png", text=images / "text.png")
    with pytest.raises(ConfigError, match=message):
        encoder_of([flag], Inpaint(codebook_size=CODES)).check([flag.partition("=")[0]])


def test_half_and_inpaint_together_are_refused(images):
    flags = [f"half={images}", f"inpaint={images}"]
    with pytest.raises(ConfigError, match="Name one"):
        parse_conditions(flags, conditions(Inpaint(codebook_size=CODES)))


def test_one_row_of_codes_has_no_half(images):
    with pytest.raises(ConfigError, match="no upper half"):
        encoder_of([f"half={images}"], size=(F, 40)).check(["half"])


BOXES = Boxes(num_categories=2, category_names=("disc", "sky"))


def written(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_boxes_are_in_fractions_of_the_canvas_one_item_an_image(tmp_path):
    path = written(
        tmp_path / "boxes.jsonl",
        {"file": "a", "category": "sky", "bbox": [0, 0, 40, 6]},
        {"file": "b", "category": "disc", "bbox": [10, 12, 20, 6]},
        {"file": "a", "category": "disc", "bbox": [30, 18, 20, 12]},
        {"file": "c"},
    )
    boxes = encoder_of([f"boxes={path}"], BOXES).condition_inputs(range(4))["boxes"]
    assert boxes.shape == (4, 30, 5)
    assert boxes[0, :2].tolist() == [[1, 0, 0, 1, 0.25], [0, 0.75, 0.75, 1.25, 1.25]]
    assert boxes[1, :1].tolist() == [[0, 0.25, 0.5, 0.75, 0.75]]
    assert (boxes[:, 2:, 0] == -1).all()
    assert (boxes[2, :, 0] == -1).all()
    assert torch.equal(boxes[3], boxes[0])


def test_points_of_a_pose_are_in_the_priors_order(tmp_path):
    path = written(
        tmp_path / "poses.jsonl",
        {"file": "a", "keypoints": {"foot": [10, 18], "head": [20, 6]}},
        {"file": "b", "keypoints": {"head": [40, 24]}},
    )
    part = Keypoints(num_points=2, point_names=("foot", "head"))
    points = encoder_of([f"keypoints={path}"], part).condition_inputs([0, 1])["keypoints"]
    assert points[0].tolist() == [[0.25, 0.75], [0.5, 0.25]]
    assert points[1, 0].isnan().all()
    assert points[1, 1].tolist() == [1, 1]


def test_fractions_are_of_the_canvas_of_whole_codes(tmp_path):
    """Samples of another size are cropped at the right and at the bottom."""
    path = written(tmp_path / "poses.jsonl", {"file": "a", "keypoints": [[8.0, 4.0]]})
    part, size = Keypoints(num_points=1), (F + 1, 3 * F - 1)
    condition_inputs = encoder_of([f"keypoints={path}"], part, size=size).condition_inputs([0])
    x, y = condition_inputs["keypoints"][0, 0].tolist()
    assert (x, y) == pytest.approx((8 / (3 * F), 4 / (2 * F)))


@pytest.mark.parametrize(
    ("part", "line", "message"),
    [
        (BOXES, {"file": "a", "category": "moon", "bbox": [0, 0, 1, 1]}, "no category 'moon'"),
        (BOXES, {"file": "a", "category": "sky", "bbox": [0, 0, 1]}, "lines.jsonl:1: bbox"),
        (Keypoints(num_points=2), {"file": "a", "keypoints": [[1, 2]]}, "1 keypoints"),
        (
            Keypoints(num_points=1, point_names=("head",)),
            {"file": "a", "keypoints": {"tail": [1, 2]}},
            "a keypoint 'tail'",
        ),
    ],
)
def test_lines_that_cannot_be_used_are_named(tmp_path, part, line, message):
    good = {"file": "b"}
    path = written(tmp_path / "lines.jsonl", line, good)
    with pytest.raises(ConfigError, match=message):
        encoder_of([f"{part.name}={path}"], part)


def test_previews_show_boxes_and_points(tmp_path):
    box = {"file": "a", "category": "sky", "bbox": [4, 4, 20, 16]}
    path = written(tmp_path / "boxes.jsonl", box)
    shown = encoder_of([f"boxes={path}"], BOXES).preview("boxes", 0)
    assert shown.shape == (*SIZE, 3)
    assert (shown[4, 4:24] != 255).any(1).all()
    pose = {"file": "a", "keypoints": [[10, 12], None]}
    path = written(tmp_path / "poses.jsonl", pose)
    shown = encoder_of([f"keypoints={path}"], Keypoints(num_points=2)).preview("keypoints", 0)
    assert (shown[12, 10] != 255).any()
    assert (shown[0] == 255).all()
