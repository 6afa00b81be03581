"""Radiology reports of MIMIC-CXR: where they lie, and which of their words are kept.

The text of a report is its impression, then its findings; sentences of fewer than 2 words and reports of fewer than 3
are dropped, as in the released code of FedDRA (ALGORITHMS, A.6) and before it in MGCA (Wang et al., NeurIPS 2022).
Unlike there, case, punctuation and decimal points stay.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from fedhpc.data.packers.source import BadRow, Row

_HEADING = re.compile(r"^[ \t]*((?i:findings?|impressions?)|[A-Z][A-Z ,/&()-]{2,60}?)[ \t]*:", re.MULTILINE)
_FINDINGS = {"FINDINGS", "FINDING"}
_IMPRESSION = {"IMPRESSION", "IMPRESSIONS", "CONCLUSION", "CONCLUSIONS"}
_BOTH = {"FINDINGS AND IMPRESSION", "FINDINGS/IMPRESSION", "IMPRESSION AND FINDINGS", "FINDINGS & IMPRESSION"}
_NUMBERING = re.compile(r"(?:(?<=^)|(?<=[.?!:;] ))\(?\d{1,2}[.)] +")
_SENTENCE_END = re.compile(r"(?<=[.?!])\s+")
_WORD = re.compile(r"\w+")
MIN_SENTENCE_WORDS = 2
MIN_REPORT_WORDS = 3


def sections(report: str) -> dict[str, str]:
    """Sections of a report by heading: a line that begins with capitals and a colon. White space is collapsed."""
    marks = list(_HEADING.finditer(report))
    out: dict[str, str] = {}
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        body = " ".join(report[mark.end() : following.start() if following else len(report)].split())
        name = " ".join(mark.group(1).split()).upper()
        if body:  # an addendum may repeat a heading
            out[name] = f"{out[name]} {body}" if name in out else body
    return out


def report_text(report: str) -> str:
    """Impression and findings as kept sentences, one blank between them; "" where fewer than 3 words are left."""
    found = sections(report)
    parts = [body for names in (_IMPRESSION | _BOTH, _FINDINGS) for name, body in found.items() if name in names]
    sentences = [sentence for part in parts for sentence in _sentences(part)]
    text = " ".join(sentences)
    return text if len(_WORD.findall(text)) >= MIN_REPORT_WORDS else ""


def _sentences(text: str) -> list[str]:
    pieces = _SENTENCE_END.split(_NUMBERING.sub("", text))
    return [piece for piece in pieces if len(_WORD.findall(piece)) >= MIN_SENTENCE_WORDS]


class Reports:
    """Reports in the official tree files/p10/p10000032/s50414267.txt: a folder, or mimic-cxr-reports.zip."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self._zip: zipfile.ZipFile | None = None
        if where.is_file():
            try:
                self._zip = zipfile.ZipFile(where)
            except (zipfile.BadZipFile, OSError) as error:
                raise ValueError(f"{where} is truncated or no zip archive ({error}): copy mimic-cxr-reports.zip again, "
                                 "or give its unpacked folder") from error  # fmt: skip
            if not any(name.startswith("files/") for name in self._zip.namelist()):
                raise ValueError(f"{where} holds no files/p10/...: --reports takes mimic-cxr-reports.zip of MIMIC-CXR")
        elif not where.is_dir():
            raise FileNotFoundError(f"{where} does not exist: --reports takes mimic-cxr-reports.zip of MIMIC-CXR, or "
                                    "the folder that it unpacks to (with files/p10/...)")  # fmt: skip
        elif not (where / "files").is_dir():
            raise FileNotFoundError(f"{where} holds no folder files: give the folder above files/p10/...")

    def read(self, patient: str, study: str, row: Row) -> str:
        """The whole report. Raises BadRow where there is none."""
        name = f"files/p{patient[:2]}/p{patient}/s{study}.txt"
        try:
            data = self._zip.read(name) if self._zip else (self.where / name).read_bytes()
        except (KeyError, OSError, zipfile.BadZipFile) as error:
            raise BadRow("missing report", f"{row.where}: {self.where} has no readable {name}: complete the reports"
                         ) from error  # fmt: skip
        return data.decode("utf-8", errors="replace")

    def close(self) -> None:
        if self._zip:
            self._zip.close()
