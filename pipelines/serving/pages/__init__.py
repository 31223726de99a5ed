"""The server's two pages: they ask nobody but the server, and the browser is told so."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from fastapi.responses import HTMLResponse

DROP, DOCS = "drop.html", "docs.html"
_STYLE = "/*style*/"


def answer(name: str) -> HTMLResponse:
    """A page, with the policy that lets its own script run, and no other."""
    folder = files(__name__)
    text = (folder / name).read_text(encoding="utf-8")
    text = text.replace(_STYLE, (folder / "page.css").read_text(encoding="utf-8"))
    digests = [
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    ]
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src blob: data:; connect-src 'self'; base-uri 'none'; "
        f"form-action 'none'; frame-ancestors 'none'; script-src {' '.join(digests)}"
    )
    return HTMLResponse(text, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})
