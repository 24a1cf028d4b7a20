"""Raw text from tensorflow-datasets."""

import re
from collections.abc import Iterator
from typing import Any

from jaxbert.text.readers import Bad, CorpusError, encoded, one_line

_NODE_NAMES = re.compile(r"\{\{function_node.*?\}\} ?")
_TFDS = re.compile(r"tfds:(?P<name>[^:]+(?::[\d*]+\.[\d*]+\.[\d*]+)?):(?P<split>.+)")


class DataSet:
    """A split of a tensorflow-datasets data set, from `tfds:NAME/CONFIG:SPLIT`; TFDS_DATA_DIR says where it lies."""

    def __init__(self, source: str, field: str):
        """Raises `CorpusError` when there is no such data set, split, or field of text."""
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise CorpusError(f"{source}: needs tensorflow-datasets: pip install tensorflow-datasets") from error
        match = _TFDS.fullmatch(source)
        if not match:
            raise CorpusError(f"{source}: not of the form tfds:NAME/CONFIG:SPLIT, such as tfds:wiki40b/en:train")
        self.source: str = source
        self._field, self._split = field, match["split"]
        # What goes wrong below is the network's, the disk's or the data set's own: its text is all there is to tell.
        try:
            # Its types tell too little of a data set that is known by its name alone.
            self._builder: Any = tfds.builder(match["name"])
            if not self._builder.is_prepared():
                self._builder.download_and_prepare()
            self._info = self._builder.info.splits[self._split]
        except Exception as error:
            raise CorpusError(f"{source}: {one_line(error)} (TFDS_DATA_DIR says where data sets lie)") from error
        names = sorted(self._builder.info.features)
        if field not in names:
            raise CorpusError(f"{source}: no field '{field}': set data.text_field to one of {', '.join(names)}")

    def listing(self) -> dict[str, Any]:
        """Name, version and number of records, which change when the content does."""
        version = f"{self._builder.info.full_name} {self._info.num_examples}"
        return {"name": self.source, "size": int(self._info.num_bytes), "modified": version}

    def records(self) -> Iterator[bytes | Bad]:
        """The field of each record as UTF-8, in an order that is always the same.

        Raises `CorpusError` where the files are damaged or lack records.
        """
        import tensorflow_datasets as tfds

        only = tfds.decode.PartialDecoding({self._field: True})
        data = self._builder.as_dataset(split=self._split, shuffle_files=False, decoders=only)
        try:
            for record in tfds.as_numpy(data):
                yield encoded(record[self._field], self._field)
        except Exception as error:
            reason = _NODE_NAMES.sub("", str(error))
            raise CorpusError(f"{self.source}: damaged: {one_line(Exception(reason))}") from error
