"""Every knob of the pipeline that turns 360-degree videos into records.

python -m preprocessing.run --config=configs/preprocess.py \
    --input=runs/demo/worlds --output=runs/demo/records

The argument after the colon sets fields of the first table, for example
`--config=configs/preprocess.py:default,views_per_pair=8`; any field can be set
as `--config.poses.gate_deg=3`.
"""

import ml_collections

from configs import common
from preprocessing import matchers


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
  """The pipeline; the only recipe is `default`."""
  fields = dict(
    # Layout of the videos' frames; auto: found out for each.
    projection='auto',
    # The layout that is named holds, even where the pictures clearly fail it.
    trust_projection=False,
    # Keyframes per second: what poses, pairs and records are made of.
    fps=1.0,
    # Frames per keyframe that points are followed through.
    substeps=5,
    # Frame pairs that are matched lie at most this far apart in time, and
    # further where the path returns or keyframes are missing.
    window_s=5.0,
    # Wider panoramas are reduced to this width.
    max_panorama_width_px=2048,
    # Views: width = height, and full field of view.
    view_size_px=256,
    fov_deg=90.0,
    # View pairs per frame pair, half of them in each direction.
    views_per_pair=4,
    # PNG of what is never scene, such as the operator; '': only what is found.
    mask='',
    # Camera paths leave in these layouts, with pictures and masks.
    export_formats=(),
    # Test records: whole videos, or blocks of time within every video.
    split_by='video',
    test_fraction=0.1,
    # Seed of the choice of views.
    seed=0,
    # Source of features and matches; its options stand under its name.
    matcher='sphere',
    # Keeps a weight per pixel, moving or static, beside every target view.
    static_weights=False,
    # Keeps what depth the solved points give of both views, in maps of this
    # side; 0: none.
    depth_px=0,
    # Keeps the keyframes themselves as records, too, in a folder `panoramas`
    # of the output: training then cuts its views of them.
    panorama_records=False,
    # Pictures kept of rejected frame pairs, per video and reason; for audits.
    examples_per_reason=1,
    # Where a larger share of the videos gives no records, the run ends with
    # status 2, once the good ones are written. Of what is collected from the
    # web a third may well be unusable; where more than half is, the folder, the
    # layout or the mask is more likely wrong than the videos.
    max_bad_share=0.5,
  )
  _, values = common.parse_argument(
    argument, recipes=['default'], defaults=fields
  )
  config = ml_collections.ConfigDict(values)
  # Explained in preprocessing/keyframes/frame_quality.py.
  config.frames = ml_collections.ConfigDict(
    dict(
      min_bright_level=24.0,
      max_plain_share=0.85,
      max_still_share=0.8,
      min_change_levels=1.0,
      min_sharpness=0.85,
      history=30,
      max_damaged_share=0.5,
    )
  )
  # Explained in each matcher's module, where the defaults are: see
  # preprocessing/matchers/__init__.py.
  for name, options in matchers.default_options().items():
    config[name] = ml_collections.ConfigDict(options)
  # Explained in preprocessing/solving/verification.py.
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
  # Explained in preprocessing/keyframes/static_weights.py.
  config.motion = ml_collections.ConfigDict(
    dict(
      chart_width_px=288,
      max_latitude_deg=60.0,
      noise_deg=0.25,
      return_share=1.5,
      parallax_share=0.05,
      edge_share=1.0,
      half_weight=0.8,
      still_share=0.9,
    )
  )
  # Explained in preprocessing/solving/pair_graph.py.
  config.graph = ml_collections.ConfigDict(
    dict(
      max_cycle_turn_deg=2.0,
      max_cycle_direction_deg=25.0,
      max_long_pairs_per_frame=2,
      max_baseline=4.0,
      min_shared=0.05,
      min_path_confidence=0.5,
      tries_per_frame=2,
      max_tries=400,
      min_similarity=0.4,
      max_ratio=0.85,
      min_distinct=0.3,
      drift_share=0.05,
      drift_turn_deg=3.0,
      drift_log_scale=0.05,
      min_agreeing=2,
      min_agreeing_beyond=4,
    )
  )
  # Explained in preprocessing/views/alignment.py.
  config.views = ml_collections.ConfigDict(
    dict(
      num_tries=48,
      max_pitch_deg=10.0,
      jitter_yaw_deg=20.0,
      jitter_pitch_deg=6.0,
      max_turn_deg=60.0,
      preferred_overlap=0.5,
      goal_overlap=0.65,
      min_overlap=0.2,
      min_coverage=0.5,
      min_points=12,
      max_masked_share=0.2,
    )
  )
  # Explained in preprocessing/exporting/exports.py.
  config.export = ml_collections.ConfigDict(
    dict(
      view_size_px=0,
      fov_deg=90.0,
      num_yaws=4,
      pitches_deg=(-45.0, 0.0, 45.0),
      min_free_share=0.5,
      jpeg_quality=95,
    )
  )
  return config
