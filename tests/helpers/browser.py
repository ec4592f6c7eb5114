"""A headless Chromium that opens pages from disk, for tests of pages.

Spoken to in its DevTools protocol (https://chromedevtools.github.io) through
two pipes: JSON messages that end with a zero byte, commands on its descriptor
3, answers and events on 4.
"""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import pathlib
import select
import shutil
import signal
import time
from typing import Any, Iterator

_NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
_TIMEOUT_S = 60
_HEIGHT_PX = 800
_KEYS = {
  'Tab': 9,
  'Home': 36,
  'ArrowLeft': 37,
  'ArrowUp': 38,
  'ArrowRight': 39,
  'ArrowDown': 40,
}


def find() -> str | None:
  """Path of a Chromium or Chrome, or None."""
  return next(filter(None, map(shutil.which, _NAMES)), None)


class Browser:
  """One process, one page at a time."""

  def __init__(self, commands: int, answers: int):
    self._commands, self._answers = commands, answers
    self._ids, self._unread, self._session = itertools.count(1), b'', None
    self._events: list[dict[str, Any]] = []

  def attach(self) -> None:
    """Takes the first page of the browser."""
    targets = self.call('Target.getTargets')['targetInfos']
    page = next(target for target in targets if target['type'] == 'page')
    self._session = self.call(
      'Target.attachToTarget', targetId=page['targetId'], flatten=True
    )['sessionId']
    for domain in ('Page', 'Runtime', 'Log'):
      self.call(f'{domain}.enable')

  def call(self, method: str, **parameters: Any) -> dict[str, Any]:
    """The result of a command."""
    message = {'id': next(self._ids), 'method': method, 'params': parameters}
    if self._session:
      message['sessionId'] = self._session
    os.write(self._commands, json.dumps(message).encode() + b'\0')
    while True:
      answer = self._receive()
      if answer.get('id') == message['id']:
        assert 'error' not in answer, (method, answer['error'])
        return answer['result']
      self._events.append(answer)

  def _receive(self) -> dict[str, Any]:
    end = time.monotonic() + _TIMEOUT_S
    while b'\0' not in self._unread:
      ready, _, _ = select.select(
        [self._answers], [], [], end - time.monotonic()
      )
      assert ready, f'no answer from the browser in {_TIMEOUT_S} s'
      part = os.read(self._answers, 1 << 20)
      assert part, 'the browser has ended'
      self._unread += part
    message, self._unread = self._unread.split(b'\0', 1)
    return json.loads(message)

  def open(self, page: pathlib.Path | str, width_px: int, scheme: str) -> None:
    """Opens a page.

    Args:
      page: path of the HTML file, or an address.
      width_px: of the window; less than 600 is a telephone.
      scheme: `light` or `dark`, what the system prefers.
    """
    self.call(
      'Emulation.setDeviceMetricsOverride',
      width=width_px,
      height=_HEIGHT_PX,
      deviceScaleFactor=1,
      mobile=width_px < 600,
    )
    self.call(
      'Emulation.setEmulatedMedia',
      features=[{'name': 'prefers-color-scheme', 'value': scheme}],
    )
    self._events.clear()
    is_path = isinstance(page, pathlib.Path)
    self.call('Page.navigate', url=page.resolve().as_uri() if is_path else page)
    while not any(
      event.get('method') == 'Page.loadEventFired' for event in self._events
    ):
      self._events.append(self._receive())

  def run(self, script: str) -> Any:
    """The value of a JavaScript expression; promises are waited for."""
    answer = self.call(
      'Runtime.evaluate',
      expression=script,
      awaitPromise=True,
      returnByValue=True,
    )
    assert 'exceptionDetails' not in answer, answer['exceptionDetails']
    return answer['result'].get('value')

  def complaints(self) -> list[str]:
    """Errors and warnings in the console since the page was opened."""
    self.run('0')
    found = []
    for event in self._events:
      details = event.get('params', {})
      if event.get('method') == 'Runtime.exceptionThrown':
        thrown = details['exceptionDetails']
        found.append(
          thrown.get('exception', thrown).get('description', 'error')
        )
      elif event.get('method') == 'Log.entryAdded':
        found.append(details['entry']['text'])
      elif event.get('method') == 'Runtime.consoleAPICalled':
        found.append(f'console.{details["type"]}')
    return found

  def press(self, key: str) -> None:
    """Presses a key: a character, or a name such as `ArrowLeft`."""
    code = _KEYS.get(key) or ord(key.upper())
    text = {'text': key} if len(key) == 1 else {}
    for kind in ('keyDown', 'keyUp'):
      self.call(
        'Input.dispatchKeyEvent',
        type=kind,
        key=key,
        windowsVirtualKeyCode=code,
        **(text if kind == 'keyDown' else {}),
      )

  def wheel(
    self, x: float, y: float, pixels: float, ctrl: bool = False
  ) -> None:
    """Turns the wheel over a point of the window."""
    self.call(
      'Input.dispatchMouseEvent',
      type='mouseWheel',
      x=x,
      y=y,
      deltaX=0,
      deltaY=pixels,
      modifiers=2 if ctrl else 0,
    )

  def drag(self, *path: tuple[float, float], button: str = 'left') -> None:
    """A button that goes down, along a path, and up; of one point a click."""
    kinds = ['mousePressed', *['mouseMoved'] * len(path[1:]), 'mouseReleased']
    for kind, (x, y) in zip(kinds, [*path, path[-1]], strict=True):
      self.call(
        'Input.dispatchMouseEvent',
        type=kind,
        x=x,
        y=y,
        button=button,
        buttons={'left': 1, 'right': 2}[button],
        clickCount=1,
      )

  def touch(self, *paths: list[tuple[float, float]]) -> None:
    """Fingers that go down, along their paths of equal length, and up."""
    for index, points in enumerate(zip(*paths)):
      self.call(
        'Input.dispatchTouchEvent',
        type='touchMove' if index else 'touchStart',
        touchPoints=[
          {'x': x, 'y': y, 'id': finger} for finger, (x, y) in enumerate(points)
        ],
      )
    self.call('Input.dispatchTouchEvent', type='touchEnd', touchPoints=[])

  def screenshot(
    self, path: pathlib.Path, height_px: int | None = None
  ) -> None:
    """Writes the page, or its upper part, as a PNG."""
    size = self.call('Page.getLayoutMetrics')['cssContentSize']
    clip = {
      'x': 0,
      'y': 0,
      'width': size['width'],
      'height': min(size['height'], height_px or size['height']),
      'scale': 1,
    }
    picture = self.call(
      'Page.captureScreenshot', captureBeyondViewport=True, clip=clip
    )
    path.write_bytes(base64.b64decode(picture['data']))


@contextlib.contextmanager
def started(executable: str, profile: pathlib.Path) -> Iterator[Browser]:
  """A browser, ended with the block.

  Args:
    executable: its path.
    profile: an empty folder for its files.
  """
  its_commands, commands = os.pipe()
  answers, its_answers = os.pipe()
  # Away from 3 and 4, which they become in the browser.
  high = [
    fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10)
    for end in (its_commands, its_answers)
  ]
  log = os.open(profile / 'log.txt', os.O_WRONLY | os.O_CREAT)
  process = os.posix_spawn(
    executable,
    [
      executable,
      '--headless',
      '--no-sandbox',
      '--disable-gpu',
      # WebGL without a GPU, which is slow and right.
      '--enable-unsafe-swiftshader',
      '--disable-dev-shm-usage',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--force-device-scale-factor=1',
      f'--user-data-dir={profile}',
      '--remote-debugging-pipe',
      'about:blank',
    ],
    os.environ,
    setpgroup=0,
    file_actions=[
      (os.POSIX_SPAWN_DUP2, log, 1),
      (os.POSIX_SPAWN_DUP2, log, 2),
      (os.POSIX_SPAWN_DUP2, high[0], 3),
      (os.POSIX_SPAWN_DUP2, high[1], 4),
    ],
  )
  for end in (its_commands, its_answers, *high, log):
    os.close(end)
  try:
    browser = Browser(commands, answers)
    browser.attach()
    yield browser
  finally:
    # With its helpers, which are of its group.
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    os.close(commands)
    os.close(answers)
