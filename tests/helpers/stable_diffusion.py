"""The sizes of Stable Diffusion's networks, which configs/train.py has."""

from configs import train

_ODIN = train.get_config('odin').to_dict()


def _sizes(section):
  settings = _ODIN[section]
  return {name: value for name, value in settings.items() if name != 'kind'}


AUTOENCODER = _sizes('autoencoder')
IMAGE_ENCODER = _sizes('image_encoder')
# Beside the noisy latent, the source's comes in.
UNET = {
  'in_channels': 2 * AUTOENCODER['latent_channels'],
  'out_channels': AUTOENCODER['latent_channels'],
  **{
    name: value
    for name, value in _ODIN['model']['unet'].items()
    if name != 'remat'
  },
}
