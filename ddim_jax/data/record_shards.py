"""Sets of records in shards of array_record, which are read at random.

    folder/NAME-00000.array_record    records 0..size - 1
           NAME-00001.array_record    records size..2 size - 1

A shard appears whole or not at all, so a set that was begun goes on with the shards that are
missing. A set that is read keeps a file open for each shard that was asked for. Many systems let a
process have 1,024 unless it asks for more: a set of many shards does.
"""

import contextlib
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddim_jax.files import part_of


class Shards(NamedTuple):
    """Where the records of a set are.

    Attributes:
        folder: that holds them; made before the first is written.
        name: that files begin with.
        size: records in a shard; the last of a set may hold fewer.
        options: of array_record's writer.
    """

    folder: Path
    name: str
    size: int
    options: str = "group_size:1"

    def path(self, first: int) -> Path:
        """Of the shard that begins with record `first`."""
        return self.folder / f"{self.name}-{first // self.size:05d}.array_record"

    def missing(self, count: int) -> list[range]:
        """The places of the records in every shard that is missing, damaged, or of another length.

        Reads all that is there.

        Args:
            count: records in the whole set.
        """
        return [places for places in self._all(count) if self._length(places) != len(places)]

    def write(self, first: int, records: Sequence[bytes]) -> None:
        """Writes the shard that begins with record `first`."""
        from array_record.python.array_record_module import ArrayRecordWriter

        with part_of(self.path(first)) as part:
            writer = ArrayRecordWriter(str(part), self.options)
            for record in records:
                writer.write(record)
            writer.close()

    def absent(self, count: int) -> list[str]:
        """Names of the files of a set that are not there."""
        paths = [self.path(places.start) for places in self._all(count)]
        return [path.name for path in paths if not path.exists()]

    def open(self, count: int) -> Any:
        """The records of a set by their places: `[i]`, `__getitems__([i, ...])`.

        Raises:
            OSError: too many files are open.
            ValueError: a shard is damaged, or not as many records are there.
        """
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        paths = [str(self.path(places.start)) for places in self._all(count)]
        _allow(len(paths))
        try:
            records = ArrayRecordDataSource(paths)
            if len(records) != count:
                raise ValueError(f"{len(records)} records, not {count}")
            _ = records[count - 1]
        except (RuntimeError, IndexError, OSError) as error:
            check_open_files(error)
            raise ValueError(str(error)) from error
        return records

    def _all(self, count: int) -> list[range]:
        starts = range(0, count, self.size)
        return [range(first, min(first + self.size, count)) for first in starts]

    def _length(self, places: range) -> int:
        """Records in a shard that can be read; 0 if there are none."""
        from array_record.python.array_record_module import ArrayRecordReader

        path = self.path(places.start)
        try:
            return len(ArrayRecordReader(str(path)).read_all()) if path.exists() else 0
        except (ValueError, RuntimeError, OSError) as error:
            check_open_files(error)
            return 0


def check_open_files(error: Exception) -> None:
    """Raises OSError where an error in reading shards says that too many files are open.

    That is no damage: what mends damage would not help.
    """
    if os.strerror(errno.EMFILE) in str(error):
        raise OSError(
            f"too many files are open, and a set of records opens one for each of its shards "
            f"({error}); let a process have more, by ulimit -n or as whoever set that limit does"
        ) from error


def _allow(count: int) -> None:
    """Lets this process have so many more open files, as far as it may, if they are many."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # then it has what it has
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and 4 * count > soft:
            most = soft + count if hard == resource.RLIM_INFINITY else min(soft + count, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
