"""The file of an embedded corpus: parquet, as small as it gets without sorting the rows."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def write_compactly(table: pa.Table, path: Path, repeated: Collection[str]) -> None:
    """Dictionaries for the columns whose values are ``repeated``; of the others, neighbours compress together."""
    pq.write_table(
        table,
        path,
        compression="brotli",
        compression_level=11,
        row_group_size=len(table),
        data_page_size=1 << 27,
        use_dictionary=list(repeated),
        column_encoding={name: "DELTA_LENGTH_BYTE_ARRAY" for name in table.column_names if name not in repeated},
        write_statistics=False,
    )
