

def column_values(path: str, file: Any, column: str) -> "pa.ChunkedArray":
    """Read a column of numbers, truth values or text from all rows of an open file; text as categories of bytes.

    Raises:
        UserError: if it cannot be read, or its different texts take more than :data:`GROUP_BYTES`.
    """
    import pyarrow as pa
    import pyarrow.types as kind

    with readable(path, f"cannot read column {column!r}"):
        parts: list[pa.Array] = []
        text = size = 0
        for batch in file.iter_batches(TEXT_ROWS, columns=[column], use_threads=False):
            part = batch.column(0)
            if kind.is_dictionary(part.type):
                part = part.dictionary_decode()
            if not kind.is_primitive(part.type) and not kind.is_null(part.type):
                part = part.cast(pa.binary()).dictionary_encode()
                text += part.dictionary.nbytes
            parts.append(part)
            size += len(part)
            if text > GROUP_BYTES or size > file.metadata.num_rows:
                break
        if size != file.metadata.num_rows:
            raise UserError(f"{path}: cannot read column {column!r} (it has other rows than the footer says)")
        return pa.chunked_array(parts).unify_dictionaries()
