"""The recipe's `data:` section, in the order of a paper's data appendix: what is read, kept, counted and mixed.

Sources -> extract -> normalise -> lines -> language -> quality -> privacy -> dedup -> decontaminate -> mixture ->
tokenizer -> shards. Every step is a section of its own; `preset` sets the defaults of several at once.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from configs.schema.presets import PRESETS, merged
from configs.schema.quality_rules import Rule
from configs.schema.section import PathText, PatternText, Section
from configs.schema.sources import Source

END_OF_TEXT = "<|endoftext|>"


class Limits(Section):
    """Limits of documents and files. Larger ones are cut, or dropped with a reason."""

    record_bytes: int = Field(
        256 * 2**20, ge=1024, description="Longer records (lines, rows, web pages) are dropped: `record_too_long`."
    )
    expansion: float = Field(
        1000, gt=1, description="A compressed file that unpacks to more than this many times its size is given up."
    )
    document_seconds: float = Field(
        30,
        gt=0,
        description="A document that takes more processor time than this, in seconds for each megabyte begun, is "
        "dropped: `too_slow`.",
    )
    attempts: int = Field(
        3, ge=1, description="How often a read from a URL, and a unit of work whose worker died, is tried."
    )


class Extract(Section):
    """Text from markup."""

    html: Literal["trafilatura", "resiliparse", "text"] = Field(
        "trafilatura",
        description="Main text by trafilatura, or by resiliparse: far faster, less exact (docs/benchmarks.md); "
        "or all text of the page.",
    )
    tables: bool = Field(True, description="Keep tables, a row a line.")
    comments: bool = Field(False, description="Keep readers' comments.")
    links: bool = Field(False, description="Keep the addresses of links.")


class Normalize(Section):
    """Normalisation of every document, before the language and quality steps."""

    unicode: Literal["NFC", "NFKC", "none"] = Field("NFC", description="Unicode normalisation form (UAX #15).")
    whitespace: bool = Field(
        True, description="Line ends to \\n, no blanks at line ends, at most one empty line in a row, none at the ends."
    )
    mojibake: bool = Field(
        True, description="Repair text decoded with the wrong encoding (ftfy), where its signs are seen."
    )


class Lines(Section):
    """Cuts lines before the quality rules. A document without other lines is dropped: `only_boilerplate`."""

    boilerplate: bool = Field(
        False, description="Cookie banners, share buttons, `read more`, notices about scripts and the like."
    )
    patterns: list[str] = Field([], description="Regular expressions; a line in which one is found is cut.")


class Language(Section):
    """Identifies languages with a model that is part of the installation; keeps some of them."""

    identify: bool = Field(False, description="Write language and confidence into every document's metadata.")
    keep: list[str] = Field([], description="ISO 639-1 codes to keep; empty: all. Implies `identify`.")
    min_confidence: float = Field(
        0.65, ge=0, le=1, description="Less certain documents are dropped when `keep` is given (FineWeb's 0.65)."
    )
    confidence: dict[str, float] = Field({}, description="Other thresholds by language, as `{zh: 0.5}`.")


class Classifier(Section):
    """A linear model on hashed n-grams, made by `python -m data_prep classifier GOOD BAD --out FILE`."""

    path: PathText = Field(description="The model file.")
    min_score: float = Field(0.5, ge=0, le=1, description="Documents with a lower score: `low_quality_score`.")


class Quality(Section):
    """Drops documents by quality. Rules are applied in the order given; the first that fails names the reason."""

    min_characters: int = Field(1, ge=1, description="Shorter documents are dropped with reason `too_short`.")
    max_unprintable_fraction: float = Field(
        0.1, ge=0, le=1, description="More control, replacement or unassigned characters than this: reason `not_text`."
    )
    blocklist: PathText | None = Field(
        None, description="File with a domain or URL prefix a line; documents from there: `blocked_url`."
    )
    blocked_words: list[str] = Field([], description="Documents whose URL contains one of these words: `blocked_url`.")
    rules: list[Rule] = Field([], description="Rule sets with their published thresholds, in this order.")
    classifier: Classifier | None = Field(None, description="A trained quality classifier; applied last.")


class Privacy(Section):
    """Replaces personal data by placeholders. Documents stay; replacements are counted."""

    emails: bool = Field(False, description="E-mail addresses.")
    ip_addresses: bool = Field(False, description="Public IPv4 and IPv6 addresses.")
    phone_numbers: bool = Field(False, description="Telephone numbers.")
    card_numbers: bool = Field(False, description="Numbers that look like payment cards and pass the Luhn check.")
    keys: bool = Field(False, description="Strings that look like secret keys or tokens.")


class RepeatedLines(Section):
    """Cuts lines or paragraphs that earlier documents of the same source have."""

    unit: Literal["line", "paragraph"] = Field("line", description="What is compared.")
    keep: int = Field(1, ge=1, description="How many occurrences stay, in the order of files and documents.")
    min_characters: int = Field(30, ge=1, description="Shorter ones are left alone.")


class NearDuplicates(Section):
    """MinHash-LSH (Broder 1997; bands after Leskovec, Rajaraman, Ullman ch. 3) over word shingles."""

    similarity: float = Field(0.8, gt=0, lt=1, description="Jaccard similarity from which documents are the same.")
    shingle: int = Field(5, ge=1, description="Words in a shingle.")
    unit: Literal["word", "character"] = Field(
        "word", description="What shingles are made of; words of Chinese and Japanese are single characters."
    )
    bands: int | None = Field(None, ge=1, description="Bands of hashes; null: chosen from `similarity`.")
    rows: int | None = Field(None, ge=1, description="Hashes in a band; null: chosen from `similarity`.")
    verify: bool = Field(True, description="Compare candidate pairs shingle by shingle before they count.")
    keep: Literal["first", "longest"] = Field("first", description="Which one of a group of near-duplicates stays.")


class RepeatedSubstrings(Section):
    """Cuts exact substrings that an earlier document has (Lee et al., arXiv:2107.06499)."""

    min_bytes: int = Field(200, ge=50, description="Shortest substring that counts.")


class Dedup(Section):
    """Removes repeated documents, lines and passages, in this order."""

    exact: bool = Field(True, description="Drop documents whose text was seen before, over all sources.")
    lines: RepeatedLines | None = Field(None, description="Cut lines or paragraphs seen before in the same source.")
    near: NearDuplicates | None = Field(None, description="Drop documents much like another, over all sources.")
    substrings: RepeatedSubstrings | None = Field(None, description="Cut long passages seen before, over all sources.")


class Decontaminate(Section):
    """N-gram overlap with evaluation sets (Brown et al., arXiv:2005.14165, appendix C)."""

    evaluation: bool = Field(True, description="Against all that the recipe's `evaluation` names.")
    files: list[PatternText] = Field([], description="Further sets: any file that data_prep reads.")
    tasks: list[str] = Field([], description="Further lm-eval tasks.")
    ngram: int = Field(13, ge=5, description="Words in a row, lower case and without punctuation, that count as a hit.")
    ngram_characters: int = Field(
        20, ge=5, description="The same for Chinese, Japanese and other scripts without spaces, in characters."
    )
    max_documents: int = Field(
        10, ge=1, description="N-grams found in more training documents than this are common phrases and do not count."
    )
    action: Literal["drop", "mark"] = Field(
        "drop", description="Drop contaminated documents, or keep and count them; items touched are listed either way."
    )


class Phase(Section):
    """Another mixture, from a point of training on."""

    start: float = Field(ge=0, lt=1, description="Fraction of all training tokens at which it begins.")
    weights: dict[str, float] = Field(
        description="Share of each source, relative to the others; those not named get none."
    )

    @model_validator(mode="after")
    def _positive(self) -> Phase:
        if min(self.weights.values(), default=0) < 0 or not sum(self.weights.values()):
            raise ValueError("weights must not be negative, and one must be above zero")
        return self


class Mixture(Section):
    """How much of each source a training run sees. Without weights, temperature or phases: in proportion to tokens."""

    temperature: float | None = Field(
        None, gt=0, description="Weights are tokens ** (1 / temperature) (arXiv:1907.05019); 1: proportional."
    )
    max_epochs: float | None = Field(None, gt=0, description="Cap for every source that has none of its own.")
    phases: list[Phase] = Field(
        [],
        description="Changes of the mixture, such as annealing; in order of `start`. Where caps are too tight for all "
        "phases, later ones are served first.",
    )

    @model_validator(mode="after")
    def _in_order(self) -> Mixture:
        starts = [phase.start for phase in self.phases]
        if starts != sorted(set(starts)):
            raise ValueError("phases must have rising, different `start` values")
        return self


class Tokenizer(Section):
    """The vocabulary: trained on the training split, or read from a file."""

    kind: Literal["bpe", "byte", "char", "kmer", "file"] = Field(
        "bpe", description="`file` reads `path`; the others are trained. `kmer`: every string of `kmer` letters."
    )
    path: PathText | None = Field(None, description="tokenizer.json, or a directory with one (kind `file`).")
    vocab_size: int = Field(32768, ge=257, description="Size of a trained BPE vocabulary, special tokens included.")
    pattern: Literal["gpt2", "gpt4", "qwen2", "sequence"] = Field(
        "gpt2",
        description="How text is cut into pieces before merging (kind `bpe`); `sequence`: proteins and DNA, which "
        "have no spaces.",
    )
    kmer: int = Field(3, ge=1, le=8, description="Letters of a token (kind `kmer`).")
    alphabet: str = Field("ACGT", min_length=1, description="Letters that tokens are made of (kind `kmer`).")
    sample_bytes: int = Field(
        500_000_000,
        ge=1,
        description="BPE is trained on at most this much text, evenly sampled; 20,000,000 for the pattern `sequence`, "
        "whose pieces hardly repeat: memory is then some 110 times the sample.",
    )
    max_piece_bytes: int = Field(
        128, ge=4, description="Longer pieces are left out of BPE training: they cost memory, not merges."
    )
    special_tokens: list[str] = Field(
        [END_OF_TEXT], min_length=1, description="First ids of the vocabulary; the first one ends every document."
    )

    @model_validator(mode="before")
    @classmethod
    def _small_sample_of_sequences(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("pattern") == "sequence":
            return {"sample_bytes": 20_000_000, **values}
        return values

    @model_validator(mode="after")
    def _path_for_file(self) -> Tokenizer:
        if (self.kind == "file") != (self.path is not None):
            raise ValueError("`path` belongs to `kind: file`, and `kind: file` needs it")
        return self


class Data(Section):
    """From raw files to token shards."""

    sources: list[Source] = Field(min_length=1, description="Where the text comes from.")
    preset: Literal["none", "c4", "gopher", "fineweb", "massivetext-zh"] = Field(
        "none", description="Defaults of the steps below as a publication states them; each can be set alone."
    )
    directory: PathText | None = Field(
        None,
        description="Directory of the prepared data; null: `data/` in the run directory, and data that a run beside it "
        "has prepared is used again.",
    )
    extract: Extract = Extract()
    normalize: Normalize = Normalize()
    lines: Lines = Lines()
    language: Language = Language()
    quality: Quality = Quality()
    privacy: Privacy = Privacy()
    dedup: Dedup = Dedup()
    decontaminate: Decontaminate | None = Field(None, description="Null: no comparison with evaluation sets.")
    mixture: Mixture = Mixture()
    tokenizer: Tokenizer = Tokenizer()
    limits: Limits = Limits()
    keep_dropped: bool = Field(
        False, description="Keep dropped documents with their reasons beside the others, and count their tokens too."
    )
    validation_fraction: float = Field(
        0.005, ge=0, lt=1, description="Share of documents kept out of training, chosen by a hash of the document id."
    )
    max_document_bytes: int = Field(
        16_000_000,
        ge=1024,
        description="Longer documents are cut at a line end into parts, so that memory stays bounded.",
    )
    unit_bytes: int = Field(32_000_000, ge=1024, description="Text per unit of work (one Parquet part), in bytes.")
    shard_tokens: int = Field(200_000_000, ge=1024, description="A shard is closed after this many tokens.")
    workers: int | None = Field(None, ge=1, description="Ray tasks at a time; null: the CPUs that Ray has.")
    ray_address: str = Field(
        "local", min_length=1, description="`local` starts a private Ray; otherwise the address of a running cluster."
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
            raise ValueError(f"mixture.phases names sources that are not there: {', '.join(unknown)}")
        if self.mixture.temperature is not None and any(source.weight is not None for source in self.sources):
            raise ValueError("give the sources weights or mixture.temperature, not both")
        return self
