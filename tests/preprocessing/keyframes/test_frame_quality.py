"""Frames that are no use as keyframes are found, and no others."""

import cv2
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from preprocessing.keyframes import frame_quality
from preprocessing.procedural import footage, scenes
from preprocessing.reading import frames
from preprocessing.writing import rejections
from tests.helpers import default_rules

_RULES = default_rules.frame_rules()
Reason = rejections.Reason


def judge_all(images):
  judge = frame_quality.FrameFilter(_RULES).judge
  return [judge(image) for image in images]


def motion_blurred(image: np.ndarray, length_px: int, axis: int) -> np.ndarray:
  kernel = np.full((1, length_px), 1 / length_px, np.float32)
  return cv2.filter2D(image, -1, kernel if axis else kernel.T)


def defocused(image: np.ndarray, sigma_px: float) -> np.ndarray:
  return cv2.GaussianBlur(image, (0, 0), sigma_px)


def slate(image: np.ndarray, colour=(30, 60, 120)) -> np.ndarray:
  """A title on one tone, of an image's size."""
  output = np.full_like(image, colour)
  place = (image.shape[1] // 5, image.shape[0] // 2)
  scale = image.shape[1] / 400
  font = cv2.FONT_HERSHEY_SIMPLEX
  return cv2.putText(output, 'MY TRIP', place, font, scale, (255, 255, 255), 3)


def noisy(image: np.ndarray, seed: int) -> np.ndarray:
  """As it comes out of an encoder: nearly the same."""
  noise = np.random.default_rng(seed).normal(0, 1.5, image.shape)
  return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def footage_5fps(shared_data):
  path = shared_data / 'real_360_alcatraz.mp4'
  return [frame.image for frame in frames.read_frames(path, 5.0)]


@pytest.fixture
def keyframes(footage_5fps):
  return list(footage_5fps[::5])


def test_every_keyframe_of_the_real_video_is_kept(keyframes):
  assert judge_all(keyframes) == [None] * 41


def test_every_frame_of_the_real_video_is_kept_at_5_fps(footage_5fps):
  assert set(judge_all(footage_5fps)) == {None}


@pytest.mark.parametrize('kind', scenes.KINDS)
def test_every_frame_of_worlds_is_kept(kind):
  world = scenes.build_world(
    kind, np.random.default_rng(1), seconds=4.0, texel_per_m=40.0
  )
  images = [
    footage.render_panorama(world, time_s, width=384, height=192)
    for time_s in (0.0, 0.2, 0.4, 1.0, 2.0, 3.0)
  ]
  assert set(judge_all(images)) == {None}


def test_a_repeated_frame_is_a_near_duplicate(keyframes):
  keyframes[11:13] = [noisy(keyframes[10], seed) for seed in range(2)]
  reasons = judge_all(keyframes)
  assert reasons[11:13] == [Reason.DUPLICATE] * 2
  assert reasons.count(None) == 39


@pytest.mark.parametrize('level', [0, 5, 16])
def test_a_black_frame_is_black(keyframes, level):
  keyframes[0] = keyframes[20] = np.full_like(keyframes[0], level)
  reasons = judge_all(keyframes)
  assert reasons[0] == reasons[20] == Reason.BLACK
  assert reasons.count(None) == 39


@pytest.mark.parametrize(
  'blur',
  [
    lambda image: defocused(image, 1.0),
    lambda image: defocused(image, 4.0),
    lambda image: motion_blurred(image, 5, axis=1),
    lambda image: motion_blurred(image, 21, axis=1),
    lambda image: motion_blurred(image, 9, axis=0),
  ],
  ids='slight-defocus defocus slight-motion motion vertical-motion'.split(),
)
def test_a_blurred_frame_is_blurred(keyframes, blur):
  blurred = [5, 6, 17, 30]
  for index in blurred:
    keyframes[index] = blur(keyframes[index])
  reasons = judge_all(keyframes)
  expected = [Reason.BLURRED if i in blurred else None for i in range(41)]
  assert reasons == expected


def test_a_video_that_is_soft_all_along_is_kept(keyframes):
  assert set(judge_all(defocused(image, 3.0) for image in keyframes)) == {None}


def test_a_video_that_turns_soft_is_kept_after_a_while(footage_5fps):
  soft = [defocused(image, 3.0) for image in footage_5fps[50:120]]
  reasons = judge_all([*footage_5fps[:50], *soft])[50:]
  assert reasons[0] == Reason.BLURRED
  kept = reasons.index(None)
  # Three quarters of the recent frames, and no more than all of them.
  assert 20 <= kept <= _RULES.history
  assert set(reasons[kept:]) == {None}


@pytest.mark.parametrize('colour', [(30, 60, 120), (250, 250, 250), (0, 0, 0)])
def test_a_title_on_one_tone_is_found_at_once(keyframes, colour):
  for index in (0, 1, 2, 20, 21):
    keyframes[index] = noisy(slate(keyframes[0], colour), 0)
  reasons = judge_all(keyframes)
  unwanted = {Reason.STATIC, Reason.BLACK}
  assert {reasons[index] for index in (0, 1, 2, 20, 21)} <= unwanted
  assert reasons.count(None) == 36


def test_a_title_on_a_picture_is_found_by_its_next_frame(footage_5fps):
  title = footage_5fps[150][:, ::-1]
  images = list(footage_5fps[:60])
  # Three seconds.
  images[20:35] = [noisy(title, seed) for seed in range(15)]
  judge = frame_quality.FrameFilter(_RULES).judge
  following = [*images[1:], None]
  reasons = [judge(*pair) for pair in zip(images, following, strict=True)]
  # Its last frame is followed by another picture, but preceded by itself.
  assert reasons[20:35] == [Reason.STATIC] * 15
  assert set(reasons[:20] + reasons[35:]) == {None}


def test_a_title_on_a_picture_passes_once_without_its_next_frame(footage_5fps):
  title = footage_5fps[150][:, ::-1]
  images = list(footage_5fps[:40])
  images[20:30] = [noisy(title, seed) for seed in range(10)]
  reasons = judge_all(images)
  assert reasons[20] is None
  assert set(reasons[21:30]) == {Reason.DUPLICATE}


def test_a_frame_of_which_little_moves_is_static(keyframes):
  """A logo over nearly everything, with film in a corner."""
  title = keyframes[30][:, ::-1]
  for index in range(10, 15):
    film = keyframes[index][:100, :200].copy()
    keyframes[index] = title.copy()
    keyframes[index][:100, :200] = film
  reasons = judge_all(keyframes)
  assert set(reasons[11:15]) <= {Reason.STATIC, Reason.DUPLICATE}
  assert Reason.STATIC in reasons[11:15]


@settings(max_examples=15, deadline=None)
@given(st.integers(48, 300), st.integers(96, 1000), st.integers(0, 2**32 - 1))
def test_any_picture_gets_a_verdict(height, width, seed):
  rng = np.random.default_rng(seed)
  image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
  judge = frame_quality.FrameFilter(_RULES).judge
  assert judge(image) is None
  assert judge(image) == Reason.DUPLICATE
  assert judge(image * np.uint8(0)) == Reason.BLACK
