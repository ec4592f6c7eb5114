"""The rules that the pipeline runs by: those of configs/preprocess.py."""

from configs import preprocess
from preprocessing.exporting import exports
from preprocessing.keyframes import frame_quality, static_weights
from preprocessing.solving import pair_graph, verification
from preprocessing.views import alignment

_CONFIG = preprocess.get_config()


def frame_rules(**changes) -> frame_quality.FrameRules:
  return frame_quality.FrameRules(**{**_CONFIG.frames, **changes})


def motion_rules(**changes) -> static_weights.MotionRules:
  return static_weights.MotionRules(**{**_CONFIG.motion, **changes})


def pose_rules(**changes) -> verification.PoseRules:
  return verification.PoseRules(**{**_CONFIG.poses, **changes})


def graph_rules(**changes) -> pair_graph.GraphRules:
  return pair_graph.GraphRules(**{**_CONFIG.graph, **changes})


def view_rules(**changes) -> alignment.ViewRules:
  elsewhere = {'num_views': _CONFIG.views_per_pair, 'fov_deg': _CONFIG.fov_deg}
  return alignment.ViewRules(**{**elsewhere, **_CONFIG.views, **changes})


def export_rules(**changes) -> exports.Rules:
  return exports.Rules(**{**_CONFIG.export, **changes})
