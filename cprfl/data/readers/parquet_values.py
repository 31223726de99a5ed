"""What the columns of a Parquet file hold, read in parts that fit into memory: a few bytes may stand for very much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# What Parquet puts between a field and its items.
_OF_LISTS = {"list", "element", "item", "array", "bag", "array_element"}
_MOST_VALUES = 2**28  # of a column of labels or paths, counting those of lists
_ROWS_AT_ONCE, _BYTES_AT_ONCE = 2**16, 2**28
_MOST_BYTES_OF_A_ROW, _MOST_BYTES_OF_A_COLUMN = 2**20, 2**32


class TooMuchError(Exception):
    """A column holds more than any list of images; whoever has the file open names it."""


def values_of(file: pq.ParquetFile, column: str) -> list[Any]:
    """What a column holds in each row; a field of a list of structs as the list of its values."""
    top, _, below = column.partition(".")
    if column in file.schema_arrow.names:
        top, below = column, ""
    leaves = [file.schema.column(number).path for number in range(len(file.schema))]
    exact = [leaf for leaf in leaves if ".".join(part for part in leaf.split(".") if part not in _OF_LISTS) == column]
    columns = exact if len(exact) == 1 else [top]
    values = [value for batch in _batches(file, columns) for value in batch.column(0).to_pylist()]
    return [_below(value, below.split(".")) for value in values] if below else values


def _batches(file: pq.ParquetFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """What columns hold, in parts that fit into memory whatever a few bytes of the file stand for.

    Raises:
        TooMuchError: where there are more values than any list of images has.
    """
    names = {file.schema.column(number).path: number for number in range(len(file.schema))}
    leaves = [number for path, number in names.items() if any(f"{path}.".startswith(f"{name}.") for name in columns)]
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    if (values := sum(group.column(leaf).num_values for group in groups for leaf in leaves)) > _MOST_VALUES:
        raise TooMuchError(
            f"{values:,} values in the column {columns[0]}, more than {_MOST_VALUES:,}: no list of images"
        )
    # A text that is written once may stand in each row: no row is longer than all that is written.
    longest = max((group.column(leaf).total_uncompressed_size for group in groups for leaf in leaves), default=1)
    rows = max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // max(1, longest)))
    total = 0
    # Group by group: Arrow cannot give lists of dictionaries across their ends.
    parts = (
        file.iter_batches(batch_size=rows, row_groups=[number], columns=columns, use_threads=False)
        for number in range(file.num_row_groups)
    )
    for batch in chain.from_iterable(parts):
        total += batch.nbytes
        if batch.nbytes > _MOST_BYTES_OF_A_ROW * len(batch) or total > _MOST_BYTES_OF_A_COLUMN:
            raise TooMuchError(
                f"texts of {batch.nbytes // len(batch):,} bytes a row in the column {columns[0]}: no names"
            )
        yield batch


def _below(value: Any, path: Sequence[str]) -> Any:
    if not path or value is None:
        return value
    return [_below(item, path) for item in value] if isinstance(value, list) else _below(value[path[0]], path[1:])
