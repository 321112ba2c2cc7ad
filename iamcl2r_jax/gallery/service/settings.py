"""What an operator may set of the service."""

import dataclasses
import secrets


@dataclasses.dataclass(frozen=True)
class Settings:
    """Limits and secrets of the service."""

    # What a request that changes the gallery must carry, `Authorization: Bearer TOKEN`.
    token: str = dataclasses.field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    # Names that requests may give as their host; empty for any. Others are refused, so that a page
    # of another site cannot reach a service on loopback under a name of its own.
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "::1")
    image_roots: tuple[str, ...] = ()  # directories besides the gallery whose images are shown
    max_upload: int = 20 * 2**20  # bytes of a request's body
    max_pixels: int = 50_000_000  # of an uploaded picture, as it is in the file
    max_hits: int = 1000  # largest k of a search
    batch: int = 32  # queries that are embedded at once
    wait: float = 0.002  # seconds that a query waits for others
    waiting: int = 1024  # queries that wait at most; more are told to try again
