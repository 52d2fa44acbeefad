"""Whole training runs by name. Each entry says what it is for, where it ran and what it reached.

A recipe is everything that decides a run but data and seed; flags of the trainers override single
fields. `python -m pipelines.train_tokenizer RECIPE`, `python -m pipelines.train_prior RECIPE`.
"""

from __future__ import annotations

import dataclasses

from pipelines.training import OptimizerConfig, PriorRecipe, TokenizerRecipe
from prior import LossSettings
from tokenizer import DiscriminatorConfig, LossConfig, ModalityConfig

PAPER_OPTIMIZER = OptimizerConfig(learning_rate=4.5e-6 * 96, betas=(0.5, 0.9), schedule="constant")
PAPER = TokenizerRecipe(
    preset="imagenet-f16-1024",
    losses=LossConfig(adversarial_start=250_001),
    optimizer=PAPER_OPTIMIZER,
    discriminator_optimizer=PAPER_OPTIMIZER,
    batch_size=96,
    crop_size=256,
    scale_range=(256, 256),
    steps=1_000_000,
    save_every=5000,
    sample_every=5000,
    log_every=100,
)
LLAMAGEN_OPTIMIZER = OptimizerConfig(learning_rate=1e-4, betas=(0.9, 0.95), schedule="constant")

# What pipelines/studies train: minutes a run on one core, with all steps a study needs.
STUDY = TokenizerRecipe(
    preset="study-f8",
    losses=LossConfig(l2_weight=2.0, perceptual="none", adversarial="none"),
    optimizer=OptimizerConfig(learning_rate=1e-3, betas=(0.5, 0.9)),
    batch_size=8,
    crop_size=96,
    steps=1200,
    save_every=300,
    sample_every=600,
    log_every=20,
)

TOKENIZER_RECIPES: dict[str, TokenizerRecipe] = {
    # The whole objective at the smallest size: every loss, the discriminator from step 200 on.
    # A few minutes on 2 cores; needs no download.
    "tiny": TokenizerRecipe(
        preset="tiny",
        losses=LossConfig(perceptual="none", adversarial_start=200, adversarial_ramp=100),
        optimizer=OptimizerConfig(learning_rate=1e-3, betas=(0.5, 0.9)),
        batch_size=8,
        steps=400,
        save_every=100,
        sample_every=100,
    ),
    # The bundled tokenizer: pixels only, since its training machine had no LPIPS backbone.
    # About an hour on 2 cores; 24.7 dB on held-out photographs, see its card under
    # tokenizer/weights/.
    "photo-f8": TokenizerRecipe(
        preset="photo-f8",
        losses=LossConfig(l1_weight=1.0, l2_weight=2.0, perceptual="none", adversarial="none"),
        optimizer=OptimizerConfig(learning_rate=2e-3, betas=(0.9, 0.99), warmup_steps=200),
        batch_size=8,
        crop_size=96,  # at 64, padding is so near that whole images came out 0.14 dB worse
        steps=4500,
        save_every=250,
        sample_every=500,
    ),
    # The study `downsampling`: the same steps over the same pixels for each f.
    "study-f4": dataclasses.replace(STUDY, preset="study-f4"),
    "study-f8": STUDY,
    "study-f16": dataclasses.replace(STUDY, preset="study-f16"),
    # The study `vqvae_vqgan`: squared error alone, and the paper's critic with its adaptive
    # weight. The critic is half as wide as the paper's, and joins after a quarter of the steps.
    "study-vqvae": dataclasses.replace(
        STUDY,
        losses=LossConfig(l1_weight=0.0, l2_weight=1.0, perceptual="none", adversarial="none"),
    ),
    "study-vqgan": dataclasses.replace(
        STUDY,
        losses=LossConfig(
            perceptual="none",
            adversarial_start=300,
            adversarial_ramp=100,
            discriminator=DiscriminatorConfig(channels=32),
        ),
    ),
    # The paper's ImageNet tokenizers (appendix, and published configs): constant rate, hinge
    # critic from step 250,001. Eight GPUs of 16 GB or more; not run here.
    "imagenet-f16": PAPER,
    "imagenet-f16-16384": dataclasses.replace(PAPER, preset="imagenet-f16-16384"),
    # FFHQ and CelebA-HQ (published config): the critic joins at step 30,001. Not run here.
    "faces-f16": dataclasses.replace(
        PAPER, preset="faces-f16", losses=LossConfig(adversarial_start=30_001), steps=300_000
    ),
    # What the paper compares with, VQ-VAE (van den Oord et al. 2017): the same network, data and
    # steps by squared error alone. Not run here.
    "vqvae-f16": dataclasses.replace(
        PAPER,
        preset="vqvae-f16",
        losses=LossConfig(l1_weight=0.0, l2_weight=1.0, perceptual="none", adversarial="none"),
    ),
    # Open Images by Gumbel-softmax, four times the codes of f16 (published config). Not run here.
    "f8-8192-gumbel": dataclasses.replace(PAPER, preset="f8-8192-gumbel"),
    # LlamaGen (Sun et al. 2024, section 3.1, and its training script): squared error, a fixed and
    # small adversarial weight from step 20,001, 40 epochs of ImageNet. Not run here.
    "llamagen-f16": dataclasses.replace(
        PAPER,
        preset="llamagen-f16",
        losses=LossConfig(
            l1_weight=0.0,
            l2_weight=1.0,
            adaptive=False,
            adversarial_weight=0.5,
            adversarial_start=20_001,
        ),
        optimizer=LLAMAGEN_OPTIMIZER,
        discriminator_optimizer=LLAMAGEN_OPTIMIZER,
        batch_size=128,
        steps=400_000,
    ),
    # Label maps at the smallest size: one-hot in, logits out, no critic. Minutes on 2 cores.
    "tiny-segmentation": TokenizerRecipe(
        preset="tiny",
        modality=ModalityConfig(kind="segmentation"),
        losses=LossConfig(reconstruction="cross_entropy", perceptual="none", adversarial="none"),
        optimizer=OptimizerConfig(learning_rate=1e-3, betas=(0.5, 0.9)),
        batch_size=8,
        steps=400,
        save_every=100,
        sample_every=100,
    ),
    # Depth at the smallest size: one channel, no critic. Minutes on 2 cores.
    "tiny-depth": TokenizerRecipe(
        preset="tiny",
        modality=ModalityConfig(kind="depth"),
        losses=LossConfig(l2_weight=2.0, perceptual="none", adversarial="none"),
        optimizer=OptimizerConfig(learning_rate=1e-3, betas=(0.5, 0.9)),
        batch_size=8,
        steps=400,
        save_every=100,
        sample_every=100,
    ),
    # The paper's label-map and depth tokenizers (appendix, and published configs): the ImageNet
    # network of 1,024 codes, each class's own yes or no, constant rate. One GPU; not run here.
    "segmentation-f16": TokenizerRecipe(
        preset="imagenet-f16-1024",
        modality=ModalityConfig(kind="segmentation"),
        losses=LossConfig(reconstruction="bce", perceptual="none", adversarial="none"),
        optimizer=OptimizerConfig(learning_rate=4.5e-6 * 12, betas=(0.5, 0.9), schedule="constant"),
        batch_size=12,
        crop_size=256,
        scale_range=(256, 296),
        steps=250_000,
        save_every=5000,
        sample_every=5000,
        log_every=100,
    ),
    "depth-f16": TokenizerRecipe(
        preset="imagenet-f16-1024",
        modality=ModalityConfig(kind="depth"),
        losses=LossConfig(perceptual="none", adversarial="none"),
        optimizer=OptimizerConfig(learning_rate=4.5e-6 * 12, betas=(0.5, 0.9), schedule="constant"),
        batch_size=12,
        crop_size=256,
        scale_range=(256, 256),
        steps=250_000,
        save_every=5000,
        sample_every=5000,
        log_every=100,
    ),
}

# One of a study's many: a quarter of tiny's weights.
STUDY_PRIOR = PriorRecipe(
    preset="study",
    optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.01, warmup_steps=50),
    init_from_codebook=True,
    steps=600,
    save_every=200,
    sample_every=600,
    log_every=20,
)

PRIOR_RECIPES: dict[str, PriorRecipe] = {
    # First pictures: 4 layers of 256 over windows of 16x16 codes; 6 minutes on 2 cores.
    "tiny": PriorRecipe(
        preset="tiny",
        optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.01, warmup_steps=50),
        init_from_codebook=True,
        steps=400,
        save_every=100,
        sample_every=200,
    ),
    # Those of pipelines/studies: the paper's transformer, the same with later systems' parts,
    # without windows, and the paper's baseline.
    "study": STUDY_PRIOR,
    "study-modern": dataclasses.replace(STUDY_PRIOR, preset="study-modern"),
    "study-local": dataclasses.replace(STUDY_PRIOR, preset="study-local", window=32, batch_size=2),
    "study-snail": dataclasses.replace(STUDY_PRIOR, preset="study-snail"),
    # The paper's convolutional baseline, as many weights as `tiny` has.
    "tiny-snail": PriorRecipe(
        preset="tiny-snail",
        optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.01, warmup_steps=50),
        init_from_codebook=True,
        steps=400,
        save_every=100,
        sample_every=200,
    ),
    # The same size without windows: every canvas in one cached forward a code. As long.
    "tiny-local": PriorRecipe(
        preset="tiny-local",
        optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.01, warmup_steps=50),
        window=32,
        init_from_codebook=True,
        batch_size=2,
        steps=400,
        save_every=100,
        sample_every=200,
    ),
    # One GPU, a day: 12 layers of 768, the size most comparisons use.
    "base": PriorRecipe(
        preset="base",
        optimizer=OptimizerConfig(learning_rate=3e-4, weight_decay=0.01, warmup_steps=1000),
        dropout=0.1,
        batch_size=64,
        steps=200_000,
        save_every=2000,
        sample_every=5000,
        log_every=50,
    ),
    # The same made as later systems make it, after LlamaGen (Sun et al. 2024). Not run here.
    "base-modern": PriorRecipe(
        preset="base-modern",
        optimizer=OptimizerConfig(learning_rate=3e-4, weight_decay=0.05, warmup_steps=1000),
        loss=LossSettings(z_loss_weight=1e-4),
        dropout=0.1,
        batch_size=64,
        steps=200_000,
        save_every=2000,
        sample_every=5000,
        log_every=50,
    ),
    # The base size without windows, for canvases of any size. Not run here.
    "base-local": PriorRecipe(
        preset="base-local",
        optimizer=OptimizerConfig(learning_rate=3e-4, weight_decay=0.05, warmup_steps=1000),
        loss=LossSettings(z_loss_weight=1e-4),
        window=32,
        dropout=0.1,
        batch_size=16,
        steps=200_000,
        save_every=2000,
        sample_every=5000,
        log_every=50,
    ),
    # The paper's GPT for faces and depth (24 layers of 1,024): AdamW (0.9, 0.95), decay 0.01.
    "large": PriorRecipe(
        preset="large",
        optimizer=OptimizerConfig(
            learning_rate=4.5e-6 * 32, weight_decay=0.01, schedule="constant"
        ),
        batch_size=32,
        steps=500_000,
        save_every=5000,
        sample_every=10_000,
        log_every=50,
    ),
}
