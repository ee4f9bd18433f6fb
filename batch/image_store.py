"""Where a shard's pictures go: files, a Parquet file or a tar archive, for dataset loaders.

What is written here is a function of the plan and the model alone: the same bytes in every run.
"""

import io
import json
import tarfile
from abc import ABC, abstractmethod
from functools import cached_property
from typing import ClassVar, Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from batch.output_folder import OutputFolder, parquet_bytes
from batch.records import rows_of

Format = Literal["files", "parquet", "webdataset"]

# What the pictures that are files are, in one file that dataset loaders look for.
INDEX = "images/metadata.parquet"

# Read by the `datasets` library: the column "image" is to be decoded.
_IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_FEATURES = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})}


class ShardImages(Protocol):
    """The pictures of one shard, by their names in it."""

    def add(self, name: str, data: bytes) -> str:
        """Take a picture; its `file_name` for the metadata."""

    def keep(self, name: str) -> None:
        """Take a picture that was stored before."""

    def read(self, name: str) -> bytes:
        """A picture that was stored before."""

    def finish(self, rows: pa.Table) -> None:
        """Store what is not stored yet. `rows` describe the pictures, in order, by `file_name`."""


class ImageFiles:
    """images/<shard>/<name>, each as soon as it is there."""

    def __init__(self, output: OutputFolder, shard: str) -> None:
        self._output = output
        self._shard = shard

    def add(self, name: str, data: bytes) -> str:
        self._output.write(f"images/{self._shard}/{name}", data)
        return f"{self._shard}/{name}"

    def keep(self, name: str) -> None:
        pass

    def read(self, name: str) -> bytes:
        return self._output.read(f"images/{self._shard}/{name}")

    def finish(self, rows: pa.Table) -> None:
        pass


class _Bundle(ABC):
    """All pictures of a shard in one file, written at its end."""

    _file_of_shard: ClassVar[str]

    def __init__(self, output: OutputFolder, shard: str) -> None:
        self._output = output
        self._file = self._file_of_shard.format(shard)
        self._pictures: dict[str, bytes] = {}

    def add(self, name: str, data: bytes) -> str:
        self._pictures[name] = data
        return name

    def keep(self, name: str) -> None:
        self._pictures[name] = self.read(name)

    def read(self, name: str) -> bytes:
        return self._stored[name]

    def finish(self, rows: pa.Table) -> None:
        if rows.num_rows == 0:
            return  # dataset loaders stumble over a file without pictures
        pictures = [self._pictures[name] for name in rows.column("file_name").to_pylist()]
        self._output.write(self._file, self._packed(rows, pictures))

    @cached_property
    def _stored(self) -> dict[str, bytes]:
        return self._unpacked(self._output.read(self._file))

    @staticmethod
    @abstractmethod
    def _packed(rows: pa.Table, pictures: list[bytes]) -> bytes: ...

    @staticmethod
    @abstractmethod
    def _unpacked(content: bytes) -> dict[str, bytes]: ...


class ParquetFile(_Bundle):
    """data/<shard>.parquet, with a column `image` of the pictures' bytes and names."""

    _file_of_shard = "data/{}.parquet"

    @staticmethod
    def _packed(rows: pa.Table, pictures: list[bytes]) -> bytes:
        names = rows.column("file_name").to_pylist()
        images = [{"bytes": data, "path": name} for name, data in zip(names, pictures, strict=True)]
        table = rows.add_column(0, "image", pa.array(images, _IMAGE_TYPE))
        return parquet_bytes(table.replace_schema_metadata(_FEATURES))

    @staticmethod
    def _unpacked(content: bytes) -> dict[str, bytes]:
        images = pq.read_table(pa.BufferReader(content), columns=["image"]).column("image")
        return {image["path"]: image["bytes"] for image in images.to_pylist()}


class TarFile(_Bundle):
    """shards/<shard>.tar, with a picture and a .json of the same name, as WebDataset reads them."""

    _file_of_shard = "shards/{}.tar"

    @staticmethod
    def _packed(rows: pa.Table, pictures: list[bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for row, data in zip(rows_of(rows), pictures, strict=True):
                about = json.dumps(row, ensure_ascii=False, default=str)
                _add(archive, row["file_name"], data)
                _add(archive, f"{row['image_id']}.json", about.encode())
        return buffer.getvalue()

    @staticmethod
    def _unpacked(content: bytes) -> dict[str, bytes]:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            files = {member.name: archive.extractfile(member) for member in archive}
            return {name: file.read() for name, file in files.items() if file is not None}


def shard_images(output: OutputFolder, shard: str, format: Format) -> ShardImages:
    kinds: dict[Format, type[ImageFiles] | type[ParquetFile] | type[TarFile]] = {
        "files": ImageFiles,
        "parquet": ParquetFile,
        "webdataset": TarFile,
    }
    return kinds[format](output, shard)


def picture_name(file_name: str) -> str:
    """The name in its shard of the picture that the metadata has as `file_name`."""
    return file_name.rpartition("/")[2]


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # of no time and no owner
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
