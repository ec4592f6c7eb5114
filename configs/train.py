"""Training recipes. Default and only one so far: `world`.

`world` learns a few small worlds from scratch on two CPU cores in about five
minutes, at 32 px:

  python -m odin_jax.train --config=configs/train.py:world \
    --records=DIR --workdir=DIR

On six procedural worlds of 24 s (2870 pairs), sampled with 10 DDIM steps, the
checkpoint of step 1500 reached 19.4 dB PSNR and 0.39 SSIM on held-out frames
(`copy` 15.9 dB, 0.14; `mean` 17.3 dB, 0.16; poses shuffled 16.6 dB) and 17.8 dB
on unseen worlds (`mean` 16.5 dB). The run took 485 seconds of CPU time.

Arguments after the recipe's name change it: `image_size_px`, `conditioning`
(`sweep`, `plucker` or `token`), `prediction` (`v`, `eps` or `x0`), and `runlocal`, which
shrinks everything so that a step takes milliseconds.
"""

import ml_collections

from configs import common


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
  """The config of a recipe; see the module's docstring."""
  recipe, values = common.parse_argument(
    argument,
    recipes=('world',),
    defaults=dict(
      image_size_px=32, conditioning='sweep', prediction='v', runlocal=False
    ),
  )
  if values['image_size_px'] < 4 or values['image_size_px'] % 4:
    raise ValueError(
      'image_size_px must be a multiple of 4, the side of a patch'
    )
  config = ml_collections.ConfigDict()
  config.recipe = recipe
  config.seed = 0
  config.steps = 1600
  config.batch_size = 32
  config.checkpoint_every = 500
  config.log_every = 10
  config.image_size_px = values['image_size_px']
  # Decoded pairs stay in memory: small images, few records.
  config.cache_records = True

  # Exact augmentations; each is applied to half of the examples. A mirrored
  # world is one world more to learn, which a short run has no time for.
  config.augment = dict(mirror=False, swap=True)

  config.autoencoder = dict(
    patch_px=4, channels=6, whitening=0.5, fit_images=1000
  )

  config.model = dict(
    conditioning=values['conditioning'],
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
      feedforward_factor=2,
    ),
  )

  config.diffusion = dict(
    # eps says nothing about x0 where no signal is left, so it gets a schedule
    # that leaves some: Stable Diffusion's.
    schedule='scaled_linear' if values['prediction'] == 'eps' else 'cosine',
    num_timesteps=1000,
    zero_terminal_snr=values['prediction'] != 'eps',
    prediction=values['prediction'],
    timestep_power=2.0,
    min_snr_gamma=0.0,
    mask_lambda=1.0,
    mask_auxiliary='log',
    condition_dropout=0.0,
    spacing='trailing',
  )

  config.optimizer = dict(
    learning_rate=2e-3,
    warmup_steps=100,
    weight_decay=0.01,
    b1=0.9,
    b2=0.99,
    max_gradient_norm=1.0,
  )
  config.ema_decay = 0.99

  # Devices along each mesh axis; data=-1 takes what the others leave.
  config.mesh = dict(data=-1, fsdp=1, tensor=1)

  if values['runlocal']:
    config.batch_size = 8
    config.model.unet.model_channels = 16
    config.model.unet.context_dim = 16
    config.model.unet.num_heads = 2
    config.model.unet.num_groups = 4
    config.model.fourier_bands = 2
    config.optimizer.warmup_steps = 5
  return config
