"""Defines the section of one source of documents: files, lists of files, or a dataset of the hub."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from configs.schema.chat import Shape
from configs.schema.section import Custom, PathText, PatternText, Section

Format = Literal[
    "auto", "text", "jsonl", "json", "csv", "parquet", "warc", "wet", "html", "markdown", "xml", "fasta", "fastq"
]


class HubDataset(Section):
    """A dataset that `datasets.load_dataset` streams."""

    path: str = Field(description="Name of a dataset on the hub, or of a builder such as `json` or `text`.")
    name: str | None = Field(None, description="Configuration of the dataset, such as `sample-10BT`.")
    split: str = Field("train", description="Split to read.")
    data_files: list[PatternText] | None = Field(None, description="Files for a builder.")
    revision: str | None = Field(None, description="Commit or tag. Pin it to make the run repeatable.")


class Source(Section):
    """One named stream of documents."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Short name, shown in the funnel and the mixture."
    )
    path: list[PatternText] | PatternText | None = Field(
        None,
        description="Files, globs or fsspec URLs (s3://, gs://, https://): .txt .md .jsonl .json .csv .tsv .parquet "
        ".warc .wet .arc .html .xml .cnxml .fasta .fastq, each also .gz .zst .lz4 .bz2 .xz, and .tar or .zip of "
        "these. Files of a glob are sorted.",
    )
    paths_file: PathText | None = Field(
        None,
        description="Instead of `path`: a file or URL (also .gz) with one path or URL per line, such as the "
        "`warc.paths.gz` of a Common Crawl snapshot.",
    )
    paths_prefix: PathText | None = Field(
        None,
        description="Prefix for lines of `paths_file` that are not URLs, such as `https://data.commoncrawl.org/`; "
        "null: such lines are relative to the list's directory.",
    )
    sample: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Read only this share of the files, chosen by a hash of their names. The choice is the same on "
        "every machine, and a larger share contains a smaller one.",
    )
    max_files: int | None = Field(None, ge=1, description="Read only the first files, as many as this.")
    hub: HubDataset | None = Field(None, description="Instead of `path`: a dataset for `datasets.load_dataset`.")
    format: Format = Field("auto", description="Format of the files; auto: by the file name's suffix.")
    reader: Custom | None = Field(
        None,
        description="Instead of `format`: a function that takes the stream of a file's bytes (decompressed) and yields "
        "its records.",
    )
    members: str = Field("**", description="Glob for the members of a .tar or .zip to read.")
    storage_options: dict[str, Any] = Field(
        {},
        description="Options for fsspec with a URL, such as `{endpoint_url: https://storage.example}`, or `{anon: "
        "true}` for public buckets.",
    )
    text_field: list[str] | str = Field(
        "text",
        description="Field, or dotted path of fields, with the text (.jsonl, .json, .csv, .parquet, hub). Several "
        "fields are joined by an empty line, lists of strings by line ends. `*` takes every string of the record.",
    )
    id_field: str = Field(
        "id", description="Field with the document id. Without the field, the id is file name and position."
    )
    url_field: str = Field("url", description="Field with the document's URL; optional in records.")
    header: bool | None = Field(
        None,
        description="true: the first row of a .csv or .tsv has the column names; false: columns are `0`, `1`, …; null: "
        "detect it.",
    )
    markup: Literal["auto", "none", "html", "xml"] = Field(
        "auto",
        description="Markup to extract text from; auto: by format and media type, and none for text in fields.",
    )
    shape: Shape = Field(
        "text",
        description="How a record becomes what the stage's objective reads. text: a document of `text_field`. openai: "
        "`messages` of role and content. sharegpt: `conversations` of from and value. alpaca: instruction, input, "
        "output. hh: chosen and rejected transcripts. gsm8k: question and answer, `####` before the result. pairs: "
        "prompt, chosen, rejected. See docs/conversations.md.",
    )
    text_documents: Literal["file", "line", "paragraph"] = Field(
        "file", description="Unit of a .txt file that is one document."
    )
    language: str | None = Field(None, description="ISO 639-1 code of all documents, if it is known.")
    skip: list[Literal["lines", "language", "quality", "privacy"]] = Field(
        [], description="Steps to skip for this source, such as `quality` for code or sequences."
    )
    split: Literal["hash", "train", "validation"] = Field(
        "hash",
        description="`hash`: by the document id, see `validation_fraction`. Otherwise all documents go to this split.",
    )
    weight: float | None = Field(
        None,
        gt=0,
        description="Weight of this source in the mixture, relative to the other sources; null: its number of tokens.",
    )
    max_epochs: float | None = Field(
        None, gt=0, description="Maximum passes over this source. The other sources fill the rest of the batch."
    )
    max_documents: int | None = Field(None, ge=1, description="Read no more than this many documents of each file.")
    max_bytes: int | None = Field(
        None, ge=1, description="Stop reading a file after the document that reaches this many bytes."
    )
    licence: str | None = Field(None, description="Licence of the text, shown in the report.")
    prefix: str = Field(
        "",
        max_length=200,
        description="Tag before every document, such as `<zh> `: the model reads it as text. It is written with the "
        "tokens, so steps before see documents without it. A prompt that begins with it asks for this kind of text.",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Source:
        if sum(origin is not None for origin in (self.path, self.paths_file, self.hub)) != 1:
            raise ValueError(
                "give exactly one of `path` (files), `paths_file` (a list of files) and `hub` (a dataset for "
                "datasets.load_dataset)"
            )
        if self.paths_prefix is not None and self.paths_file is None:
            raise ValueError("`paths_prefix` needs `paths_file`; set that too, or drop `paths_prefix`")
        if self.reader is not None and (self.hub is not None or self.format != "auto"):
            raise ValueError("`reader` reads files by itself: leave out `format`, and give `path` or `paths_file`")
        if self.hub is not None and (self.sample is not None or self.max_files is not None):
            raise ValueError("`sample` and `max_files` choose among files; with `hub` use `max_documents`")
        if self.prefix and self.shape != "text":
            raise ValueError(
                f"`prefix` goes before documents; records of shape {self.shape} have a chat template: drop `prefix`"
            )
        return self

    @property
    def text_fields(self) -> list[str]:
        """`text_field` as a list."""
        return [self.text_field] if isinstance(self.text_field, str) else self.text_field
