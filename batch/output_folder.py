"""A folder on any filesystem that pyarrow knows: a local path, s3://, gs://, ..."""

import uuid
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs


class LocationUnusable(ValueError):
    """A path or URI that cannot be what it is meant to be."""


def absolute(location: str) -> str:
    """A URI as it is, a local path from the root, so that it means the same to every worker."""
    return location if "://" in location else str(Path(location).expanduser().absolute())


def resolve(location: str) -> tuple[fs.FileSystem, str]:
    """The filesystem and the path in it of a local path or a URI. Raises LocationUnusable."""
    try:
        location = absolute(location)
        uri = location if "://" in location else Path(location).as_uri()
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (OSError, RuntimeError, ValueError) as error:
        raise LocationUnusable(f"cannot open {location}: {error}") from error
    return filesystem, path


class OutputFolder:
    """Names are relative, with forward slashes. A file is not there or is there whole."""

    def __init__(self, location: str) -> None:
        """Raises LocationUnusable."""
        self._filesystem, self._root = resolve(location)
        self.location = absolute(location)
        if self._filesystem.get_file_info(self._root).type == fs.FileType.File:
            raise LocationUnusable(f"{location} is a file, not a folder")

    def write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        if not isinstance(self._filesystem, fs.LocalFileSystem):
            self._put(path, data)  # an object store shows an object only when it is whole
            return
        target = PurePosixPath(path)
        self._filesystem.create_dir(str(target.parent), recursive=True)
        partial = str(target.with_name(f".{target.name}.{uuid.uuid4().hex}"))
        self._put(partial, data)
        self._filesystem.move(partial, path)

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        with self._filesystem.open_input_stream(self._path(name)) as stream:
            content: bytes = stream.read()
        return content

    def exists(self, name: str) -> bool:
        info = self._filesystem.get_file_info(self._path(name))
        return bool(info.type == fs.FileType.File)

    def list(self, folder: str) -> list[str]:
        """The sorted file names in a folder; none where there is no such folder."""
        selector = fs.FileSelector(self._path(folder), allow_not_found=True)
        names = [info.base_name for info in self._filesystem.get_file_info(selector)]
        return sorted(name for name in names if not name.startswith("."))

    def delete(self, name: str) -> None:
        self._filesystem.delete_file(self._path(name))

    def is_within(self, location: str) -> bool:
        """Whether this folder is `location` or lies in it."""
        filesystem, path = resolve(location)
        inside = f"{self._root}/".startswith(f"{path.rstrip('/')}/")
        return inside and bool(filesystem == self._filesystem)

    def write_table(self, name: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        self.write(name, sink.getvalue().to_pybytes())

    def read_table(self, name: str) -> pa.Table:
        return pq.read_table(pa.BufferReader(self.read(name)))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _put(self, path: str, data: bytes) -> None:
        with self._filesystem.open_output_stream(path) as stream:
            stream.write(data)
