"""A small folder of panoramas of a procedural world, with its pairs."""

import numpy as np

from odin_jax.shared import panorama_schema, schema
from preprocessing.procedural import scenes, true_pairs
from preprocessing.writing import merging, parts
from tests.helpers import default_rules

WIDTH_PX = 512
VIDEO = 'room'


def build_world():
  return scenes.build_world(
    'unique_room', np.random.default_rng(3), seconds=4.0, texel_per_m=40.0
  )


def write(folder, world):
  """Pairs in a folder, and panoramas below it; returns the latter's."""
  rules = true_pairs.PairRules(
    num_records=2,
    seconds=4.0,
    max_gap_s=2,
    size_px=32,
    views=default_rules.view_rules(num_views=2, num_tries=4),
    split_by='video',
    test_fraction=0.0,
    depth_px=64,
    panorama_px=WIDTH_PX,
  )
  made = true_pairs.make_records(world, VIDEO, rules, seed=0)
  below = folder / panorama_schema.FOLDER
  for path, records, schema_of in (
    (folder, made.records, schema.PAIRS),
    (below, made.panoramas, panorama_schema.PANORAMAS),
  ):
    parts.write(
      path,
      VIDEO,
      records=records,
      summary=made.summary,
      dropped=[],
      fingerprint='a',
      schema_of=schema_of,
    )
    merging.merge(
      path,
      video_ids=[VIDEO],
      config={},
      tool='preprocessing.worlds',
      schema_of=schema_of,
    )
  return below
