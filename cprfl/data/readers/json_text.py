"""JSON of annotation files, with the place of what is wrong in it."""

from __future__ import annotations

import json
from typing import Any

from cprfl.data.readers.text import read_text
from cprfl.errors import DatasetError


def read_json(path: str, what: str) -> Any:
    """The values of a JSON file; ``what`` names it in errors.

    Raises:
        DatasetError: where it is missing, or is no JSON.
    """
    return parse_json(read_text(path, what), path)


def parse_json(text: str | bytes, where: str) -> Any:
    """The values of a JSON text; ``where`` names it in errors.

    Raises:
        DatasetError: where it is none.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{where}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise DatasetError(f"{where}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except RecursionError:
        raise DatasetError(f"{where}: JSON that is nested too deeply") from None
