"""Checkpoints as other projects publish them, with narrow random networks.

The networks are those of diffusers and transformers, every parameter random
and none zero. Files have the names, nesting and extras of the public ones.
"""

import argparse
import collections
import datetime
import json
import pathlib
import sys
import types
import typing

import diffusers
import numpy as np
import torch
import transformers

from odin_jax.porting import clip, tensors, unet, vae

# Written out, not taken from the code: what importing reads is held against it.
UNET = dict(
  in_channels=8,
  out_channels=4,
  model_channels=32,
  channel_mult=(1, 2),
  num_res_blocks=1,
  attention_levels=(0,),
  transformer_depth=1,
  num_heads=8,
  context_dim=32,
  num_groups=32,
  feedforward_factor=4,
)
VAE = dict(
  base_channels=32,
  channel_mult=(1, 2),
  num_res_blocks=1,
  latent_channels=4,
  num_groups=32,
  # Stable Diffusion's, which no checkpoint holds.
  scale=0.18215,
)
CLIP = dict(
  width=64,
  num_layers=2,
  num_heads=1,
  patch_px=14,
  image_size_px=28,
  projection=32,
  hidden=96,
)
# prefix and layout of a file of Zero-1-to-3, prefix in a folder of diffusers.
NETWORKS = {
  'unet': (unet, UNET, 'model.diffusion_model.', 'ldm', 'diffusers'),
  'vae': (vae, VAE, 'first_stage_model.', 'ldm', 'diffusers'),
  'image_encoder': (
    clip,
    CLIP,
    'cond_stage_model.model.visual.',
    'openai',
    'transformers',
  ),
}


def _randomise(module, generator):
  with torch.no_grad():
    for parameter in module.parameters():
      parameter.normal_(0, 0.05, generator=generator)
  return module.eval()


def networks(seed=0, *, in_channels=8):
  """The three networks in torch."""
  generator = torch.Generator().manual_seed(seed)
  settings = UNET | dict(in_channels=in_channels)
  return {
    'unet': _randomise(
      diffusers.UNet2DConditionModel.from_config(
        unet.diffusers_config(settings, sample_size=8)
      ),
      generator,
    ),
    'vae': _randomise(
      diffusers.AutoencoderKL.from_config(vae.diffusers_config(VAE)), generator
    ),
    'image_encoder': _randomise(
      transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(**clip.transformers_config(CLIP))
      ),
      generator,
    ),
  }


def arrays(module):
  """The state dict of a module."""
  return {name: x.numpy() for name, x in module.state_dict().items()}


def renamed(state, naming, settings, source, target):
  """A state dict of one layout in another."""
  params = {
    entry.path: tensors.to_flax(entry, state[entry.name])
    for entry in naming.entries(settings, source)
  }
  rows = collections.defaultdict(list)
  for entry in naming.entries(settings, target):
    rows[entry.name].append(entry)
  return {
    name: np.ascontiguousarray(
      tensors.to_torch(group, [params[entry.path] for entry in group])
    )
    for name, group in rows.items()
  }


def projection(pose_width, seed=5):
  """`cc_projection` for that many numbers of a pose."""
  generator = np.random.default_rng(seed)
  width = CLIP['projection']
  shapes = {'weight': (32, width + pose_width), 'bias': (32,)}
  return {
    f'cc_projection.{name}': generator.normal(0, 0.1, shape).astype(np.float32)
    for name, shape in shapes.items()
  }


def _extras():
  """What the public files hold beside the networks."""
  betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
  alphas = np.cumprod(1 - betas)
  schedule = {
    'betas': betas,
    'alphas_cumprod': alphas,
    'alphas_cumprod_prev': np.append(1, alphas[:-1]),
    'sqrt_alphas_cumprod': alphas**0.5,
    'sqrt_one_minus_alphas_cumprod': (1 - alphas) ** 0.5,
    'log_one_minus_alphas_cumprod': np.log(1 - alphas),
    'sqrt_recip_alphas_cumprod': alphas**-0.5,
    'sqrt_recipm1_alphas_cumprod': (1 / alphas - 1) ** 0.5,
    'posterior_variance': betas,
    'posterior_log_variance_clipped': np.log(betas),
    'posterior_mean_coef1': betas,
    'posterior_mean_coef2': betas,
  }
  text_tower = {
    f'cond_stage_model.model.{name}': np.ones(shape)
    for name, shape in {
      'positional_embedding': (77, 4),
      'text_projection': (4, 4),
      'logit_scale': (),
      'token_embedding.weight': (9, 4),
      'ln_final.weight': (4,),
      'ln_final.bias': (4,),
    }.items()
  }
  constants = {
    'cond_stage_model.mean': np.zeros(3),
    'cond_stage_model.std': np.ones(3),
  }
  extras = {**schedule, **text_tower, **constants}
  return {name: np.float32(values) for name, values in extras.items()}


def averages(state):
  """LitEma's buffers of a U-Net, made of the state dict of another."""
  return {
    'model_ema.decay': np.float32(0.9999),
    'model_ema.num_updates': np.int32(1000),
    **{
      'model_ema.diffusion_model' + name.replace('.', ''): array
      for name, array in state.items()
    },
  }


def ldm_unet(module, in_channels=8):
  """A U-Net's state dict in the names of CompVis, without a prefix."""
  settings = UNET | dict(in_channels=in_channels)
  return renamed(arrays(module), unet, settings, 'diffusers', 'ldm')


def ldm_state(modules, *, in_channels=8):
  """The state dict of a file such as Zero-1-to-3's, without a projection."""
  state = _extras()
  for name, (naming, settings, prefix, layout, _) in NETWORKS.items():
    settings = settings | dict(in_channels=in_channels)
    given = renamed(
      arrays(modules[name]), naming, settings, NETWORKS[name][4], layout
    )
    state |= {prefix + key: array for key, array in given.items()}
  return state


def to_torch(state, dtype=None):
  """Tensors of arrays; floating ones cast."""
  return {
    name: torch.from_numpy(np.array(array)).to(
      dtype if dtype and array.dtype.kind == 'f' else None
    )
    for name, array in state.items()
  }


# What a file of PyTorch Lightning needs beside tensors, and bases of classes.
_NEEDED = {
  'pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint': object,
  'pytorch_lightning.utilities.parsing.AttributeDict': dict,
  'omegaconf.base.ContainerMetadata': object,
  'omegaconf.base.Metadata': object,
  'omegaconf.dictconfig.DictConfig': object,
  'omegaconf.listconfig.ListConfig': object,
  'omegaconf.nodes.AnyNode': object,
}


def _pretend():
  """Modules with the classes above, and the classes by their last name."""
  modules, classes = {}, {}
  for full_name, base in _NEEDED.items():
    module, _, name = full_name.rpartition('.')
    parts = module.split('.')
    for count in range(1, len(parts) + 1):
      parent = '.'.join(parts[:count])
      modules.setdefault(parent, types.ModuleType(parent))
    classes[name] = type(name, (base,), {'__module__': module})
    setattr(modules[module], name, classes[name])
  return modules, classes


def _with_state(cls, **state):
  made = cls()
  made.__dict__.update(state)
  return made


def _hyperparameters(classes):
  node = _with_state(
    classes['AnyNode'], _metadata=classes['Metadata'](), _val=1.0
  )
  metadata = _with_state(
    classes['ContainerMetadata'],
    ref_type=typing.Any,
    object_type=dict,
    key_type=str,
    resolver_cache=collections.defaultdict(dict),
  )
  items = _with_state(classes['ListConfig'], _content=[node])
  now = datetime.datetime(2023, 3, 20, tzinfo=datetime.timezone.utc)
  return classes['AttributeDict'](
    config=_with_state(
      classes['DictConfig'], _metadata=metadata, _content={'items': items}
    ),
    arguments=argparse.Namespace(logdir=pathlib.Path('logs'), started=now),
    array=np.ones((2, 3)),
    recent=collections.deque([1, 2], 5),
    counts=collections.Counter('aab'),
  )


def write_ckpt(path, state, dtype=None):
  """A file of PyTorch Lightning, objects and optimiser included."""
  modules, classes = _pretend()
  sys.modules.update(modules)
  torch.save(
    {
      'epoch': 3,
      'global_step': 105000,
      'pytorch-lightning_version': '1.4.2',
      'callbacks': {
        classes['ModelCheckpoint']: {
          'best_model_score': np.float64(0.1),
          'monitor': 'val/loss_simple_ema',
          'current_score': torch.tensor(0.1),
        }
      },
      'optimizer_states': [{'state': {0: {'exp_avg': torch.ones(8)}}}],
      'lr_schedulers': [{'last_epoch': 1, 'lr_lambdas': [None]}],
      'hyper_parameters': _hyperparameters(classes),
      'state_dict': collections.OrderedDict(to_torch(state, dtype)),
    },
    path,
  )
  for name in modules:
    del sys.modules[name]


def write_json(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content))


def write_pipeline(folder, modules, *, pose=None, **options):
  """A pipeline's folder of diffusers; `options` of `save_pretrained`."""
  for name, module in modules.items():
    module.save_pretrained(folder / name, **options)
  write_json(folder / 'model_index.json', {'_class_name': 'Zero123Pipeline'})
  write_json(folder / 'text_encoder' / 'config.json', {'model_type': 'clip'})
  write_json(
    folder / 'scheduler' / 'scheduler_config.json',
    {
      '_class_name': 'PNDMScheduler',
      'beta_start': 0.00085,
      'beta_end': 0.012,
      'beta_schedule': 'scaled_linear',
      'prediction_type': 'epsilon',
    },
  )
  if pose is not None:
    part = folder / 'clip_camera_projection'
    write_json(part / 'config.json', {'_class_name': 'CLIPCameraProjection'})
    named = {
      'proj.' + name.removeprefix('cc_projection.'): x
      for name, x in to_torch(pose).items()
    }
    torch.save(named, part / 'diffusion_pytorch_model.bin')
