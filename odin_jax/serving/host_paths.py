"""Texts without paths of this machine, for people at another one."""

import os
import pathlib
import re
import sys
import tempfile
from typing import Any

from odin_jax.shared import config_files

# What begins with a slash that no word, address or other path goes on with.
_ABSOLUTE = re.compile(r"""(?<![\w./:~])~?/[^\s/'"]+(?:/[^\s/'"]+)*/?""")


def cut(text: str, *folders: str | os.PathLike[str]) -> str:
  """A text in which of every path only the last name is left.

  Args:
    text: a message of a command, for example.
    folders: that it may name, whatever letters their names have; of a path in
      one of them what follows it is left.
  """
  known = [
    *folders,
    config_files.REPOSITORY,
    sys.prefix,
    tempfile.gettempdir(),
    pathlib.Path.home(),
    os.getcwd(),
  ]
  # The longest first, and none that is only the root.
  for folder in sorted({str(x).rstrip('/') for x in known}, key=len)[::-1]:
    if folder:
      whole = rf'(?<![\w.-]){re.escape(folder)}'
      text = re.sub(rf'{whole}/', '', text)
      text = re.sub(rf'{whole}(?![\w.-])', 'the folder', text)
  return _ABSOLUTE.sub(lambda path: path[0].rstrip('/').split('/')[-1], text)


def cut_all(content: Any, *folders: str | os.PathLike[str]) -> Any:
  """The same for every string in what JSON can hold."""
  if isinstance(content, str):
    return cut(content, *folders)
  if isinstance(content, list):
    return [cut_all(item, *folders) for item in content]
  if isinstance(content, dict):
    return {key: cut_all(item, *folders) for key, item in content.items()}
  return content
