"""The sections of bench_gpu.py: each is a function that yields rows of figures."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bench_encode import make_images
from gpu_measures import (
    copy_tb,
    matmul_tflops,
    peak_gib,
    profiled,
    reset_memory,
    seconds_of,
    synchronize,
)
from torch import Tensor

from ops.precision import PRECISIONS, Precision, autocast, use_precision
from ops.ranks import ALONE
from pipelines import encode
from pipelines.encoding.forward import EncoderForward
from pipelines.recipes import PRIOR_RECIPES, TOKENIZER_RECIPES
from pipelines.store import CodeStore
from pipelines.training.loop import TrainTask
from pipelines.training.parallel import ParallelConfig
from pipelines.training.prior_task import PriorTask
from pipelines.training.tokenizer_task import TokenizerTask
from prior import Conditions, Prior, StartOfSequence, condition_sizes, make_model, preset_config
from tokenizer import VQGAN, build_tokenizer, load_tokenizer, save_tokenizer

Row = dict[str, Any]
NEVER = 10**9
CODEBOOK_SIZE = 1024
#: Floating-point operations of the paper's f16 encoder for an image of 256x256 (a multiply and an
#: add are two), and the rate that the design takes a card to reach: encoding takes at least
#: ENCODE_FLOP / FLOOR_RATE seconds an image.
ENCODE_FLOP = 138.6e9
FLOOR_RATE = 400e12


@dataclass(frozen=True)
class Setting:
    """Where the sections run, and whether at their smallest size."""

    device: torch.device
    small: bool

    def size(self, full: int, small: int) -> int:
        return small if self.small else full

    def name(self, full: str, small: str) -> str:
        return small if self.small else full


@dataclass(frozen=True)
class Section:
    """A section, and the seconds after which it is stopped."""

    run: Callable[[Setting], Iterator[Row]]
    seconds: float


def row(what: str, **figures: Any) -> Row:
    return {"what": what, "figures": figures}


@contextmanager
def precise(precision: Precision, setting: Setting) -> Iterator[None]:
    """Compute the body in a precision; float32 afterwards."""
    use_precision(precision)
    try:
        with autocast(setting.device, precision):
            yield
    finally:
        use_precision("float32")


def noise_images(count: int, size: int, channels: int = 3) -> Tensor:
    """Noise of several scales in [-1, 1], (count, channels, size, size), the same each time."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(count, channels, size, size)
    for side in (4, 16, size):
        coarse = torch.randn(count, channels, side, side, generator=generator)
        total += F.interpolate(coarse, (size, size), mode="bilinear") / side**0.25
    return total.div(1.5).tanh()


# Ceilings


def ceilings(setting: Setting) -> Iterator[Row]:
    """What the card can do at most: the rates that all others are to be compared with."""
    side = setting.size(8192, 64)
    yield row("copy", tb_s=copy_tb(setting.device, setting.size(1 << 30, 1 << 12)))
    for precision in ("float32", "tf32"):
        use_precision(precision)
        rate = matmul_tflops(torch.float32, setting.device, side)
        yield row(f"matrix product, {precision}", tflops=rate)
    use_precision("float32")
    rate = matmul_tflops(torch.bfloat16, setting.device, side)
    yield row("matrix product, bfloat16", tflops=rate)


# Encoding and decoding


def encoding(setting: Setting) -> Iterator[Row]:
    """The paper's f16 network in each precision, by memory format, and compiled as encode does."""
    model = build_tokenizer(setting.name("imagenet-f16-1024", "tiny"), seed=0).to(setting.device)
    size = setting.size(256, 32)
    pixels = noise_images(setting.size(64, 2), size).to(setting.device)
    reference = encode_plainly("float32", model.eval())(pixels)
    for precision in PRECISIONS:
        call = encode_plainly(precision, model)
        yield encode_row(f"f16 encode, {precision}", call, pixels, reference, setting)
    if not setting.small:  # compiling takes a minute each
        for precision in ("tf32", "bfloat16"):
            use_precision(precision)
            call = EncoderForward(model, precision, {(size, size)})
            yield encode_row(f"f16 encode, {precision}, compiled", call, pixels, reference, setting)
    model.to(memory_format=torch.channels_last)
    ordered = pixels.to(memory_format=torch.channels_last)
    for precision in ("tf32", "bfloat16"):
        what = f"f16 encode, {precision}, channels_last"
        yield encode_row(what, encode_plainly(precision, model), ordered, reference, setting)
    use_precision("float32")


def encode_plainly(precision: Precision, model: VQGAN) -> Callable[[Tensor], Tensor]:
    """The model's own encode, in a precision that is set for the process."""
    use_precision(precision)
    return partial(model.encode, check=False, precision=precision)


@torch.inference_mode()
def encode_row(
    what: str, call: Callable[[Tensor], Tensor], pixels: Tensor, reference: Tensor, setting: Setting
) -> Row:
    """Rate of encoding, its ratio to the floor, and the share of codes that equal `reference`."""
    start = time.perf_counter()
    codes = call(pixels)
    synchronize(setting.device)
    first = time.perf_counter() - start
    reset_memory(setting.device)
    each = seconds_of(lambda: call(pixels), setting.device) / len(pixels)
    found = profiled(lambda: call(pixels), setting.device)
    return row(
        what,
        images_s=1 / each,
        times_the_floor=each * FLOOR_RATE / ENCODE_FLOP,
        tflops=ENCODE_FLOP / each / 1e12,
        codes_equal_float32=float((codes == reference).double().mean()),
        peak_gib=peak_gib(setting.device),
        kernels=found and found.kernels,
        longest=found and found.longest[:3],
        first_call_s=first,
    )


def decoding(setting: Setting) -> Iterator[Row]:
    """One image at a time, as generation decodes."""
    for name in ("photo-f8", setting.name("imagenet-f16-1024", "tiny")):
        bundled = name == "photo-f8"
        model = load_tokenizer(name) if bundled else build_tokenizer(name, seed=0)
        model = model.to(setting.device).eval()
        side = setting.size(1024, 32) // model.config.downsample_factor
        codes = torch.zeros(1, side, side, dtype=torch.int64, device=setting.device)
        for precision in PRECISIONS:
            with torch.inference_mode(), precise(precision, setting):
                reset_memory(setting.device)
                seconds = seconds_of(partial(model.decode, codes), setting.device)
            pixels = (side * model.config.downsample_factor) ** 2
            yield row(
                f"{name} decode, {precision}",
                megapixels_s=pixels / seconds / 1e6,
                peak_gib=peak_gib(setting.device),
            )


def encode_command(setting: Setting) -> Iterator[Row]:
    """The whole command on JPEG files, twice: rate and whether the bytes are the same."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save_tokenizer(root / "f16", build_tokenizer(setting.name("imagenet-f16-1024", "tiny")))
        make_images(root / "images", setting.size(2048, 3))
        digests = []
        for turn in (1, 2):
            out = root / f"{turn}.zarr"
            flags = ["--in", root / "images", "--out", out, "--tokenizer", root / "f16"]
            start = time.perf_counter()
            code = encode.main([*map(str, flags), "--device", setting.device.type])
            seconds = time.perf_counter() - start
            digests.append(code == 0 and digest(out))
            images = len(CodeStore.open(out))
            yield row(f"encode command, run {turn}", images_s=images / seconds, seconds=seconds)
        yield row("encode command", same_bytes=bool(digests[0]) and digests[0] == digests[1])


def digest(store: Path) -> str:
    """A hash of all shards of a store."""
    found = hashlib.sha256()
    for path in sorted(store.glob("g*/image/c/*/0/0")):
        found.update(path.read_bytes())
    return found.hexdigest()


# Sampling


def prior_of(preset: str, window: int, setting: Setting) -> Prior:
    """An untrained, unconditional prior over 1,024 codes."""
    torch.manual_seed(0)
    conditions = Conditions([StartOfSequence()], CODEBOOK_SIZE)
    config = preset_config(preset, **condition_sizes(preset, conditions, window))
    return Prior(make_model(config).to(setting.device).eval(), conditions, {})


def sampling(setting: Setting) -> Iterator[Row]:
    """64x64 codes by windows of 16, half a window a step: batches, static or plain."""
    prior = prior_of(setting.name("large", "study"), setting.size(16, 4), setting)
    side = setting.size(64, 6)
    yield from sampling_rows("large, 64x64, stride 8", prior, side, setting)


def local_sampling(setting: Setting) -> Iterator[Row]:
    """The same canvas by a neighbourhood prior."""
    prior = prior_of(setting.name("large-local", "study-local"), setting.size(16, 4), setting)
    yield from sampling_rows("large-local, 64x64", prior, setting.size(64, 6), setting)


def sampling_rows(what: str, prior: Prior, side: int, setting: Setting) -> Iterator[Row]:
    for batch, static, precision in (
        (1, True, "bfloat16"),
        (8, True, "bfloat16"),
        (64, True, "bfloat16"),
        (8, True, "float32"),
        (8, False, "bfloat16"),
    ):
        batch = min(batch, setting.size(64, 2))
        kind = "static" if static else "plain"
        sample = partial(
            prior.sample, side, side, count=batch, batch_size=batch, seed=0,
            static_decode=static, precision=precision,
        )  # fmt: skip
        start = time.perf_counter()
        sample()
        first = time.perf_counter() - start
        reset_memory(setting.device)
        seconds = seconds_of(sample, setting.device, rounds=1, warm_up=0)
        kernels = profiled(sample, setting.device) if batch == 1 else None
        yield row(
            f"{what}, batch {batch}, {kind}, {precision}",
            codes_s=batch * side * side / seconds,
            seconds=seconds,
            first_s=first,
            peak_gib=peak_gib(setting.device),
            kernels_a_code=kernels and kernels.kernels / side**2,
            busy=kernels and kernels.kernel_seconds / seconds,
        )


# Training


def prior_task(preset: str, window: int, batch: int, setting: Setting, **more: Any) -> PriorTask:
    recipe = replace(PRIOR_RECIPES[preset], window=window, batch_size=batch)
    conditions = Conditions([StartOfSequence()], CODEBOOK_SIZE)
    torch.manual_seed(0)
    sizes = condition_sizes(recipe.preset, conditions, window)
    model = make_model(preset_config(recipe.preset, **sizes, dropout=recipe.dropout))
    return PriorTask(
        model,
        conditions,
        build_tokenizer("tiny", seed=0),
        {"fingerprint": "0" * 16},
        recipe,
        steps=1000,
        seed=0,
        held_out=[],
        device=setting.device,
        parallel_config=ParallelConfig(precision="bfloat16", **more),
    )


def code_batch(task: PriorTask) -> dict[str, Tensor]:
    """Codes that repeat, so that there is something to learn."""
    batch, window = task.recipe.batch_size, task.recipe.window
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(CODEBOOK_SIZE, (batch, 1, window), generator=generator)
    return {
        "codes": rows.expand(-1, window, -1).contiguous(),
        "label": torch.full((batch,), -1),
        "place": torch.tensor([0, 0, window, window]).repeat(batch, 1),
        "true_edges": torch.ones(batch, 3, dtype=torch.bool),
    }


def prior_training(setting: Setting) -> Iterator[Row]:
    """305 M weights on windows of 16x16."""
    preset, window = setting.name("large", "tiny"), setting.size(16, 4)
    for batch, compiled, recompute in ((32, False, False), (32, True, False), (128, True, True)):
        batch = setting.size(batch, 2)
        flags = {"compile": compiled and not setting.small, "recompute": recompute}
        task = prior_task(preset, window, batch, setting, **flags)
        how = "".join(f", {name}" for name, on in flags.items() if on)
        yield training_row(f"{preset}, batch {batch}{how}", task, setting)
        if batch == 32:
            yield checkpoint_row(f"{preset}, checkpoint", task)


def local_training(setting: Setting) -> Iterator[Row]:
    """Neighbourhood attention by flex_attention, compiled."""
    for preset, batch in (("tiny-local", 8), ("base-local", 16)):
        preset = setting.name(preset, "tiny-local")
        flags = {"compile": not setting.small}
        batch = setting.size(batch, 1)
        task = prior_task(preset, setting.size(32, 14), batch, setting, **flags)
        yield training_row(f"{preset}, 32x32, batch {batch}", task, setting)


def training_row(what: str, task: PriorTask, setting: Setting) -> Row:
    """Steps in the task's own precision; model_tflops counts 6 operations a weight and code."""
    batch = code_batch(task)
    step = steps_of(task, batch)
    start = time.perf_counter()
    step()
    synchronize(setting.device)
    first = time.perf_counter() - start
    reset_memory(setting.device)
    seconds = seconds_of(step, setting.device, rounds=setting.size(20, 1))
    found = profiled(step, setting.device)
    weights = sum(parameter.numel() for parameter in task.model.parameters())
    codes = batch["codes"].numel()
    return row(
        f"training, {what}",
        weights_m=weights / 1e6,
        codes_s=codes / seconds,
        model_tflops=6 * weights * codes / seconds / 1e12,
        peak_gib=peak_gib(setting.device),
        kernels_a_step=found and found.kernels,
        busy=found and found.kernel_seconds / seconds,
        first_step_s=first,
        loss=float(step()["loss"]),
    )


def steps_of(task: TrainTask[Any], batch: Any) -> Callable[[], Mapping[str, Tensor]]:
    """A function that takes the next step, always on the same batch; returns its metrics."""
    numbers = count()

    def step() -> Mapping[str, Tensor]:
        number = next(numbers)
        return task.train_step(task.prepare(batch, number), number)

    return step


def checkpoint_row(what: str, task: PriorTask) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step"
        path.mkdir()
        start = time.perf_counter()
        write = task.snapshot()
        copied = time.perf_counter()
        write(path, ALONE)
        saved = time.perf_counter()
        task.load(path)
        loaded = time.perf_counter()
        return row(what, copy_s=copied - start, save_s=saved - start, load_s=loaded - saved)


def tokenizer_training(setting: Setting) -> Iterator[Row]:
    """The f16 network with its discriminator, and the compiled step at which that starts."""
    recipe = TOKENIZER_RECIPES[setting.name("imagenet-f16", "tiny")]
    batch, side = setting.size(16, 2), setting.size(256, 32)
    for what, start in (("before the discriminator", NEVER), ("with the discriminator", 0)):
        losses = replace(recipe.losses, perceptual="none", adversarial_start=start)
        changed = replace(recipe, losses=losses, batch_size=batch, crop_size=side)
        task = tokenizer_task(changed, setting, compiled=not setting.small)
        step = steps_of(task, noise_images(batch, side))
        reset_memory(setting.device)
        seconds = seconds_of(step, setting.device, rounds=setting.size(5, 1))
        found = profiled(step, setting.device)
        yield row(
            f"training, {recipe.preset}, batch {batch}, {what}",
            images_s=batch / seconds,
            peak_gib=peak_gib(setting.device),
            kernels_a_step=found and found.kernels,
        )


def tokenizer_task(recipe: Any, setting: Setting, compiled: bool) -> TokenizerTask:
    torch.manual_seed(0)
    held_out = noise_images(1, recipe.crop_size)
    model = build_tokenizer(recipe.preset)
    how = ParallelConfig(compile=compiled, precision="bfloat16")
    return TokenizerTask(model, recipe, 1000, held_out, setting.device, how)


#: The sections that say most come first.
SECTIONS = {
    "ceilings": Section(ceilings, 40),
    "encoding": Section(encoding, 120),
    "sampling": Section(sampling, 120),
    "prior_training": Section(prior_training, 120),
    "encode_command": Section(encode_command, 90),
    "local_sampling": Section(local_sampling, 90),
    "decoding": Section(decoding, 40),
    "tokenizer_training": Section(tokenizer_training, 90),
    "local_training": Section(local_training, 90),
}
