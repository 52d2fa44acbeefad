"""VQGAN: pixels to grids of codes and back (Esser et al. 2021, section 3.1), and its presets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tokenizer.gumbel_quantizer
import tokenizer.label_maps
import tokenizer.lookup_free
import tokenizer.vector_quantizers  # noqa: F401 - these register quantizers and modalities
from ops.checkpoint import fingerprint
from ops.config import ConfigError, UserError, to_json
from ops.precision import Precision, autocast, float32_products
from tokenizer.autoencoder import AutoencoderConfig, Decoder, Encoder
from tokenizer.modalities import ModalityConfig, check_channels, make_modality
from tokenizer.quantizers import QUANTIZERS, QuantizerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class VQGANConfig:
    """The network's architecture; its training losses are configured by LossConfig."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    modality: ModalityConfig = field(default_factory=ModalityConfig)
    quant_convs: bool = True
    """1x1 convolutions between latents and codes, as published weights have them; without them
    latent_channels must be code_dim"""

    def __post_init__(self) -> None:
        check_channels(self.modality, self.autoencoder.image_channels)
        if self.quantizer.kind not in QUANTIZERS:
            raise ConfigError(
                f"No quantizer {self.quantizer.kind!r}; there are {', '.join(QUANTIZERS)}."
            )
        latent_channels, code_dim = self.autoencoder.latent_channels, self.quantizer.code_dim
        if not self.quant_convs and latent_channels != code_dim:
            raise ConfigError(
                f"Without quant_convs latent_channels ({latent_channels}) must be code_dim "
                f"({code_dim})."
            )

    def with_modality(self, modality: ModalityConfig) -> VQGANConfig:
        """The same network for another modality, with as many image channels as that has."""
        channels = make_modality(modality).channels
        autoencoder = dataclasses.replace(self.autoencoder, image_channels=channels)
        return dataclasses.replace(self, autoencoder=autoencoder, modality=modality)

    @property
    def codebook_size(self) -> int:
        return self.quantizer.codebook_size

    @property
    def downsample_factor(self) -> int:
        return self.autoencoder.downsample_factor


NO_CODE = -1
NOT_FINITE = (
    "its latents are nan or infinite: the tokenizer's weights, or the precision it runs in, are at "
    "fault. Use another tokenizer or device."
)


class NonFiniteLatentsError(UserError):
    """Latents that are not finite have no code."""


class Reconstruction(NamedTuple):
    """The result of a training forward."""

    pixels: Tensor  # (B, C, H, W), not clamped
    codes: Tensor  # (B, h, w) int64
    quantizer_loss: Tensor  # scalar


class VQGAN(nn.Module):
    """Encoder, quantizer and decoder; `name` and `folder` tell where it was loaded from."""

    def __init__(self, config: VQGANConfig, name: str = "") -> None:
        super().__init__()
        self.config = config
        self.modality = make_modality(config.modality)
        self.name = name
        self.folder: Path | None = None
        self.encoder = Encoder(config.autoencoder)
        self.pre_quant: nn.Module = nn.Identity()
        self.quantizer = QUANTIZERS[config.quantizer.kind](config.quantizer)
        self.post_quant: nn.Module = nn.Identity()
        self.decoder = Decoder(config.autoencoder)
        if config.quant_convs:
            channels, code_dim = config.autoencoder.latent_channels, config.quantizer.code_dim
            self.pre_quant = nn.Conv2d(channels, code_dim, 1)
            self.post_quant = nn.Conv2d(code_dim, channels, 1)

    def encode(
        self, pixels: Tensor, *, check: bool = True, precision: Precision = "float32"
    ) -> Tensor:
        """Codes (B, h, w) int64 for pixels (B, 3, H, W) in [-1, 1]; h = ceil(H / f).

        Sizes not divisible by f are padded by reflection on the right and below.
        Raises ConfigError for pixels of another shape or dtype, NonFiniteLatentsError for latents
        that are not finite. Without `check`, such a cell has the code NO_CODE, and a GPU is not
        waited for. With the precision bfloat16 the encoder runs in it; the nearest code is always
        searched in float32.
        """
        self._check_pixels(pixels)
        # The same image must give the same codes inside autocast, too.
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            with autocast(pixels.device, precision):
                latents = self.pre_quant(
                    self.encoder(pad_to_multiple(pixels, self.config.downsample_factor))
                )
            latents = latents.float()
            finite = latents.isfinite().all(dim=1)  # else it would get some code without a word
            with float32_products(pixels.device):
                codes = self.quantizer.assign(latents).where(finite, NO_CODE)
        if check:
            check_finite(codes)
        return codes

    def decode(
        self, codes: Tensor, size: tuple[int, int] | None = None, *, check: bool = True
    ) -> Tensor:
        """Pixels (B, 3, h*f, w*f) for codes (B, h, w), cropped to size (H, W); never clamped.

        Raises ConfigError for a code outside the codebook. Without `check` there must be none, and
        a GPU is not waited for.
        """
        if check:
            self.check_codes(codes)
        pixels = self.decode_latents(self.quantizer.lookup(codes))
        return pixels if size is None else pixels[:, :, : size[0], : size[1]]

    def check_codes(self, codes: Tensor) -> None:
        """Raise ConfigError for a code outside the codebook; waits for a GPU once."""
        if not codes.numel():
            return
        lowest, highest = torch.stack(codes.aminmax()).tolist()
        if lowest < 0 or highest >= self.config.codebook_size:
            raise ConfigError(
                f"Codes from {lowest} to {highest}, but the codebook has "
                f"{self.config.codebook_size}. Were they made by another tokenizer?"
            )

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, h*f, w*f) for quantized latents (B, D, h, w)."""
        latents = latents.to(self.decoder.conv_in.weight.dtype)
        pixels: Tensor = self.decoder(self.post_quant(latents))
        return pixels

    def forward(self, pixels: Tensor) -> Reconstruction:
        """Reconstruct pixels (B, C, H, W), H and W divisible by f, with gradients."""
        latents = self.pre_quant(self.encoder(pixels))
        with float32_products(pixels.device):
            quantized = self.quantizer(latents.float())
        return Reconstruction(
            self.decode_latents(quantized.latents), quantized.codes, quantized.loss
        )

    @property
    def fingerprint(self) -> str:
        """16 hex digits of what decides the codes; training the decoder further keeps it."""
        config = to_json(self.config)
        if self.config.modality == ModalityConfig():  # as before there were other modalities
            del config["modality"]
        # These do not decide the codes, or (mid_attention) show in the tensors' names.
        for name in ("decoder_res_blocks", "decoder_channels", "mid_attention", "dropout"):
            del config["autoencoder"][name]
        deciding_fields = ("kind", "codebook_size", "code_dim", "levels")
        config["quantizer"] = {name: config["quantizer"][name] for name in deciding_fields}
        prefixes = ("encoder.", "pre_quant.", "quantizer.")
        tensors = {k: v for k, v in self.named_parameters() if k.startswith(prefixes)}
        return fingerprint(config, tensors)

    def _check_pixels(self, pixels: Tensor) -> None:
        channels = self.config.autoencoder.image_channels
        if pixels.ndim != 4 or pixels.shape[1] != channels or not pixels.is_floating_point():
            raise ConfigError(
                f"encode takes float pixels (B, {channels}, H, W) in [-1, 1], found "
                f"{pixels.dtype} {tuple(pixels.shape)}. See ops.images.to_pixels."
            )


def check_finite(codes: Tensor) -> None:
    """Raise NonFiniteLatentsError where a code is NO_CODE; waits for a GPU once."""
    if (codes == NO_CODE).any():
        raise NonFiniteLatentsError(NOT_FINITE)


def pad_to_multiple(pixels: Tensor, factor: int) -> Tensor:
    """Pixels (B, C, H, W) padded right and below to multiples of `factor`, by reflection.

    An image too small to reflect is padded by repeating its last row and column.
    """
    height, width = pixels.shape[-2:]
    below, right = -height % factor, -width % factor
    if not (below or right):
        return pixels
    mode = "reflect" if below < height and right < width else "replicate"
    return F.pad(pixels, (0, right, 0, below), mode=mode)


PRESETS: dict[str, VQGANConfig] = {
    # Trains in minutes: for tests and first steps.
    "tiny": VQGANConfig(
        autoencoder=AutoencoderConfig(
            channels=32, channel_mult=(1, 2), num_res_blocks=1, decoder_res_blocks=1,
            attention_levels=(), mid_block=False, latent_channels=64, norm="channel", patch_size=4,
        ),
        quantizer=QuantizerConfig(kind="vq", codebook_size=256, code_dim=8),
    ),
    # One design at f = 4, 8 and 16, compared in pipelines/studies: a level more for each factor of
    # two, as in the paper.
    **{
        f"study-f{2 ** len(mult)}": VQGANConfig(
            autoencoder=AutoencoderConfig(
                channels=32, channel_mult=mult, num_res_blocks=1, decoder_res_blocks=1,
                attention_levels=(), mid_block=False, latent_channels=64, norm="channel",
                patch_size=2,
            ),
            quantizer=QuantizerConfig(kind="vq", codebook_size=512, code_dim=8),
        )
        for mult in ((1, 2), (1, 2, 2), (1, 2, 2, 2))
    },
    # The bundled tokenizer: local (exact tiles), wide where the resolution is low, FSQ levels from
    # the FSQ paper's table for about 2**14 codes.
    "photo-f8": VQGANConfig(
        autoencoder=AutoencoderConfig(
            channels=96, channel_mult=(1, 2), num_res_blocks=3, decoder_res_blocks=4,
            decoder_channels=128, attention_levels=(), mid_block=False, latent_channels=5,
            norm="channel", patch_size=4,
        ),
        quantizer=QuantizerConfig(
            kind="fsq", codebook_size=15360, code_dim=5, levels=(8, 8, 8, 6, 5)
        ),
        quant_convs=False,
    ),
    # The paper's f16 networks for ImageNet (Esser et al. 2021, table 5; published configs).
    "imagenet-f16-1024": VQGANConfig(),
    "imagenet-f16-16384": VQGANConfig(quantizer=QuantizerConfig(codebook_size=16384)),
    # FacesHQ (FFHQ and CelebA-HQ): the same network (published config).
    "faces-f16": VQGANConfig(),
    # The paper's comparison without discriminator and perceptual loss (van den Oord et al. 2017):
    # the same network; the recipe of that name leaves them out.
    "vqvae-f16": VQGANConfig(),
    # Open Images with Gumbel-softmax (published config): a very small KL term, and a temperature
    # that falls from 0.9 to almost 0 within a million steps.
    "f8-8192-gumbel": VQGANConfig(
        autoencoder=AutoencoderConfig(channel_mult=(1, 1, 2, 4), attention_levels=(3,)),
        quantizer=QuantizerConfig(
            kind="gumbel", codebook_size=8192, temperature=0.9, final_temperature=1e-6,
            temperature_steps=1_000_001, kl_weight=1e-8, kl_steps=1,
        ),
    ),
    # Low-dimensional codes for latent diffusion (Rombach et al. 2022, table 8, vq-f8 and vq-f4).
    "f8-16384": VQGANConfig(
        autoencoder=AutoencoderConfig(
            channel_mult=(1, 2, 2, 4), attention_levels=(3,), latent_channels=4
        ),
        quantizer=QuantizerConfig(codebook_size=16384, code_dim=4),
    ),
    "f4-8192": VQGANConfig(
        autoencoder=AutoencoderConfig(
            channel_mult=(1, 2, 4), attention_levels=(), latent_channels=3
        ),
        quantizer=QuantizerConfig(codebook_size=8192, code_dim=3),
    ),
    # LlamaGen (Sun et al. 2024, section 2.1): l2-normalised codes of 8 dimensions.
    "llamagen-f16": VQGANConfig(
        quantizer=QuantizerConfig(kind="l2", codebook_size=16384, code_dim=8),
    ),
    "llamagen-f8": VQGANConfig(
        autoencoder=AutoencoderConfig(channel_mult=(1, 2, 2, 4), attention_levels=(3,)),
        quantizer=QuantizerConfig(kind="l2", codebook_size=16384, code_dim=8),
    ),
}  # fmt: skip
