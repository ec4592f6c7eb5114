"""Training recipes: `world`, the default, `multisphere` and `odin`.

`world` learns a few small worlds from scratch on two CPU cores in about five
minutes, at 32 px:

  python -m odin_jax.train --config=configs/train.py:world \
    --records=DIR --workdir=DIR

On six procedural worlds of 24 s (2870 pairs), sampled with 10 DDIM steps, the
checkpoint of step 1500 reached 19.4 dB PSNR and 0.39 SSIM on held-out frames
(`copy` 15.9 dB, 0.14; `mean` 17.3 dB, 0.16; poses shuffled 16.6 dB) and 17.8 dB
on unseen worlds (`mean` 16.5 dB). The run took 485 seconds of CPU time.

`multisphere` is small, too, and does what is left to do once the source has
been moved to where the target sees it (odin_jax/models/multisphere.py), at 128
px. It starts from the checkpoint that comes with the project, which some
hundred worlds have taught to see how far away things are:

  python -m odin_jax.train --config=configs/train.py:multisphere \
    --init=pretrained --records=DIR --workdir=DIR

`odin` is the model of the paper: the U-Net, autoencoder and image encoder of
Stable Diffusion's size at 256 px, for accelerators, from a checkpoint that
`odin_jax.port_weights` has taken in. Batch, learning rate, warm-up, dropout and
averaging are Zero-1-to-3's (2303.11328):

  python -m odin_jax.train --config=configs/train.py:odin,conditioning=zero123 \
    --init=PORTED --records=DIR --workdir=DIR

Arguments after the recipe's name change it; '' and 0 mean the recipe's own:

  image_size_px
  conditioning  parts of odin_jax/models/conditioning.py joined by +
  prediction    `v`, `eps` or `x0`
  runlocal      shrinks everything so that a step takes milliseconds; random
                encoders stand in for pretrained ones
"""

from typing import Any

import ml_collections
from ml_collections import config_dict

from configs import common


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
  """The config of a recipe; see the module's docstring."""
  recipe, values = common.parse_argument(
    argument,
    recipes=tuple(_RECIPES),
    defaults=dict(
      image_size_px=0, conditioning='', prediction='', runlocal=False
    ),
  )
  config = _common()
  config.recipe = recipe
  _RECIPES[recipe](config)
  if values['runlocal']:
    _SMALL[recipe](config)
  if values['image_size_px']:
    config.image_size_px = values['image_size_px']
  if values['conditioning']:
    config.model.conditioning = values['conditioning']
  _predict(config, values['prediction'] or config.diffusion.prediction)
  if config.image_size_px < 4 or config.image_size_px % _multiple_px(config):
    raise ValueError(
      f'image_size_px={config.image_size_px} must be a multiple of '
      f'{_multiple_px(config)}, which the encoder and the U-Net halve away'
    )
  return config


def _multiple_px(config: ml_collections.ConfigDict) -> int:
  """What the side of an image is divided by down to the U-Net's middle."""
  encoder = config.autoencoder
  networks = [config.model.unet]
  if 'spheres' in config.model:
    networks.append(config.model.spheres.network)
  halvings = max(len(network.channel_mult) for network in networks) - 1
  if encoder.kind == 'kl':
    return 2 ** (halvings + len(encoder.channel_mult) - 1)
  return encoder.patch_px * 2**halvings


def _predict(config: ml_collections.ConfigDict, prediction: str) -> None:
  diffusion = config.diffusion
  diffusion.prediction = prediction
  # eps says nothing about x0 where no signal is left; the others learn to start
  # from noise alone, and have to be sampled from there.
  diffusion.zero_terminal_snr = prediction != 'eps'
  if prediction != 'eps':
    diffusion.spacing = 'trailing'
  if config.recipe != 'odin':
    diffusion.schedule = 'scaled_linear' if prediction == 'eps' else 'cosine'


def _common() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.log_every = 10
  # Threads that make batches: more for accelerators that wait for input. On the
  # CPU the step itself wants the cores.
  config.num_workers = 1
  # Checkpoints: the newest ones, and those of every so many steps; 0: no more.
  config.max_to_keep = 2
  config.keep_period = 0
  # While the one before is still written a save waits, or is left out; the last
  # one of a run always waits.
  config.save_when_busy = 'wait'
  # A loss so many times the median of the last hundred ends the run; 0: none.
  config.max_loss_spike = 0.0
  # Steps between samples of held-out pairs; 0: none.
  config.sample_every = 0
  # Devices along each mesh axis; data=-1 takes what the others leave, and with
  # fsdp=-1, too, parameters are split over as many as divide a slice and 16.
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  # Parts that a batch is cut into, one after the other: less memory, and the
  # same step.
  config.accumulate_steps = 1
  # Of the kernels of the frozen encoders in memory and in checkpoints; `compute`
  # is config.dtype, which they are cast to in any case.
  config.encoders_dtype = 'float32'
  # Whether the encoders are split over fsdp too: less memory, and gathered in
  # every step.
  config.encoders_split = False
  # Random autoencoder and image encoder where no --init is given.
  config.random_encoders = False
  config.diffusion = dict(
    schedule='scaled_linear',
    num_timesteps=1000,
    zero_terminal_snr=False,
    prediction='',
    # The density of timesteps grows as t ** (power - 1).
    timestep_power=1.0,
    # Of the examples, those at the last timestep, where all is noise and the
    # best answer is the conditional mean.
    terminal_share=0.0,
    min_snr_gamma=0.0,
    # Squared errors of x0 weigh as those of v, up to this; 0: as they are.
    max_v_weight=0.0,
    # What keeps the motion mask from zero: `log` or `square` times lambda;
    # `none` trains without a mask.
    mask_lambda=1.0,
    mask_auxiliary='log',
    # Of one uniform r per example: r < 2 rate drops the tokens, rate <= r < 3
    # rate the channels of the source.
    condition_dropout=0.0,
    spacing='trailing',
  )
  # What pairs are drawn from a folder of panoramas; see
  # odin_jax/panoramas/choice.py. Of no effect on records of pairs.
  config.panoramas = dict(
    single_share=0.1,
    max_gap_s=5.0,
    far_share=0.1,
    max_baseline=4.0,
    min_fov_deg=80.0,
    max_fov_deg=100.0,
    max_pitch_deg=10.0,
    max_roll_deg=5.0,
    jitter_yaw_deg=20.0,
    jitter_pitch_deg=6.0,
    max_turn_deg=60.0,
    single_yaw_deg=45.0,
    single_pitch_deg=15.0,
    num_tries=8,
    preferred_overlap=0.5,
    min_overlap=0.2,
    min_coverage=0.5,
    max_masked_share=0.2,
  )
  # Which records of pairs are trained on, by what they say of themselves; None:
  # all. Gaps are between the two frames, errors one sigma.
  config.filters = dict(
    min_overlap=config_dict.placeholder(float),
    min_confidence=config_dict.placeholder(float),
    max_hops=config_dict.placeholder(float),
    min_gap_s=config_dict.placeholder(float),
    max_gap_s=config_dict.placeholder(float),
    max_rotation_error_deg=config_dict.placeholder(float),
    max_direction_error_deg=config_dict.placeholder(float),
  )
  config.mixture = dict(
    # Of several --records: how often each is taken, in their order, such as
    # 3,1. Without: as if their records lay in one folder.
    weights=(),
  )
  # Damaged records that each process may skip; one more stops it.
  config.max_corrupt_records = 0
  # Clipping is ours, and so is that vectors (biases, norms) do not decay;
  # Zero-1-to-3 does neither.
  config.optimizer = dict(
    # `adamw`; `adafactor`, next to no memory; or `muon`, for kernels.
    kind='adamw',
    learning_rate=1e-4,
    schedule='cosine',
    # The conditioning learns this many times as fast.
    conditioning_factor=1.0,
    warmup_steps=100,
    weight_decay=0.01,
    b1=0.9,
    b2=0.999,
    max_gradient_norm=1.0,
    # What gradients are summed in over examples and devices; `compute` is
    # config.dtype.
    gradient_sum_dtype='float32',
  )
  return config


# -- world ---------------------------------------------------------------------


def _world(config: ml_collections.ConfigDict) -> None:
  config.steps = 1600
  config.batch_size = 32
  config.checkpoint_every = 500
  config.image_size_px = 32
  config.dtype = 'float32'
  # Decoded pairs stay in memory: small images, few records.
  config.cache_records = True
  # Exact augmentations; each is applied to half of the examples. A mirrored
  # world is one world more to learn, which a short run has no time for.
  config.augment = dict(mirror=False, swap=True)
  config.autoencoder = dict(
    kind='pca', patch_px=4, channels=6, whitening=0.5, fit_images=1000
  )
  config.image_encoder = dict(kind='none')
  config.model = dict(
    conditioning='se3+rays+sweep',
    unscaled_source=False,
    sources=1,
    fourier_bands=4,
    # In scene units, where the median distance is 1.
    sweep_distances=(0.4, 0.7, 1.0, 1.5, 3.0),
    unet=dict(
      model_channels=96,
      channel_mult=(1,),
      num_res_blocks=1,
      attention_levels=(),
      transformer_depth=1,
      num_heads=4,
      context_dim=96,
      num_groups=24,
      # As diffusers has it, so that --export=diffusers can hold the model; 2 is
      # as good, and takes 4 to 5 % less CPU time.
      feedforward_factor=4,
      remat='none',
    ),
  )
  config.diffusion.prediction = 'v'
  config.diffusion.timestep_power = 2.0
  config.optimizer.learning_rate = 2e-3
  config.optimizer.b2 = 0.99
  config.ema_decay = 0.99


def _small_world(config: ml_collections.ConfigDict) -> None:
  config.batch_size = 8
  config.model.fourier_bands = 2
  config.model.unet.update(
    model_channels=16, context_dim=16, num_heads=2, num_groups=4
  )
  config.optimizer.warmup_steps = 5


# -- odin ----------------------------------------------------------------------


# The sizes are Stable Diffusion's and CLIP ViT-L/14's. They stand nowhere else:
# for what a public checkpoint does not say of itself, odin_jax.port_weights
# reads them here.
def _odin(config: ml_collections.ConfigDict) -> None:
  config.steps = 100_000
  config.batch_size = 1536
  config.checkpoint_every = 1000
  # The state is 13.8 GB: on chips of 16 GiB it has to be split.
  config.mesh.fsdp = -1
  config.encoders_dtype = 'compute'
  config.image_size_px = 256
  # Of the networks' arithmetic; parameters, norms and softmax are float32.
  config.dtype = 'bfloat16'
  config.cache_records = False
  config.num_workers = 8
  config.augment = dict(mirror=True, swap=True)
  config.autoencoder = dict(
    kind='kl',
    base_channels=128,
    channel_mult=(1, 2, 4, 4),
    num_res_blocks=2,
    latent_channels=4,
    num_groups=32,
    scale=0.18215,
  )
  config.image_encoder = dict(
    kind='clip',
    width=1024,
    num_layers=24,
    num_heads=16,
    patch_px=14,
    image_size_px=224,
    projection=768,
    hidden=4096,
  )
  config.model = dict(
    conditioning='clip+se3',
    # The source's latent without the factor `scale`, as Zero-1-to-3 has it.
    unscaled_source=True,
    # The most views that are given at once; training draws their number.
    sources=1,
    fourier_bands=0,
    sweep_distances=(0.4, 0.7, 1.0, 1.5, 3.0),
    unet=dict(
      model_channels=320,
      channel_mult=(1, 2, 4, 4),
      num_res_blocks=2,
      attention_levels=(0, 1, 2),
      transformer_depth=1,
      num_heads=8,
      context_dim=768,
      num_groups=32,
      feedforward_factor=4,
      remat='full',
    ),
  )
  config.diffusion.prediction = 'eps'
  config.diffusion.condition_dropout = 0.05
  config.diffusion.spacing = 'leading'
  config.optimizer.schedule = 'constant'
  config.optimizer.conditioning_factor = 10.0
  # Half of the bytes between chips.
  config.optimizer.gradient_sum_dtype = 'compute'
  config.ema_decay = 0.9999


def _small_odin(config: ml_collections.ConfigDict) -> None:
  config.steps = 20
  config.batch_size = 8
  config.image_size_px = 32
  config.cache_records = True
  config.random_encoders = True
  config.autoencoder.update(base_channels=8, num_groups=4)
  config.autoencoder.channel_mult = (1, 2)
  config.image_encoder.update(
    width=64, num_layers=2, num_heads=1, projection=16, hidden=128
  )
  config.image_encoder.update(patch_px=16, image_size_px=32)
  config.model.unet.update(
    model_channels=16, num_res_blocks=1, num_heads=2, context_dim=16
  )
  config.model.unet.update(num_groups=4, feedforward_factor=2)
  config.model.unet.channel_mult = (1, 2)
  config.model.unet.attention_levels = (1,)
  config.optimizer.warmup_steps = 5


# -- multisphere ---------------------------------------------------------------


def _multisphere(config: ml_collections.ConfigDict) -> None:
  config.steps = 300
  config.batch_size = 16
  config.checkpoint_every = 100
  config.image_size_px = 128
  config.dtype = 'float32'
  config.cache_records = True
  config.augment = dict(mirror=False, swap=True)
  config.autoencoder = dict(kind='pixels', patch_px=8, gain=0.5)
  config.image_encoder = dict(kind='none')
  network = dict(
    model_channels=96,
    channel_mult=(1,),
    num_res_blocks=1,
    attention_levels=(0,),
    transformer_depth=1,
    num_heads=4,
    context_dim=96,
    num_groups=8,
    feedforward_factor=2,
    remat='none',
  )
  config.model = dict(
    conditioning='se3+plucker',
    unscaled_source=False,
    sources=1,
    fourier_bands=4,
    sweep_distances=(0.4, 0.7, 1.0, 1.5, 3.0),
    spheres=dict(
      # Scene units; see odin_jax/models/multisphere.py.
      near=0.15,
      far=25.0,
      count=32,
      features=32,
      # Along a side of a patch: of each the noisy mean is what is denoised.
      noisy_cells=1,
      # Of the convolutions over the blended picture; 0: there are none.
      refiner=48,
      # Of the depth's cross-entropies, where records have depth.
      depth_weight=0.005,
      # Of LPIPS (AlexNet) where not all is noise, so that samples are sharp;
      # what is made of noise alone stays the conditional mean.
      perceptual_weight=0.03,
      network=dict(network),
    ),
    unet=dict(network),
  )
  config.diffusion.prediction = 'x0'
  config.diffusion.schedule = 'cosine'
  config.diffusion.timestep_power = 1.0
  config.diffusion.terminal_share = 0.6
  # odin_jax/README.md has what it is worth.
  config.optimizer.kind = 'muon'
  config.optimizer.learning_rate = 1.5e-3
  config.optimizer.max_gradient_norm = 0.1
  config.optimizer.b2 = 0.99
  config.ema_decay = 0.99


def _small_multisphere(config: ml_collections.ConfigDict) -> None:
  config.batch_size = 8
  config.image_size_px = 32
  config.autoencoder.patch_px = 4
  config.model.fourier_bands = 2
  config.model.spheres.count = 4
  config.model.spheres.features = 4
  config.model.spheres.refiner = 8
  config.model.spheres.perceptual_weight = 0.0
  for network in (config.model.unet, config.model.spheres.network):
    network.update(model_channels=16, context_dim=16, num_heads=2, num_groups=4)
    network.channel_mult = (1,)
    network.attention_levels = ()
  # Muon takes seconds to compile.
  config.optimizer.kind = 'adamw'
  config.optimizer.warmup_steps = 5


_RECIPES: dict[str, Any] = {
  'world': _world,
  'multisphere': _multisphere,
  'odin': _odin,
}
_SMALL: dict[str, Any] = {
  'world': _small_world,
  'multisphere': _small_multisphere,
  'odin': _small_odin,
}
