"""Benchmarks: a folder in a public layout becomes posed pairs to score.

A benchmark is a function `(folder, *, image_size_px, num_pairs, seed) ->
benchmarks.pairs.PairSet`; the first table below is what `--benchmark` can
name. The second reads the scenes of others: `(folder) ->
benchmarks.posed_views.PosedViews`.
"""

from odin_jax.benchmarks import dtu, mipnerf360, nerfstudio, records

BENCHMARKS = {
  'records': records.held_out_pairs,
}
LAYOUTS = {
  'dtu': dtu.read,
  'mipnerf360': mipnerf360.read,
  'nerfstudio': nerfstudio.read,
}
