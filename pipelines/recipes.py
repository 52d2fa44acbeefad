"""Training recipes by name. Comments say what each is for, where it ran and what it reached.

A recipe decides everything of a run but data and seed; flags of the commands override single
fields. `python -m pipelines.train_tokenizer RECIPE`, `python -m pipelines.train_prior RECIPE`.
"""

from __future__ import annotations

from dataclasses import replace

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
# The published configs of label maps and depth maps: 12 images a step on one GPU.
PAPER_MAPS = replace(
    PAPER,
    losses=LossConfig(perceptual="none", adversarial="none"),
    optimizer=replace(PAPER_OPTIMIZER, learning_rate=4.5e-6 * 12),
    discriminator_optimizer=OptimizerConfig(betas=(0.5, 0.9), learning_rate=1e-4),
    batch_size=12,
    steps=250_000,
)
PIXELS_ONLY = LossConfig(l1_weight=0.0, l2_weight=1.0, perceptual="none", adversarial="none")
LLAMAGEN_OPTIMIZER = OptimizerConfig(learning_rate=1e-4, betas=(0.9, 0.95), schedule="constant")

# Of pipelines/studies: minutes a run on one core.
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

# The smallest size: a few minutes on 2 cores, without any download.
TINY = TokenizerRecipe(
    preset="tiny",
    losses=LossConfig(perceptual="none", adversarial_start=200, adversarial_ramp=100),
    optimizer=OptimizerConfig(learning_rate=1e-3, betas=(0.5, 0.9)),
    batch_size=8,
    steps=400,
    save_every=100,
    sample_every=100,
)

TOKENIZER_RECIPES: dict[str, TokenizerRecipe] = {
    # Every loss of the paper's objective but LPIPS, the discriminator from step 200 on.
    "tiny": TINY,
    # The bundled tokenizer's network, by pixel losses only. Its weights were
    # trained in two stages: see its card under tokenizer/weights/.
    "photo-f8": TokenizerRecipe(
        preset="photo-f8",
        losses=LossConfig(l1_weight=1.0, l2_weight=2.0, perceptual="none", adversarial="none"),
        optimizer=OptimizerConfig(learning_rate=2e-3, betas=(0.9, 0.99), warmup_steps=200),
        batch_size=8,
        crop_size=96,  # with 64, whole images were 0.14 dB worse, for the padding
        steps=4500,
        save_every=250,
        sample_every=500,
    ),
    # The study `downsampling`: the same steps on the same pixels for each f.
    "study-f4": replace(STUDY, preset="study-f4"),
    "study-f8": STUDY,
    "study-f16": replace(STUDY, preset="study-f16"),
    # The study `vqvae_vqgan`: squared error alone, and the paper's discriminator with its adaptive
    # weight. It is half as wide as the paper's, and starts after a quarter of the steps.
    "study-vqvae": replace(STUDY, losses=PIXELS_ONLY),
    "study-vqgan": replace(
        STUDY,
        losses=LossConfig(
            perceptual="none",
            adversarial_start=300,
            adversarial_ramp=100,
            discriminator=DiscriminatorConfig(channels=32),
        ),
    ),
    # The paper's ImageNet tokenizers (appendix, and published configs): constant rate, hinge
    # discriminator from step 250,001. Eight GPUs of 16 GB or more; not run here.
    "imagenet-f16": PAPER,
    "imagenet-f16-16384": replace(PAPER, preset="imagenet-f16-16384"),
    # FFHQ and CelebA-HQ (published config): the discriminator starts at step 30,001. Not run here.
    "faces-f16": replace(
        PAPER, preset="faces-f16", losses=LossConfig(adversarial_start=30_001), steps=300_000
    ),
    # The paper's baseline VQ-VAE (van den Oord et al. 2017): the same network, data and steps with
    # squared error alone. Not run here.
    "vqvae-f16": replace(PAPER, preset="vqvae-f16", losses=PIXELS_ONLY),
    # Open Images by Gumbel-softmax, four times the codes of f16 (published config). Not run here.
    "f8-8192-gumbel": replace(PAPER, preset="f8-8192-gumbel"),
    # LlamaGen (Sun et al. 2024, section 3.1, and its training script): squared error, a fixed and
    # small adversarial weight from step 20,001, 40 epochs of ImageNet. Not run here.
    "llamagen-f16": replace(
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
    # Label maps at the smallest size: one-hot in, logits out, no discriminator.
    "tiny-segmentation": replace(
        TINY,
        modality=ModalityConfig(kind="segmentation"),
        losses=LossConfig(reconstruction="cross_entropy", perceptual="none", adversarial="none"),
    ),
    # Depth at the smallest size: one channel, no discriminator.
    "tiny-depth": replace(
        TINY,
        modality=ModalityConfig(kind="depth"),
        losses=LossConfig(l2_weight=2.0, perceptual="none", adversarial="none"),
    ),
    # The paper's label-map and depth tokenizers (appendix, and published configs): the ImageNet
    # network of 1,024 codes; for label maps, binary cross entropy of each class. Not run here.
    "segmentation-f16": replace(
        PAPER_MAPS,
        modality=ModalityConfig(kind="segmentation"),
        losses=LossConfig(reconstruction="bce", perceptual="none", adversarial="none"),
        scale_range=(256, 296),
    ),
    "depth-f16": replace(PAPER_MAPS, modality=ModalityConfig(kind="depth")),
}

# Smaller than tiny, of pipelines/studies: a quarter of its weights.
STUDY_PRIOR = PriorRecipe(
    preset="study",
    optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.01, warmup_steps=50),
    init_from_codebook=True,
    steps=600,
    save_every=200,
    sample_every=600,
    log_every=20,
)

TINY_PRIOR = replace(
    STUDY_PRIOR, preset="tiny", steps=400, save_every=100, sample_every=200, log_every=10
)
BASE_PRIOR = PriorRecipe(
    preset="base",
    optimizer=OptimizerConfig(learning_rate=3e-4, weight_decay=0.01, warmup_steps=1000),
    dropout=0.1,
    batch_size=64,
    steps=200_000,
    save_every=2000,
    sample_every=5000,
    log_every=50,
)
MODERN_OPTIMIZER = replace(BASE_PRIOR.optimizer, weight_decay=0.05)
MODERN_LOSS = LossSettings(z_loss_weight=1e-4)

PRIOR_RECIPES: dict[str, PriorRecipe] = {
    # 4 layers of 256 over windows of 16x16 codes; 6 minutes on 2 cores.
    "tiny": TINY_PRIOR,
    # Those of pipelines/studies: the paper's transformer, one with the components of later models,
    # one with neighbourhood attention, and the paper's convolutional baseline.
    "study": STUDY_PRIOR,
    "study-modern": replace(STUDY_PRIOR, preset="study-modern"),
    "study-local": replace(STUDY_PRIOR, preset="study-local", window=32, batch_size=2),
    "study-snail": replace(STUDY_PRIOR, preset="study-snail"),
    # The paper's convolutional baseline, with as many weights as `tiny` has.
    "tiny-snail": replace(TINY_PRIOR, preset="tiny-snail"),
    # The size of `tiny` with neighbourhood attention: one cached forward pass a code on canvases of
    # any size. As long.
    "tiny-local": replace(TINY_PRIOR, preset="tiny-local", window=32, batch_size=2),
    # The bundled prior of the same name: ten classes of garments of 128x128 pixels. An hour on
    # one core with AMX.
    "clothing": PriorRecipe(
        preset="tiny-modern",
        optimizer=OptimizerConfig(
            learning_rate=1.2e-3, weight_decay=0.05, warmup_steps=200, ema_decay=0.998
        ),
        init_from_codebook=True,
        factorised="yes",
        batch_size=8,
        steps=5600,  # with 7,500 it overfits
        save_every=500,
        sample_every=1500,
        log_every=20,
    ),
    # The bundled prior of the same name, over a store with `--track low_res=4,artefacts`: enlarges
    # images four times. Two hours on one core with AMX.
    "photo-upscale4": PriorRecipe(
        preset="tiny-local",
        optimizer=OptimizerConfig(
            learning_rate=1.5e-3, weight_decay=0.02, warmup_steps=200, ema_decay=0.998
        ),
        window=32,
        init_from_codebook=True,
        factorised="yes",
        batch_size=2,
        steps=7500,  # it still learns
        save_every=500,
        sample_every=3000,
        log_every=20,
    ),
    # One GPU, a day: 12 layers of 768, the size most comparisons use.
    "base": BASE_PRIOR,
    # The same with components of later models, after LlamaGen (Sun et al. 2024). Not run here.
    "base-modern": replace(
        BASE_PRIOR, preset="base-modern", optimizer=MODERN_OPTIMIZER, loss=MODERN_LOSS
    ),
    # The base size with neighbourhood attention, for canvases of any size. Not run here.
    "base-local": replace(
        BASE_PRIOR,
        preset="base-local",
        optimizer=MODERN_OPTIMIZER,
        loss=MODERN_LOSS,
        window=32,
        batch_size=16,
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
