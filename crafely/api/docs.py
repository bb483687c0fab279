"""The page at /docs: /openapi.json made readable. It needs no internet and lets no script but its own run.

What it says to browsers is checked against https://owasp.org/www-project-secure-headers/.
"""

import base64
import hashlib
import re
from importlib.resources import files

MEDIA_TYPE = "text/html; charset=utf-8"

PAGE = files("crafely.api").joinpath("docs.html").read_bytes()


def _hashes(tag: bytes) -> str:
    parts = re.findall(b"<" + tag + b">(.*?)</" + tag + b">", PAGE, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(part).digest()).decode()}'" for part in parts)


HEADERS = {
    # Only what stands in the file itself runs, it talks only to this server, and no text becomes markup.
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hashes(b'script')}; style-src {_hashes(b'style')}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    # A key may be typed into it: no window that opened it, or that it opens, shares its process or reaches into it.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
}
