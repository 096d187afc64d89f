"""Sections of one source of documents: files, lists of files, or a dataset of the hub."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from configs.schema.section import Custom, PathText, PatternText, Section

Format = Literal[
    "auto", "text", "jsonl", "json", "csv", "parquet", "warc", "wet", "html", "markdown", "xml", "fasta", "fastq"
]


class HubDataset(Section):
    """A dataset opened through `datasets.load_dataset`, streamed."""

    path: str = Field(description="Dataset name on the hub, or a builder such as `json` or `text`.")
    name: str | None = Field(None, description="Configuration of the dataset, such as `sample-10BT`.")
    split: str = Field("train", description="Split to read.")
    data_files: list[PatternText] | None = Field(None, description="Files for a local builder.")
    revision: str | None = Field(None, description="Commit or tag; pin it to make the run repeatable.")


class Source(Section):
    """One named stream of documents."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Short name, used in the funnel and the mixture."
    )
    path: list[PatternText] | PatternText | None = Field(
        None,
        description="Files, globs or fsspec URLs (s3://, gs://, https://): .txt .md .jsonl .json .csv .tsv .parquet "
        ".warc .wet .arc .html .xml .cnxml .fasta .fastq, each also .gz .zst .lz4 .bz2 .xz, and .tar or .zip of "
        "these. Globs are sorted.",
    )
    paths_file: PathText | None = Field(
        None,
        description="Instead of `path`: a file or URL (also .gz) with a path or URL a line, such as the "
        "`warc.paths.gz` of a Common Crawl snapshot.",
    )
    paths_prefix: PathText | None = Field(
        None,
        description="Stands before every line of `paths_file` that is no URL, such as `https://data.commoncrawl.org/`; "
        "null: such lines lie beside the list.",
    )
    sample: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Read this share of the files, chosen by a hash of their names: the same on every machine, and "
        "part of any larger share.",
    )
    max_files: int | None = Field(None, ge=1, description="Read no more than this many files, the first ones.")
    hub: HubDataset | None = Field(None, description="Instead of `path`: a dataset for `datasets.load_dataset`.")
    format: Format = Field("auto", description="How files are read; auto: by the ending.")
    reader: Custom | None = Field(
        None,
        description="A function that reads every file of the source, instead of `format`: from the stream of a file's "
        "bytes (decompressed) to the records in it.",
    )
    members: str = Field("**", description="Glob: which members of a .tar or .zip are read.")
    storage_options: dict[str, Any] = Field(
        {},
        description="Passed to fsspec with a URL, such as `{endpoint_url: https://storage.example}` or, for buckets "
        "open to all, `{anon: true}`.",
    )
    text_field: list[str] | str = Field(
        "text",
        description="Field, or dotted path of fields, with the text (.jsonl, .json, .csv, .parquet, hub); several are "
        "joined by an empty line, lists of strings by line ends; `*` takes every string of the record.",
    )
    id_field: str = Field(
        "id", description="Field with the document id; where absent, the id is file name and position."
    )
    url_field: str = Field("url", description="Field with the address; may be absent.")
    header: bool | None = Field(
        None, description="Whether the first row of a .csv or .tsv names the columns (else `0`, `1`, …); null: guessed."
    )
    markup: Literal["auto", "none", "html", "xml"] = Field(
        "auto", description="Markup to extract text from; auto: by format and media type, none inside fields."
    )
    text_documents: Literal["file", "line", "paragraph"] = Field(
        "file", description="What one document is in a .txt file."
    )
    language: str | None = Field(None, description="ISO 639-1 code of all documents, where it is known beforehand.")
    skip: list[Literal["lines", "language", "quality", "privacy"]] = Field(
        [], description="Steps that this source does not go through, such as `quality` for code or sequences."
    )
    split: Literal["hash", "train", "validation"] = Field(
        "hash",
        description="`hash`: by the document id, see `validation_fraction`; otherwise all documents go to this split.",
    )
    weight: float | None = Field(
        None,
        gt=0,
        description="Share of training windows, relative to the other sources; null: in proportion to its tokens.",
    )
    max_epochs: float | None = Field(
        None, gt=0, description="Most passes over this source; the other sources share the rest."
    )
    max_documents: int | None = Field(None, ge=1, description="Read no more than this many documents of each file.")
    max_bytes: int | None = Field(
        None, ge=1, description="Read no further in a file than the document that brings it to this many bytes."
    )
    licence: str | None = Field(None, description="Licence of the text, repeated in the report.")

    @model_validator(mode="after")
    def _one_origin(self) -> Source:
        if sum(origin is not None for origin in (self.path, self.paths_file, self.hub)) != 1:
            raise ValueError(
                "give exactly one of `path` (files), `paths_file` (a list of files) and `hub` (a dataset for "
                "datasets.load_dataset)"
            )
        if self.paths_prefix is not None and self.paths_file is None:
            raise ValueError("`paths_prefix` belongs to `paths_file`")
        if self.reader is not None and (self.hub is not None or self.format != "auto"):
            raise ValueError("`reader` reads files by itself: leave out `format`, and give `path` or `paths_file`")
        if self.hub is not None and (self.sample is not None or self.max_files is not None):
            raise ValueError("`sample` and `max_files` choose among files; with `hub` use `max_documents`")
        return self

    @property
    def text_fields(self) -> list[str]:
        """`text_field` as a list."""
        return [self.text_field] if isinstance(self.text_field, str) else self.text_field
