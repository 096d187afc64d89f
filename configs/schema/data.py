"""Defines the recipe's `data` section.

The order is that of the pipeline: sources -> extract -> normalise -> lines -> language -> quality -> privacy -> dedup
-> decontaminate -> select -> mixture -> tokenizer -> shards. Each step has its own section. `preset` sets defaults
of several.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from configs.schema.chat import CHAT_TOKENS, END_OF_TEXT
from configs.schema.presets import PRESETS, merged
from configs.schema.quality_rules import Rule
from configs.schema.section import PathText, PatternText, Section
from configs.schema.selection import Select
from configs.schema.sources import Source


class Limits(Section):
    """Limits for documents and files. Larger ones are cut, or dropped with a reason."""

    record_bytes: int = Field(
        256 * 2**20,
        ge=1024,
        description="Drop longer records (lines, rows, web pages), with reason `record_too_long`.",
    )
    expansion: float = Field(
        1000, gt=1, description="Stop reading a compressed file that unpacks to more than this many times its size."
    )
    document_seconds: float = Field(
        30,
        gt=0,
        description="Drop a document that takes more processor time than this, in seconds per started megabyte, with "
        "reason `too_slow`.",
    )
    attempts: int = Field(
        3, ge=1, description="Maximum attempts for a read from a URL, and for a work unit whose worker crashed."
    )


class Extract(Section):
    """Extraction of text from markup."""

    html: Literal["trafilatura", "resiliparse", "text"] = Field(
        "trafilatura",
        description="trafilatura: the main text. resiliparse: the main text, much faster and less exact "
        "(docs/benchmarks.md). text: all text of the page.",
    )
    tables: bool = Field(True, description="Keep tables, one line per row.")
    comments: bool = Field(False, description="Keep readers' comments.")
    links: bool = Field(False, description="Keep the URLs of links.")


class Normalize(Section):
    """Normalisation of every document, before the language and quality steps."""

    unicode: Literal["NFC", "NFKC", "none"] = Field("NFC", description="Unicode normalisation form (UAX #15).")
    whitespace: bool = Field(
        True,
        description="Write line ends as \\n. Remove blanks at line ends, repeated empty lines, and empty lines at both "
        "ends of the text.",
    )
    mojibake: bool = Field(
        True, description="Repair text that was decoded with the wrong encoding (ftfy), if it looks like that."
    )


class Lines(Section):
    """Removes lines before the quality rules. A document with no other lines is dropped as `only_boilerplate`."""

    boilerplate: bool = Field(
        False, description="Remove cookie banners, share buttons, `read more`, notices about scripts and the like."
    )
    patterns: list[str] = Field([], description="Regular expressions. Remove every line in which one matches.")


class Language(Section):
    """Identifies the language of documents, with a model that is part of the installation."""

    identify: bool = Field(False, description="Write language and confidence into every document's metadata.")
    keep: list[str] = Field([], description="ISO 639-1 codes to keep; empty: all. A code implies `identify`.")
    min_confidence: float = Field(
        0.65, ge=0, le=1, description="With `keep`: drop documents with a lower confidence (0.65 as FineWeb)."
    )
    confidence: dict[str, float] = Field({}, description="Thresholds for single languages, such as `{zh: 0.5}`.")


class Classifier(Section):
    """A linear model on hashed n-grams. Train one with `python -m data_prep classifier GOOD BAD --out FILE`."""

    path: PathText = Field(description="The model file.")
    min_score: float = Field(
        0.5, ge=0, le=1, description="Drop documents with a lower score, with reason `low_quality_score`."
    )


class Quality(Section):
    """Drops documents by quality. Rules are applied in the given order. The first that fails is the reason."""

    min_characters: int = Field(1, ge=1, description="Drop shorter documents, with reason `too_short`.")
    max_unprintable_fraction: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Drop documents with a larger share of control, replacement or unassigned characters, with reason "
        "`not_text`.",
    )
    blocklist: PathText | None = Field(
        None,
        description="File with one domain or URL prefix per line. Drop documents from there, with reason "
        "`blocked_url`.",
    )
    blocked_words: list[str] = Field(
        [], description="Drop documents whose URL contains one of these words, with reason `blocked_url`."
    )
    rules: list[Rule] = Field([], description="Rule sets with their published thresholds, in this order.")
    classifier: Classifier | None = Field(None, description="A trained quality classifier, applied last.")


class Privacy(Section):
    """Replaces personal data by placeholders. No document is dropped. Replacements are counted."""

    emails: bool = Field(False, description="Replace e-mail addresses.")
    ip_addresses: bool = Field(False, description="Replace public IPv4 and IPv6 addresses.")
    phone_numbers: bool = Field(False, description="Replace telephone numbers.")
    card_numbers: bool = Field(
        False, description="Replace numbers that look like payment cards and pass the Luhn check."
    )
    keys: bool = Field(False, description="Replace strings that look like secret keys or tokens.")


class RepeatedLines(Section):
    """Removes lines or paragraphs that occur in earlier documents of the same source."""

    unit: Literal["line", "paragraph"] = Field("line", description="Unit that is compared.")
    keep: int = Field(1, ge=1, description="Number of occurrences to keep, in the order of files and documents.")
    min_characters: int = Field(30, ge=1, description="Ignore shorter lines or paragraphs.")


class NearDuplicates(Section):
    """MinHash-LSH over shingles (Broder 1997; bands after Leskovec, Rajaraman, Ullman, chapter 3)."""

    similarity: float = Field(
        0.8, gt=0, lt=1, description="Documents with this Jaccard similarity or more are near-duplicates."
    )
    shingle: int = Field(5, ge=1, description="Length of a shingle, in units.")
    unit: Literal["word", "character"] = Field(
        "word", description="Unit of shingles. In Chinese and Japanese every character is a word."
    )
    bands: int | None = Field(None, ge=1, description="Number of bands; null: chosen from `similarity`.")
    rows: int | None = Field(None, ge=1, description="Hashes per band; null: chosen from `similarity`.")
    verify: bool = Field(True, description="Compare the shingles of candidate pairs exactly before dropping.")
    keep: Literal["first", "longest"] = Field("first", description="Document to keep of a group of near-duplicates.")


class RepeatedSubstrings(Section):
    """Removes exact substrings that occur in an earlier document (Lee et al., arXiv:2107.06499)."""

    min_bytes: int = Field(200, ge=50, description="Minimum length of a substring, in bytes.")


class Dedup(Section):
    """Removes repeated documents, lines and passages, in this order."""

    exact: bool = Field(True, description="Drop documents with the same text as an earlier one, over all sources.")
    lines: RepeatedLines | None = Field(None, description="Remove repeated lines or paragraphs within a source.")
    near: NearDuplicates | None = Field(None, description="Drop near-duplicates, over all sources.")
    substrings: RepeatedSubstrings | None = Field(None, description="Remove repeated passages, over all sources.")


class Decontaminate(Section):
    """Compares documents with evaluation sets by n-grams (Brown et al., arXiv:2005.14165, appendix C)."""

    evaluation: bool = Field(True, description="Compare with all sets and tasks of the recipe's `evaluation`.")
    files: list[PatternText] = Field([], description="Further sets: files in any format that `data.sources` reads.")
    tasks: list[str] = Field([], description="Further tasks of lm-eval.")
    ngram: int = Field(13, ge=5, description="Length of an n-gram, in words. Case and punctuation are ignored.")
    ngram_characters: int = Field(
        20, ge=5, description="Length in characters, for Chinese, Japanese and other scripts without spaces."
    )
    max_documents: int = Field(
        10, ge=1, description="Ignore n-grams in more training documents than this: they are common phrases."
    )
    action: Literal["drop", "mark"] = Field(
        "drop",
        description="drop: drop contaminated documents. mark: keep and count them. Touched items are listed either "
        "way.",
    )


class Phase(Section):
    """A change of the mixture during training."""

    start: float = Field(ge=0, lt=1, description="Start of the phase, as a fraction of all training tokens.")
    weights: dict[str, float] = Field(
        description="Weight of each source, relative to the others. Sources not named get weight 0."
    )

    @model_validator(mode="after")
    def _positive(self) -> Phase:
        if min(self.weights.values(), default=0) < 0 or not sum(self.weights.values()):
            raise ValueError("weights must not be negative, and at least one must be above zero")
        return self


class Mixture(Section):
    """Shares of the sources in training. Without weights, temperature or phases: in proportion to tokens."""

    temperature: float | None = Field(
        None, gt=0, description="Set weights to tokens ** (1 / temperature) (arXiv:1907.05019); 1: proportional."
    )
    max_epochs: float | None = Field(None, gt=0, description="Default of `max_epochs` for every source.")
    phases: list[Phase] = Field(
        [],
        description="Changes of the mixture, such as annealing, in order of `start`. If epoch limits are too low for "
        "all phases, later phases get their shares first.",
    )

    @model_validator(mode="after")
    def _in_order(self) -> Mixture:
        starts = [phase.start for phase in self.phases]
        if starts != sorted(set(starts)):
            raise ValueError("phases must be in order of `start`, and no two may have the same")
        return self


class Tokenizer(Section):
    """The tokenizer: trained on the training split, or read from a file."""

    kind: Literal["bpe", "byte", "char", "kmer", "file"] = Field(
        "bpe",
        description="file: read `path`. The other kinds are trained. kmer: every string of `kmer` letters is a token.",
    )
    path: PathText | None = Field(None, description="A tokenizer.json, or a directory with one (kind `file`).")
    vocab_size: int = Field(32768, ge=257, description="Size of a trained BPE vocabulary, special tokens included.")
    pattern: Literal["gpt2", "gpt4", "qwen2", "sequence"] = Field(
        "gpt2",
        description="Pattern that splits text into pieces before merging (kind `bpe`). sequence: for proteins and DNA, "
        "which have no spaces.",
    )
    kmer: int = Field(3, ge=1, le=8, description="Letters per token (kind `kmer`).")
    alphabet: str = Field("ACGT", min_length=1, description="Letters of the tokens (kind `kmer`).")
    sample_bytes: int = Field(
        500_000_000,
        ge=1,
        description="Train BPE on at most this much text, evenly sampled, in bytes. The default of pattern "
        "`sequence` is 20,000,000: its pieces seldom repeat, so training needs about 110 times the sample in memory.",
    )
    max_piece_bytes: int = Field(
        128, ge=4, description="Leave longer pieces out of BPE training. They cost memory and add no merges."
    )
    special_tokens: list[str] = Field(
        [END_OF_TEXT],
        min_length=1,
        description="Tokens with the first ids of the vocabulary. The first one ends every document. `chat`: those of "
        "a chat template, and six for later. A vocabulary from a file that lacks them gets them at its end.",
    )

    @model_validator(mode="before")
    @classmethod
    def _small_sample_of_sequences(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("pattern") == "sequence":
            return {"sample_bytes": 20_000_000, **values}
        return values

    @field_validator("special_tokens", mode="before")
    @classmethod
    def _tokens_by_name(cls, value: Any) -> Any:
        return list(CHAT_TOKENS) if value == "chat" else value

    @field_validator("special_tokens")
    @classmethod
    def _each_once(cls, tokens: list[str]) -> list[str]:
        if "" in tokens:
            raise ValueError("a special token is empty; leave it out")
        if twice := sorted({token for token in tokens if tokens.count(token) > 1}):
            raise ValueError(f"{twice[0]} is listed {tokens.count(twice[0])} times; a token has one id: list it once")
        return tokens

    @model_validator(mode="after")
    def _path_for_file(self) -> Tokenizer:
        if (self.kind == "file") != (self.path is not None):
            raise ValueError("`path` and `kind: file` need each other; set both or neither")
        return self


class Data(Section):
    """Data preparation: from raw files to token shards."""

    sources: list[Source] = Field(min_length=1, description="Sources of the text.")
    preset: Literal["none", "c4", "gopher", "fineweb", "massivetext-zh"] = Field(
        "none", description="Default settings of a publication for the steps below. Each can be set individually."
    )
    directory: PathText | None = Field(
        None,
        description="Directory of the prepared data; null: `data/` in the run directory. There, stages that another "
        "run has prepared are reused.",
    )
    extract: Extract = Extract()
    normalize: Normalize = Normalize()
    lines: Lines = Lines()
    language: Language = Language()
    quality: Quality = Quality()
    privacy: Privacy = Privacy()
    dedup: Dedup = Dedup()
    decontaminate: Decontaminate | None = Field(None, description="Null: no comparison with evaluation sets.")
    select: Select | None = Field(None, description="Null: all text that the steps before leave is trained on.")
    mixture: Mixture = Mixture()
    tokenizer: Tokenizer = Tokenizer()
    limits: Limits = Limits()
    keep_dropped: bool = Field(
        False, description="Also store dropped documents, with their reasons, and count their tokens."
    )
    validation_fraction: float = Field(
        0.005,
        ge=0,
        lt=1,
        description="Share of documents in the validation split, chosen by a hash of the document id.",
    )
    max_document_bytes: int = Field(
        16_000_000,
        ge=1024,
        description="Split longer documents at a line end, so that memory stays bounded.",
    )
    unit_bytes: int = Field(32_000_000, ge=1024, description="Text per work unit (one Parquet part), in bytes.")
    shard_tokens: int = Field(200_000_000, ge=1024, description="Maximum tokens per shard, up to one document more.")
    workers: int | None = Field(None, ge=1, description="Ray tasks at a time; null: the number of CPUs that Ray has.")
    ray_address: str = Field(
        "local", min_length=1, description="`local`: start a private Ray. Otherwise the address of a running cluster."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return merged(PRESETS.get(values.get("preset", "none"), {}), values)

    @model_validator(mode="after")
    def _languages_are_known(self) -> Data:
        known = self.language.identify or self.language.keep or all(source.language for source in self.sources)
        if not known and any(rule.languages for rule in self.quality.rules):
            raise ValueError("quality.rules name languages: set language.identify, or the `language` of every source")
        return self

    @model_validator(mode="after")
    def _names_fit(self) -> Data:
        names = [source.name for source in self.sources]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"source names must differ; repeated: {', '.join(repeated)}")
        trained = [source for source in self.sources if source.split != "validation"]
        without = [source.name for source in trained if source.weight is None]
        if 0 < len(without) < len(trained) and self.mixture.temperature is None and not self.mixture.phases:
            raise ValueError(f"give a weight to every source or to none of them (without one: {', '.join(without)})")
        unknown = sorted({name for phase in self.mixture.phases for name in phase.weights} - set(names))
        if unknown:
            raise ValueError(f"mixture.phases names unknown sources: {', '.join(unknown)}; known: {', '.join(names)}")
        if unknown := sorted({*(self.select.sources or [])} - set(names)) if self.select else []:
            raise ValueError(f"select.sources names unknown sources: {', '.join(unknown)}; known: {', '.join(names)}")
        if self.mixture.temperature is not None and any(source.weight is not None for source in self.sources):
            raise ValueError("give the sources weights or mixture.temperature, not both")
        return self
