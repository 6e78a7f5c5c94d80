"""Backup file format: gzip-compressed JSON lines, readable with `zcat`.

The first line is the header. The rows of its tables follow in its order, each an array. The last line is the SHA-256
of all lines before. It detects damage, not forgery: anyone who can write the file controls the restored data.
"""

import gzip
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Self

from moorage_common.files import sync_folder
from pydantic import BaseModel, NonNegativeInt

from moorage_controller.errors import StartupError
from moorage_controller.store.database.table_dump import Row

FORMAT = "moorage-backup"
VERSION = 1
_BATCH_SIZE = 500
_LONGEST_HEADER = 1 << 20


class Outline(BaseModel):
    """A table of a backup: its columns in row order, and its row count."""

    name: str
    columns: list[str]
    rows: NonNegativeInt


class Header(BaseModel):
    """Header of a backup: the release that made it, the time (aware, in UTC), and the schema revision."""

    format: str = FORMAT
    version: int = VERSION
    release: str
    revision: str
    made_at: datetime
    tables: list[Outline]

    @property
    def rows(self) -> int:
        """The total row count."""
        return sum(table.rows for table in self.tables)


class BackupWriter:
    """Writes a backup to a temporary file (mode 0600) beside its target: `begin`, `add`, `finish`, which renames it.

    Blocking: use a thread. Every call raises StartupError with a sentence if the file can't be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part: Path | None = None
        self._digest = hashlib.sha256()
        self._file: IO[bytes]
        self._packed: gzip.GzipFile

    def begin(self, header: Header) -> None:
        """Create the file, and write the header."""
        self._refuse_existing()
        with self._translate_file_errors():
            descriptor, part = tempfile.mkstemp(prefix=f".{self._path.name}.", suffix=".part", dir=self._path.parent)
        self._part = Path(part)
        self._file = os.fdopen(descriptor, "wb")
        self._packed = gzip.GzipFile("", "wb", fileobj=self._file, mtime=0)
        self._put([header.model_dump_json()])

    def add(self, rows: Sequence[Row]) -> None:
        """Add rows of the current table, in the header's order."""
        self._put([json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows])

    def finish(self) -> int:
        """Write the checksum, sync to disk, and rename the file; return its size in bytes."""
        self._put([json.dumps({"sha256": self._digest.hexdigest()})])
        with self._translate_file_errors():
            self._packed.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._refuse_existing()
            assert self._part is not None
            self._part.rename(self._path)
            sync_folder(self._path.parent)
            return self._path.stat().st_size

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file, and remove it if it wasn't finished."""
        if self._part is None:
            return
        self._part.unlink(missing_ok=True)
        # On a full disk the gzip trailer can't be written.
        with suppress(OSError, ValueError):
            self._packed.close()
        with suppress(OSError):
            self._file.close()

    def _put(self, lines: Sequence[str]) -> None:
        data = "".join(f"{line}\n" for line in lines).encode()
        self._digest.update(data)
        with self._translate_file_errors():
            self._packed.write(data)

    def _refuse_existing(self) -> None:
        if os.path.lexists(self._path):
            raise StartupError(
                "file_exists", f"{self._path} exists, and a backup overwrites nothing: give another name, or remove it."
            )

    @contextmanager
    def _translate_file_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StartupError(
                "backup_not_written",
                f"{self._path} can't be written ({error.strerror}), and nothing is left of it: "
                "give a folder with room that this user may write to.",
            ) from None


class BackupReader:
    """Reads a backup once, from beginning to end. Blocking: use a thread.

    Every call raises StartupError with a sentence for a file that can't be read, is damaged or newer than this release.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        with self._translate_file_errors():
            self._file = gzip.open(path, "rb")  # noqa: SIM115 - `__exit__` closes it
        try:
            self.header = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def batches(self) -> Iterator[tuple[Outline, list[Row]]]:
        """Yield all rows in batches of one table; none is trustworthy until the iteration has ended."""
        with self._translate_file_errors():
            for table in self.header.tables:
                for begin in range(0, table.rows, _BATCH_SIZE):
                    wanted = min(_BATCH_SIZE, table.rows - begin)
                    yield table, [self._row(len(table.columns)) for _ in range(wanted)]
            self._check_end()

    def __enter__(self) -> Self:
        """Return the reader."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()

    def _read_header(self) -> Header:
        no_backup = StartupError("not_a_backup", f"{self._path} is no backup of Moorage: give another file.")
        with self._translate_file_errors():
            try:
                line = self._file.readline(_LONGEST_HEADER)
                told = json.loads(line)
            except (gzip.BadGzipFile, ValueError):
                raise no_backup from None
            if not isinstance(told, dict) or told.get("format") != FORMAT:
                raise no_backup
            if told.get("version") != VERSION:
                raise newer_backup(self._path, str(told.get("release")))
            self._digest.update(line)
            return Header.model_validate(told)

    def _row(self, columns: int) -> Row:
        line = self._file.readline()
        self._digest.update(line)
        row = json.loads(line)
        if not isinstance(row, list) or len(row) != columns:
            raise ValueError("a row that isn't one")
        return row

    def _check_end(self) -> None:
        told = json.loads(self._file.readline())
        if told != {"sha256": self._digest.hexdigest()} or self._file.read(1):
            raise ValueError("another sum")

    @contextmanager
    def _translate_file_errors(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, zlib.error, gzip.BadGzipFile, ValueError):
            raise StartupError(
                "damaged_backup",
                f"{self._path} is damaged or cut short, so nothing was restored: take another copy, or an older one.",
            ) from None
        except OSError as error:
            raise StartupError(
                "backup_not_read", f"{self._path} can't be read ({error.strerror}): give another file."
            ) from None


def newer_backup(path: Path, release: str) -> StartupError:
    """Return the error for a backup of a newer release."""
    return StartupError(
        "newer_backup",
        f"{path} was made by release {release}, which is newer than this one: install that release, or a later one.",
    )
