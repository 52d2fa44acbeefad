"""Tracks of codes: of files that are partners of the images, and of the images at low
resolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from ops.cache_folder import SHARDS, cache_folder
from ops.config import ConfigError
from ops.low_resolution import ARTEFACTS
from ops.paths import AnyPath, is_folder
from pipelines.encoding import NO_PARTNER, SEVERAL_PARTNERS
from pipelines.inputs import ByName, list_input
from pipelines.jobs import check_absolute
from pipelines.planning import Plan
from pipelines.store import code_dtype, local_tokenizer, tokenizer_path
from pipelines.tracks.plan import PARTNER, PARTNER_SCHEMA, FindPartners
from pipelines.tracks.track import NAMED, Track, TrackInput
from tokenizer import VQGAN, load_tokenizer

#: As the images were encoded; stores of earlier versions lack some.
FROM_IMAGES = (
    "batch_size", "threads", "convolution", "compile", "device", "precision", "torch",
)  # fmt: skip


def provenance_of(kind: str, tokenizer: VQGAN, images: dict[str, Any]) -> dict[str, Any]:
    """The provenance of a track of codes: its tokenizer's, and the rest as of the images."""
    return {
        "kind": kind,
        "tokenizer": tokenizer.name,
        "fingerprint": tokenizer.fingerprint,
        "codebook_size": tokenizer.config.codebook_size,
        "downsample_factor": tokenizer.config.downsample_factor,
        "dtype": code_dtype(tokenizer.config.codebook_size).name,
        "transform": images["transform"],
        **{name: images[name] for name in FROM_IMAGES if name in images},
    }


class FileTrack(Track):
    """Files of the images' names, cropped as the images are, in codes of the images' tokenizer or
    of another one."""

    def __init__(self, root: AnyPath, asked: TrackInput) -> None:
        super().__init__(root, asked)
        path = Path(asked.value)
        check_absolute({f"--track {self.name}": path})
        self.path = path.absolute()
        self.value = str(self.path)
        tokenizer = self._find_tokenizer(asked)
        factor = asked.image_tokenizer.config.downsample_factor
        if tokenizer.config.downsample_factor != factor:
            raise ConfigError(
                f"--track {self.name}: its tokenizer has downsample factor "
                f"{tokenizer.config.downsample_factor}, the images' {factor}, so their grids of "
                "codes would differ in size. Train one of the same factor."
            )
        self.check_same("fingerprint", tokenizer.fingerprint)
        self.modality = tokenizer.modality
        self._made_by = tokenizer
        # The images' own tokenizer is in the store already.
        if tokenizer.fingerprint != asked.image_tokenizer.fingerprint:
            self.tokenizer = tokenizer
        # In one chunk, since rows are taken of it for each task.
        self.files = list_input(self.path).table.combine_chunks()

    def _find_tokenizer(self, asked: TrackInput) -> VQGAN:
        kept = tokenizer_path(self.track_dir, self.name)
        if asked.tokenizer is not None:
            return load_tokenizer(asked.tokenizer)
        if is_folder(kept):
            return load_tokenizer(local_tokenizer(self.track_dir, cache_folder(SHARDS)))
        if self.own_tokenizer:
            raise ConfigError(
                f"--track {self.name}: which tokenizer makes codes of these? Name its folder with "
                f"--track-tokenizer {self.name}=DIR; train_tokenizer makes one (recipes "
                "tiny-segmentation and tiny-depth)."
            )
        return asked.image_tokenizer

    def provenance(self, images: dict[str, Any]) -> dict[str, Any]:
        if self.older is not None:
            return self.older
        made = provenance_of(self.modality.config.kind, self._made_by, images)
        resizing = f"pillow {self.modality.resampling.name.lower()}"
        decoding = f"{self.modality.noun}, orientation applied"
        transform = {**made["transform"], "decoding": decoding, "resizing": resizing}
        return {**made, "transform": transform}

    def partners(self, images: Plan) -> FindPartners:
        by_name = ByName(self.files["key"].to_pylist())
        keys = self.files["key"]

        def find(planned: pa.Table) -> pa.Table:
            found = [by_name.places(key) for key in planned["key"].to_pylist()]
            file = pa.array([one[0] if len(one) == 1 else None for one in found], pa.int64())
            partner = self.files.select(PARTNER).take(file)
            columns = {name: partner[name].to_pylist() for name in PARTNER}
            for row in np.flatnonzero(file.is_null().to_numpy(zero_copy_only=False)):
                several = ", ".join(keys[place].as_py() for place in found[row])
                etag = SEVERAL_PARTNERS if several else NO_PARTNER
                for name, value in zip(PARTNER, (several, None, 0, etag), strict=True):
                    columns[name][row] = value
            return pa.table(columns, schema=PARTNER_SCHEMA)

        return find

    def names(self) -> Sequence[str]:
        names: list[str] = self.files["key"].slice(0, NAMED).to_pylist()
        return names

    @property
    def reads(self) -> Mapping[str, AnyPath]:
        return {f"--track {self.name}": self.path}


class OwnTokenizerTrack(FileTrack):
    """Files that are no photographs, such as label maps and depth maps."""

    own_tokenizer: ClassVar[bool] = True


class LowResTrack(Track):
    """The images themselves, shrunk and enlarged again, in codes of the images' tokenizer."""

    def __init__(self, root: AnyPath, asked: TrackInput) -> None:
        super().__init__(root, asked)
        if asked.tokenizer is not None:
            raise ConfigError("--track low_res is encoded by the images' tokenizer: name no other.")
        ratio, _, more = asked.value.partition(",")
        if not ratio.isdigit() or int(ratio) < 2 or more not in ("", "artefacts"):
            raise ConfigError(
                f"--track low_res={asked.value}: give the ratio as a whole number from 2 on, and "
                "artefacts where the small images are to have noise and JPEG artefacts: low_res=4 "
                "is a quarter of the width and height, low_res=4,artefacts the same with them."
            )
        self.ratio, self.artefacts = int(ratio), ARTEFACTS if more else None
        self.check_same("ratio", self.ratio)
        self.check_same("artefacts", self.artefacts)
        self.images = asked.images
        self._made_by = asked.image_tokenizer

    def provenance(self, images: dict[str, Any]) -> dict[str, Any]:
        if self.older is not None:
            return self.older
        shrinking = "pillow box, rounded size; enlarged by pillow bicubic"
        made = provenance_of("low_res", self._made_by, images)
        made |= {"ratio": self.ratio, "shrinking": shrinking}
        return made | ({"artefacts": self.artefacts} if self.artefacts else {})

    def partners(self, images: Plan) -> FindPartners:
        return lambda planned: planned.select(PARTNER)

    @property
    def reads(self) -> Mapping[str, AnyPath]:
        return self.images
