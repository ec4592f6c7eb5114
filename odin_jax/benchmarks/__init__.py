"""Benchmarks: a folder in a public layout becomes posed pairs to score.

A benchmark is a function `(folder, *, image_size_px, num_pairs, seed) ->
benchmarks.pairs.PairSet`; the table below is what `--benchmark` can name.
"""

from odin_jax.benchmarks import records

BENCHMARKS = {
  'records': records.held_out_pairs,
}
