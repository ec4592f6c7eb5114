"""Benchmarks: what a folder holds becomes posed pairs to score.

`records` are those of our own preprocessing. The others are public layouts of
scenes, each read by a function `(folder) -> posed_views.PosedViews`; a
protocol (`benchmarks.protocols`) says which of their views make pairs. That of
`gso` is told the protocol too, which has the cameras.
"""

from odin_jax.benchmarks import dtu, gso, mipnerf360, nerfstudio

RECORDS = 'records'
LAYOUTS = {
  'dtu': dtu.read,
  'gso': gso.read,
  'mipnerf360': mipnerf360.read,
  'nerfstudio': nerfstudio.read,
}
