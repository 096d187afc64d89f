"""Reads files of every format into raw records, streaming: memory does not depend on the size of a file.

A raw record is the bytes of a line, paragraph, page or stretch of text, or the mapping of a table's row;
`data_prep/documents/conversion.py` makes documents of them. What cannot be read is a record without a value, with the
reason: a bad record is passed over, and a damaged file gives what was readable, then one record that says why it ended.
"""

from data_prep.readers.formats import check_format, file_format, read_records
from data_prep.readers.records import JSON_TYPE, RawRecord, Reading, row_size
from data_prep.readers.text import cut_position

__all__ = [
    "JSON_TYPE",
    "RawRecord",
    "Reading",
    "check_format",
    "cut_position",
    "file_format",
    "read_records",
    "row_size",
]
