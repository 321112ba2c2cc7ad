"""What an operator may set of the service."""

import dataclasses
import secrets


@dataclasses.dataclass(frozen=True)
class Settings:
    """Limits and secrets of the service.

    Attributes:
      token: what a request that changes the gallery must carry, `Authorization: Bearer TOKEN`.
      hosts: names that requests may give as their host; empty for any. Others are refused, so that
        a page of another site cannot reach a service on loopback under a name of its own.
      image_roots: directories besides the gallery whose images are shown.
      max_upload: bytes of a request's body.
      max_pixels: of an uploaded picture, as it is in the file.
      max_hits: largest k of a search.
      batch: queries that are embedded at once.
      wait: seconds that a query waits for others.
      waiting: queries that wait at most; more are told to try again.
    """

    token: str = dataclasses.field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "::1")
    image_roots: tuple[str, ...] = ()
    max_upload: int = 20 * 2**20
    max_pixels: int = 50_000_000
    max_hits: int = 1000
    batch: int = 32
    wait: float = 0.002
    waiting: int = 1024
