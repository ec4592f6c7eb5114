"""Self-contained pages: one HTML file that opens from disk.

A template is HTML with three marks: `/*STYLE*/` and `/*SCRIPT*/`, where what
all pages share goes (`page.css`, `page.js`), and `/*DATA*/` inside a JSON
script element, where the page's data goes.
"""

import base64
import json
import pathlib
from typing import Any

_FOLDER = pathlib.Path(__file__).parent


def data_uri(content: bytes, mime: str) -> str:
  """A file as a `data:` address."""
  return f'data:{mime};base64,{base64.b64encode(content).decode()}'


def render(template: pathlib.Path, data: Any) -> str:
  """The page of a template; NaN and infinity in the data are errors."""
  # "</" inside a string would end the script element that holds the data.
  text = json.dumps(data, allow_nan=False).replace('</', '<\\/')
  page = template.read_text()
  for mark, content in (
    ('/*STYLE*/', (_FOLDER / 'page.css').read_text()),
    ('/*SCRIPT*/', (_FOLDER / 'page.js').read_text()),
    ('/*DATA*/', text),
  ):
    page = page.replace(mark, content)
  return page
