"""Spreadsheets (.xls, .xlsx) and CSV files as rows; xlrd and openpyxl are an optional extra."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

from fedhpc.data.packers.source import Row, read_table

_NEEDS = {".xls": "xlrd", ".xlsx": "openpyxl"}


def read_sheet(path: Path) -> list[Row]:
    """Rows of the first sheet, by the names in its first line; numbers without fraction lose their ".0".

    Raises FileNotFoundError, or ValueError for a file that is no spreadsheet, or whose reader is not installed.
    """
    kind = path.suffix.lower()
    if kind not in _NEEDS:
        return read_table(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the spreadsheet that lists the rows")
    if importlib.util.find_spec(_NEEDS[kind]) is None:
        raise ValueError(f"{path.name} needs {_NEEDS[kind]}: pip install -c constraints.txt -e '.[sheets]', or save "
                         "it as CSV under the same name")  # fmt: skip
    lines = _xls(path) if kind == ".xls" else _xlsx(path)
    header = lines[0] if lines else []
    rows: list[Row] = []
    for number, cells in enumerate(lines[1:], 2):
        values = {name: cell for name, cell in zip(header, cells, strict=False) if name}
        if any(values.values()):
            rows.append(Row(values, f"{path}, line {number}", len(rows)))
    if not rows:
        raise ValueError(f"{path} has no rows: its first sheet needs a header and at least one line")
    return rows


def _xls(path: Path) -> list[list[str]]:
    import xlrd

    try:
        sheet = xlrd.open_workbook(path).sheet_by_index(0)
        return [_texts(sheet.row_values(line)) for line in range(sheet.nrows)]
    except Exception as error:  # xlrd raises its own and struct's, index and assertion errors
        raise ValueError(f"{path} is not a readable .xls file ({error}): copy it again, or save it as CSV") from error


def _xlsx(path: Path) -> list[list[str]]:
    import openpyxl

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        lines = [_texts(line) for line in book.worksheets[0].iter_rows(values_only=True)]
        book.close()
        return lines
    except Exception as error:  # a dozen kinds, from zipfile's to KeyError
        raise ValueError(f"{path} is not a readable .xlsx file ({error}): copy it again, or save it as CSV") from error


def _texts(cells: Iterable[object]) -> list[str]:
    out = []
    for cell in cells:
        whole = isinstance(cell, float) and cell.is_integer()
        out.append("" if cell is None else str(cell).removesuffix(".0") if whole else str(cell).strip())
    return out
