from pipelines.inputs.file_names import FileNames
from pipelines.inputs.listing import list_input
from pipelines.inputs.partners import paired, without_suffix


def folder_of(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x89PNG\r\n\x1a\n")
    return list_input(root).entries


def test_targets_get_the_key_of_their_image_and_keep_their_own_file(tmp_path):
    images = folder_of(tmp_path / "images", "lake/a.jpg", "lake/b.JPEG", "c.d.png")
    targets = folder_of(tmp_path / "maps", "lake/a.png", "lake/b.png", "c.d.tif", "left.png")
    found, lost = paired(images, targets)
    assert [entry.key for entry in found] == ["c.d.png", "lake/a.jpg", "lake/b.JPEG"]
    assert [entry.uri for entry in found] == [
        str(tmp_path / "maps" / name) for name in ("c.d.tif", "lake/a.png", "lake/b.png")
    ]
    assert lost == []


def test_images_without_a_target_or_with_several_are_returned_with_the_reason(tmp_path):
    images = folder_of(tmp_path / "images", "a.jpg", "b.jpg", "lake/c.jpg")
    targets = folder_of(tmp_path / "maps", "a.png", "a.tif", "c.png", "b.png")
    found, lost = paired(images, targets)
    assert [entry.key for entry in found] == ["b.jpg"]
    assert lost == [
        ("a.jpg", "several partners: a.png, a.tif"),
        ("lake/c.jpg", "no partner of the same name"),
    ]


def test_only_what_looks_like_a_suffix_is_left_out_of_a_name():
    for name, stem in {
        "lake/a.jpg": "lake/a", "a.JPEG": "a", "a.heic": "a", "v1.5": "v1.5", "v1.5.png": "v1.5",
        "shot 10.15.30": "shot 10.15.30", "lake.v2/a": "lake.v2/a", "a.b": "a.b", ".jpg": ".jpg",
        "x/.jpg": "x/.jpg",
    }.items():  # fmt: skip
        assert without_suffix(name) == stem


def test_names_with_dots_and_no_suffix_mean_their_own_image(tmp_path):
    images = folder_of(tmp_path / "images", "v1.png", "v1.5.png", "v1.6.png")
    names = FileNames(["v1", "v1.5", "v1.6"], [entry.key for entry in images])
    assert [names.of(entry.key).name for entry in images] == ["v1.5", "v1.6", "v1"]
    found, lost = paired(images, folder_of(tmp_path / "maps", "v1", "v1.5", "v1.6"))
    assert [entry.uri.rpartition("/")[2] for entry in found] == ["v1.5", "v1.6", "v1"]
    assert not lost
