"""The page of the server, the same for all who open it."""

import base64
import hashlib
import pathlib
import re
from typing import Any

from odin_jax.serving import drawn_paths, settings, uploads
from odin_jax.shared import page

_TEMPLATE = pathlib.Path(__file__).parent / 'serve_page.html'
_SCRIPT = re.compile(r'<script>(.*?)</script>', re.DOTALL)


def render(model: dict[str, Any], limits: uploads.Limits) -> tuple[str, str]:
  """The page as HTML, and the policy that lets nothing else run in it.

  Args:
    model: `step` and `image_size_px` of it.
    limits: of what can be asked for.
  """
  usual = settings.Settings()
  text = page.render(
    _TEMPLATE,
    {
      'title': 'Imagine a scene from one image',
      'made': f'The model, of step {model["step"]} when this server started, '
      f'makes views of {model["image_size_px"]} px.',
      'next': 'give an image, choose or draw a path, and press Imagine',
      'verdict': [],
      'paths': settings.PATHS,
      'drawn': settings.DRAWN,
      'looks': drawn_paths.LOOKS,
      'most_corners': settings.MOST_CORNERS,
      'most_bytes': limits.most_bytes,
      'most_pixels': limits.most_pixels,
      'most_frames': limits.most_frames,
      'num_frames': min(usual.num_frames, limits.most_frames),
      'step_length': usual.step_length,
      'trajectory': usual.trajectory,
    },
  )
  digests = [
    base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    for script in _SCRIPT.findall(text)
  ]
  scripts = ' '.join(f"'sha256-{digest}'" for digest in digests)
  policy = (
    f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; media-src 'self'; connect-src 'self'; "
    "frame-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'"
  )
  return text, policy
