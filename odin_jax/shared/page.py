"""Self-contained pages: one HTML file that opens from disk.

A template is HTML with four marks: `/*STYLE*/` and `/*SCRIPT*/`, where what
all pages share goes (`page.css`, `page.js`); `/*DATA*/` inside a JSON script
element, where the page's data goes; and `<!--LINKS-->`, before which links to
other files are put, also of a page that is written already.
"""

import base64
import html
import json
import os
import pathlib
from typing import Any, Mapping, NamedTuple
import urllib.parse

from odin_jax.shared import files

_FOLDER = pathlib.Path(__file__).parent
_LINKS = '<!--LINKS-->'


class Finding(NamedTuple):
  """A sentence of a verdict.

  Attributes:
    text: the sentence, with its figures.
    good: whether that is good news; None: neither.
  """

  text: str
  good: bool | None = None


def data_uri(content: bytes, mime: str) -> str:
  """A file as a `data:` address."""
  return f'data:{mime};base64,{base64.b64encode(content).decode()}'


def verdict(findings: list[Finding]) -> list[dict[str, Any]]:
  """Findings as the data of a page."""
  return [finding._asdict() for finding in findings]


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
    page = page.replace(mark, content, 1)
  return page


def link(
  page: str, folder: pathlib.Path, words: str, target: pathlib.Path
) -> str:
  """A page with one link more, if its target exists and it has none to it.

  Args:
    page: its HTML.
    folder: where the page is or will be.
    words: what the link says.
    target: the file that it leads to.
  """
  if not target.is_file():
    return page
  address = urllib.parse.quote(os.path.relpath(target, folder))
  anchor = f'<a href="{html.escape(address)}">'
  if anchor in page:
    return page
  return page.replace(_LINKS, f'{anchor}{html.escape(words)}</a>\n{_LINKS}', 1)


def links(page: str, folder: pathlib.Path, targets: Mapping[str, str]) -> str:
  """A page with a link more to each file of its folder that exists.

  Args:
    page: its HTML.
    folder: where the page is or will be.
    targets: by what the links say, names of files in the folder.
  """
  for words, name in targets.items():
    page = link(page, folder, words, folder / name)
  return page


def add_link(page: pathlib.Path, words: str, target: pathlib.Path) -> None:
  """Adds a link to a page on disk; one that is absent stays so."""
  if not page.is_file():
    return
  before = page.read_text()
  after = link(before, page.parent, words, target)
  if after != before:
    with files.atomic_path(page) as temporary:
      temporary.write_text(after)
