"""Sets of records in shards of array_record, which are read at random.

    folder/NAME-00000.array_record    records 0..size - 1
           NAME-00001.array_record    records size..2 size - 1

A shard appears whole or not at all, so a set that was begun goes on with the shards that are
missing.
"""

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
            ValueError: a shard is damaged, or not as many records are there.
        """
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        try:
            records = ArrayRecordDataSource([str(self.path(p.start)) for p in self._all(count)])
            if len(records) != count:
                raise ValueError(f"{len(records)} records, not {count}")
            _ = records[count - 1]
        except (RuntimeError, IndexError, OSError) as error:
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
        except (ValueError, RuntimeError, OSError):
            return 0
