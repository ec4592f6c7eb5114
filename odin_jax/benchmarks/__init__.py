"""Benchmarks: what a folder holds becomes posed pairs to score.

`records` are those of our own preprocessing. The others are public layouts of
scenes, each read by a function `(folder) -> posed_views.PosedViews`; a
protocol (`benchmarks.protocols`) says which of their views make pairs.
"""

from odin_jax.benchmarks import dtu, mipnerf360, nerfstudio

RECORDS = 'records'
LAYOUTS = {
  'dtu': dtu.read,
  'mipnerf360': mipnerf360.read,
  'nerfstudio': nerfstudio.read,
}
