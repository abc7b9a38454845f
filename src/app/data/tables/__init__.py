"""CSV and Parquet files as named columns: one model of a column (kind, missing values, exactness) behind every format.

`open_table` finds the files and says what each column is, by all its cells. `Table.blocks` then hands out rows: numbers
are float64, whole times are exact, text is text. Every error names file, row and column. CSV needs nothing but Python.
"""

from app.data.tables.blocks import Block
from app.data.tables.facts import Fact
from app.data.tables.table import Table, check_table, column_names, open_table

__all__ = ["Block", "Fact", "Table", "check_table", "column_names", "open_table"]
