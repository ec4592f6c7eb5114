"""Every knob of the pipeline that turns 360-degree videos into records.

python -m preprocessing.run --config=configs/preprocess.py \
    --input=runs/demo/worlds --output=runs/demo/records

The argument after the colon sets fields of the first table, for example
`--config=configs/preprocess.py:default,views_per_pair=8`; any field can be set
as `--config.poses.gate_deg=3`.
"""

import ml_collections

from configs import common


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
  """The pipeline; the only recipe is `default`."""
  fields = dict(
    # Keyframes per second: what poses, pairs and records are made of.
    fps=1.0,
    # Frames per keyframe that points are followed through.
    substeps=5,
    # Frame pairs lie at most this far apart in time.
    window_s=5.0,
    # Wider panoramas are reduced to this width.
    max_panorama_width_px=2048,
    # Views: width = height, and full field of view.
    view_size_px=256,
    fov_deg=90.0,
    # View pairs per frame pair, half of them in each direction.
    views_per_pair=4,
    # Test records: whole videos, or blocks of time within every video.
    split_by='video',
    test_fraction=0.1,
    # Seed of the choice of views.
    seed=0,
    # Source of features and matches; its options stand under its name.
    matcher='sphere',
    # In a folder, more damaged videos than this stop the run.
    max_bad_videos=10,
  )
  _, values = common.parse_argument(
    argument, recipes=['default'], defaults=fields
  )
  config = ml_collections.ConfigDict(values)
  # Explained in preprocessing/matchers/sphere.py.
  config.sphere = ml_collections.ConfigDict(
    dict(
      features_per_face=800,
      contrast_threshold=0.015,
      min_similarity=0.7,
      max_ratio=0.9,
    )
  )
  # Explained in preprocessing/poses.py.
  config.poses = ml_collections.ConfigDict(
    dict(
      gate_deg=2.0,
      max_error_px=1.5,
      min_inliers=30,
      min_inlier_share=0.5,
      min_parallax_deg=0.5,
      min_spread=0.02,
      max_rotation_off_deg=2.0,
      max_direction_off_deg=15.0,
      chain_gap=3,
      rounds=2,
      max_iterations=10,
      mask_below_deg=60.0,
      mask_min_persistence=0.4,
    )
  )
  # Explained in preprocessing/alignment.py.
  config.views = ml_collections.ConfigDict(
    dict(
      num_tries=48,
      max_pitch_deg=10.0,
      jitter_yaw_deg=20.0,
      jitter_pitch_deg=6.0,
      max_turn_deg=60.0,
      preferred_overlap=0.5,
      min_overlap=0.2,
      min_coverage=0.5,
      min_points=12,
    )
  )
  return config
