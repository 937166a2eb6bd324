"""The page's own files: few, read once, served from this origin alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

# everything from here and nothing from elsewhere; no inline script or style, and no string becomes markup
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
SECURITY_HEADERS = (
    ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
_KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    kind: str
    body: bytes
    etag: str


def load() -> dict[str, PageFile]:
    """By the path at which each is served: the page itself at `/`, the others below `/page/`."""
    files = {}
    for entry in (resources.files(__package__) / "assets").iterdir():
        body = entry.read_bytes()
        path = "/" if entry.name == "index.html" else f"/page/{entry.name}"
        kind = _KINDS[entry.name.rpartition(".")[2]]
        files[path] = PageFile(kind, body, f'"{hashlib.sha256(body).hexdigest()[:16]}"')
    return files
