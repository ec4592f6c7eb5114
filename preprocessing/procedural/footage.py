"""What the camera of a procedural world records: pictures, truth, video."""

import dataclasses
import json
import pathlib
from typing import Iterator, Sequence

import av
from jaxtyping import Float, UInt8
import numpy as np

from odin_jax.shared import errors, files, world_names
from preprocessing.procedural import raycaster, scenes
from preprocessing.running import pool

RENDERED_FPS = 5
STREAM_FPS = 30
# Texture resolution: as fine as the picture at this distance.
_NEAR_M = 1.6
_TRUTH_HEIGHT_PX, _TRUTH_WIDTH_PX = 96, 192


def make_world(
  kinds: Sequence[str],
  index: int,
  *,
  seed: int,
  seconds: float,
  px_per_rad: float,
  movers: int | None = None,
) -> scenes.World:
  """World `index` of a seed, with textures that suit a resolution.

  `movers` is as for `scenes.build_world`.
  """
  return scenes.build_world(
    kinds[index % len(kinds)],
    np.random.default_rng([seed, index]),
    seconds=seconds,
    texel_per_m=min(px_per_rad / _NEAR_M, 160.0),
    movers=movers,
  )


def picture_times_s(seconds: float) -> Float[np.ndarray, 'n']:
  """k / RENDERED_FPS for all k that lie in a video of this length."""
  return np.arange(round(seconds * RENDERED_FPS)) / RENDERED_FPS


def picture_time_s(time_s: float) -> float:
  """When the picture was rendered that a video shows at a time."""
  return float(np.floor(time_s * RENDERED_FPS + 1e-3) / RENDERED_FPS)


def render_panorama(
  world: scenes.World, time_s: float, *, width: int, height: int
) -> UInt8[np.ndarray, 'h w 3']:
  """The panorama that the walk's camera sees at a time."""
  frame2world = world.walk.frame2world(time_s)
  rays = raycaster.panorama_rays(width, height)
  rays = raycaster.rotate(frame2world[:, :3], rays)
  hits = world.scene.cast(frame2world[:, 3], rays, time_s)
  return world.scene.paint(
    frame2world[:, 3], rays, hits, time_s, pixel_rad=np.pi / height
  )


def truth(
  world: scenes.World,
  times_s: Float[np.ndarray, 'n'],
  *,
  width: int = _TRUTH_WIDTH_PX,
  height: int = _TRUTH_HEIGHT_PX,
) -> dict[str, np.ndarray]:
  """The contents of `NAME.truth.npz`.

  Args:
    world: what is seen.
    times_s: N moments.
    width: of the depth maps.
    height: of the depth maps.

  Returns:
    `time_s` [N]; `frame2world` [N, 3, 4] in metres, y down; `depth` [N, h, w],
    metres along the ray at the pixel centres; `moving` [N, h, w], whether the
    surface seen there moves; `kind`, `unique` or `repeated` texture.
  """
  poses, depths, moving = [], [], []
  rays = raycaster.panorama_rays(width, height)
  for time_s in times_s:
    frame2world = world.walk.frame2world(time_s)
    turned = raycaster.rotate(frame2world[:, :3], rays)
    hits = world.scene.cast(frame2world[:, 3], turned, time_s)
    poses.append(frame2world)
    depths.append(hits.distance)
    moving.append(world.scene.surface_moves[hits.surface])
  return {
    'time_s': np.asarray(times_s, np.float64),
    'frame2world': np.stack(poses),
    'depth': np.stack(depths),
    'moving': np.stack(moving),
    'kind': np.array(world.kind),
  }


def write_video(
  path: pathlib.Path, pictures: Iterator[UInt8[np.ndarray, 'h w 3']]
) -> None:
  """Encodes pictures as H.264, each held for 1 / RENDERED_FPS seconds."""
  with files.atomic_path(path) as temporary, av.open(temporary, 'w') as file:
    stream = None
    for picture in pictures:
      if stream is None:
        stream = file.add_stream('libx264', rate=STREAM_FPS)
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = 'yuv420p'
        # Said in the file, since players guess by the size: BT.601, limited.
        stream.codec_context.colorspace = 6
        stream.codec_context.color_range = 1
        stream.options = {'crf': '16', 'preset': 'veryfast'}
        # One thread: the same bytes on every machine.
        stream.codec_context.thread_count = 1
      frame = av.VideoFrame.from_ndarray(picture, format='rgb24')
      frame = frame.reformat(format='yuv420p')
      for _ in range(STREAM_FPS // RENDERED_FPS):
        frame.pts = None
        file.mux(stream.encode(frame))
    file.mux(stream.encode(None))


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoJob:
  """One world to film.

  Attributes:
    output: folder of the video and its truth.
    kinds: kinds of worlds, which take turns.
    index: number of the world.
    seed: of all worlds.
    seconds: length of the video.
    width: of the video.
    height: of the video.
    movers: see `scenes.build_world`.
  """

  output: pathlib.Path
  kinds: tuple[str, ...]
  index: int
  seed: int
  seconds: float
  width: int
  height: int
  movers: int | None = None

  @property
  def name(self) -> str:
    """The video's stem."""
    return world_names.video_name(self.index, self.kinds)

  def build_world(self) -> scenes.World:
    """The world, the same whenever it is built."""
    return make_world(
      self.kinds,
      self.index,
      seed=self.seed,
      seconds=self.seconds,
      px_per_rad=self.height / np.pi,
      movers=self.movers,
    )


def rebuild_world(folder: pathlib.Path, video_id: str) -> scenes.World:
  """The world of a video that `preprocessing.worlds` made.

  Args:
    folder: of the videos.
    video_id: the video's stem.

  Raises:
    errors.UserError: the folder has no such video.
  """
  note = files.require_file(folder / world_names.NOTE, 'how worlds were made')
  absent = errors.UserError(
    f'{folder}: has no video {video_id} of preprocessing.worlds; give the '
    'folder that it is in'
  )
  # With --pairs there is none, and the settings are others.
  if not (folder / f'{video_id}.mp4').is_file():
    raise absent
  settings = json.loads(note.read_text())['settings']
  number = video_id.partition('_')[0]
  job = VideoJob(
    output=folder,
    index=int(number) if number.isdecimal() else 0,
    **{**settings, 'kinds': tuple(settings['kinds'])},
  )
  if job.name != video_id:
    raise absent
  return job.build_world()


def make_video(job: VideoJob) -> str:
  """Writes video and truth of one world, unless both are there already.

  Returns:
    the video's stem.
  """
  video = job.output / f'{job.name}.mp4'
  truth_path = job.output / f'{job.name}.truth.npz'
  if video.is_file() and truth_path.is_file():
    return job.name
  world = job.build_world()
  times_s = picture_times_s(job.seconds)
  with files.atomic_path(truth_path) as temporary:
    np.savez_compressed(temporary, **truth(world, times_s))
  write_video(video, _film(world, times_s, job))
  return job.name


def _film(
  world: scenes.World, times_s: Float[np.ndarray, 'n'], job: VideoJob
) -> Iterator[UInt8[np.ndarray, 'h w 3']]:
  for time_s in times_s:
    pool.step()
    yield render_panorama(world, time_s, width=job.width, height=job.height)
