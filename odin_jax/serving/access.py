"""Who may ask: this server's own page, and who has its token.

A page of another site that is open in the same browser may send requests here
too. What tells it apart is that its name for this server is none of ours (DNS
rebinding), and that the browser says where a request comes from (CSRF).
"""

import hashlib
import hmac
import ipaddress
from typing import Any, Awaitable, Callable
import urllib.parse

from starlette import datastructures, requests, responses

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_TOKEN = 'token'
_READING = ('GET', 'HEAD')
# Of every answer; pages say themselves what they may load.
_HEADERS = {
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  'cross-origin-resource-policy': 'same-origin',
  'cache-control': 'no-store',
}
_POLICY = 'content-security-policy'
# Of what is no page.
_NO_PAGE = "default-src 'none'; frame-ancestors 'none'"


def is_loopback(host: str) -> bool:
  """Whether an address, or the name of one, is this machine's own alone."""
  if host == 'localhost':
    return True
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False


def _host_of(netloc: str) -> str | None:
  """The name in `name:port`; None where it is none."""
  try:
    return urllib.parse.urlsplit(f'//{netloc}').hostname
  except ValueError:
    return None


class Guard:
  """Lets through to an application what may come, and adds headers.

  Args:
    app: what answers.
    is_local: whether this server can be reached from this machine alone; then
      it answers to names of this machine only.
    token: that has to be given, as `?token=` once (which sets a cookie) or as
      `Authorization: Bearer`; None: none is asked for.
  """

  def __init__(self, app: App, *, is_local: bool, token: str | None):
    self._app, self._is_local = app, is_local
    self._token = token.encode() if token else None
    # Cookies are of all ports of a host: two servers have two names.
    digest = hashlib.sha256(self._token or b'').hexdigest()
    self._cookie = f'odin_{digest[:12]}'

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """See https://asgi.readthedocs.io."""
    if scope['type'] != 'http':
      await self._app(scope, receive, send)
      return

    async def send_with_headers(message: dict[str, Any]) -> None:
      if message['type'] == 'http.response.start':
        headers = datastructures.MutableHeaders(scope=message)
        for name, value in (*_HEADERS.items(), (_POLICY, _NO_PAGE)):
          headers.setdefault(name, value)
      await send(message)

    request = requests.Request(scope)
    answer = self._refusal(request) or self._entrance(request)
    await (answer or self._app)(scope, receive, send_with_headers)

  def _refusal(self, request: requests.Request) -> responses.Response | None:
    """The answer to who may not ask."""
    host = request.headers.get('host', '')
    name = _host_of(host)
    if name is None or self._is_local and not is_loopback(name):
      return _refuse(
        421, 'this server answers to localhost and 127.0.0.1 alone'
      )
    origin = request.headers.get('origin')
    site = request.headers.get('sec-fetch-site', 'none')
    # 'null' is that of pages without an address.
    is_of_others = (
      origin is not None and origin.partition('://')[2].lower() != host.lower()
    )
    is_visit = (
      request.method in _READING
      and request.headers.get('sec-fetch-mode') == 'navigate'
      and request.headers.get('sec-fetch-dest') == 'document'
    )
    if is_of_others or (site not in ('none', 'same-origin') and not is_visit):
      return _refuse(403, 'only the page of this server may ask for this')
    return None

  def _entrance(self, request: requests.Request) -> responses.Response | None:
    """The answer to who has not shown the token, or shows it now."""
    if self._token is None:
      return None
    given = request.query_params.get(_TOKEN)
    if (
      given is not None
      and request.scope['path'] == '/'
      and self._is_token(given)
    ):
      # So that it does not stay in the address.
      answer = responses.RedirectResponse('./', 303)
      answer.set_cookie(
        self._cookie, given, httponly=True, samesite='lax', path='/'
      )
      return answer
    kind, _, bearer = request.headers.get('authorization', '').partition(' ')
    if self._is_token(request.cookies.get(self._cookie, '')) or (
      kind.lower() == 'bearer' and self._is_token(bearer.strip())
    ):
      return None
    return _refuse(
      401, 'open the address that the server printed, with its ?token='
    )

  def _is_token(self, given: str) -> bool:
    return hmac.compare_digest(given.encode(errors='replace'), self._token)


def _refuse(status: int, text: str) -> responses.Response:
  return responses.JSONResponse({'error': text}, status)
