"""JSON of annotation files, with the place of what is wrong in it."""

from __future__ import annotations

import json
import re
from typing import Any

from cprfl.data.readers.text import STRUCTURED_BYTES, read_text
from cprfl.errors import DatasetError

_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: str, what: str) -> Any:
    """The values of a JSON file; ``what`` names it in errors.

    Raises:
        DatasetError: where it is missing, or is no JSON.
    """
    return parse_json(read_text(path, what, limit=STRUCTURED_BYTES), path)


def parse_json(text: str | bytes, where: str) -> Any:
    """The values of a JSON text; ``where`` names it in errors.

    Raises:
        DatasetError: where it is none.
    """
    try:
        value = json.loads(text)
        if _ESCAPED_HALF.search(text if isinstance(text, str) else text.decode("utf-8", "replace")):
            json.dumps(value, ensure_ascii=False).encode()  # which fails for halves of characters, that Python reads
        return value
    except json.JSONDecodeError as error:
        raise DatasetError(f"{where}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise DatasetError(f"{where}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except RecursionError:
        raise DatasetError(f"{where}: JSON that is nested too deeply") from None
    except UnicodeEncodeError as error:
        raise DatasetError(f"{where}: {error.object[error.start]!a} is half a character; write the text anew") from None
    except ValueError as error:  # the digits of a number are limited, for reading them takes their square
        raise DatasetError(f"{where}: not JSON that can be read: {str(error).split(';')[0]}") from None
