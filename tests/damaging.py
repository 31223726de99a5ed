"""What happens to files, and how a message says what can be done."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

Damage = Callable[[bytes, random.Random], bytes]


def flip(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


DAMAGES: dict[str, Damage] = {
    "a bit": flip,
    "another bit": flip,
    "a third bit": flip,
    "cut": lambda content, rng: content[: rng.randrange(1, len(content))],
    "overwritten": lambda content, rng: rng.randbytes(len(content)),
    "empty": lambda content, rng: b"",
    "another file's": lambda content, rng: b'{"run_id": [1, {"a": null}], "features": 3, "version": "x"}\n',
}

MEND = re.compile(r"`cprfl |again|anew|remove ")
