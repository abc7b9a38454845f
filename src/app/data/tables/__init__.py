"""CSV and Parquet files as named columns, with one model of a column (kind, missing values, exactness) for all formats.

`open_table` finds the files and determines what each column is, from all its cells. `Table.blocks` then returns rows:
numbers are float64, whole times are exact, text is text. Every error names file, row and column. CSV needs no further
package.
"""

from app.data.tables.blocks import Block
from app.data.tables.facts import Fact
from app.data.tables.table import Table, check_table, column_names, open_table

__all__ = ["Block", "Fact", "Table", "check_table", "column_names", "open_table"]
