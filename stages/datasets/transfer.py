"""A download by torchvision's download_url, whose failures end in one line with the reason."""

import contextlib
import errno
import io
import socket
import sys
import urllib.request
from http.client import HTTPException, HTTPResponse, IncompleteRead
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from stages.common.errors import UserError, printable

TIMEOUT = 30  # seconds without an answer or a byte


def fetch(address: str, path: Path, md5: str) -> None:
    """Download `address` to `path`, which does not exist yet, with a progress bar on a terminal.

    What is there afterwards is a whole answer, and not yet known to be the right one: torchvision compares the md5, but
    its error says no more than "not found or corrupted", so the caller compares digests and tells the difference.

    Raises:
        UserError: the server cannot be reached, does not answer, refuses, or the transfer is cut.
        OSError: the disk is full.
    """
    from torchvision.datasets.utils import download_url  # here, because it takes seconds to import

    transfer, timeout = _Transfer(encrypted=address.startswith("https:")), socket.getdefaulttimeout()
    hidden = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    urllib.request.install_opener(urllib.request.build_opener(transfer))
    socket.setdefaulttimeout(TIMEOUT)
    try:
        with hidden:
            download_url(address, str(path.parent), path.name, md5)
    except (OSError, HTTPException, RuntimeError, ValueError) as error:
        # download_url tries an address that failed once more without encryption; the first error is the reason
        first = error.__context__ if isinstance(error, Unencrypted) and error.__context__ else error
        if getattr(first, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise first from None
        came = path.stat().st_size if path.exists() else 0
        if isinstance(first, IncompleteRead) or (transfer.length and 0 < came < transfer.length):
            announced = f" of {transfer.length:,}" if transfer.length else ""
            how = f"stalled for {TIMEOUT} seconds" if isinstance(first, TimeoutError) else "was cut"
            raise UserError(f"the transfer {how} after {came:,}{announced} bytes") from error
        if type(first) is not RuntimeError:  # which is how torchvision says that the md5 differs
            raise UserError(_reason(first, address)) from error
        if not came:
            raise UserError("the answer is empty") from error
    finally:
        socket.setdefaulttimeout(timeout)
        urllib.request.install_opener(None)


class Unencrypted(URLError):
    """An address without encryption where one with it was asked for."""


class _Transfer(urllib.request.BaseHandler):
    """Keeps encrypted what begins encrypted, also through redirections, and notes the length that is announced."""

    def __init__(self, encrypted: bool):
        self.encrypted = encrypted
        self.length: int | None = None  # bytes

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        if self.encrypted:
            raise Unencrypted(f"redirected to {request.full_url}, which is not encrypted")
        return request

    def http_response(self, request: urllib.request.Request, response: HTTPResponse) -> HTTPResponse:
        self.length = response.length
        return response

    https_response = http_response


def _reason(error: BaseException, address: str) -> str:
    """The reason of a failed transfer, in the server's or the operating system's words."""
    if isinstance(error, HTTPError):
        return f"HTTP status {error.code} {printable(error.reason)}"
    scheme, host = urlsplit(address).scheme, urlsplit(address).hostname or ""
    proxy, through = urllib.request.getproxies().get(scheme), ""
    if proxy and not urllib.request.proxy_bypass(host):
        host = urlsplit(proxy if "//" in proxy else f"//{proxy}").netloc.rpartition("@")[2]  # without the password
        through = f", through the proxy {printable(host)} of {scheme}_proxy"
    cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
    if isinstance(cause, socket.gaierror):
        return f"the name {printable(host)} does not resolve ({cause.strerror}){through}"
    if isinstance(cause, TimeoutError):
        return f"no answer within {TIMEOUT} seconds{through}"
    return f"{printable(getattr(cause, 'strerror', None) or getattr(cause, 'reason', None) or cause)}{through}"
