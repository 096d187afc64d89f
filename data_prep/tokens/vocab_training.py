"""Makes vocabularies: BPE from text, characters, k-mers, bytes, or one that is read from a file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from configs.schema.chat import CHAT_TOKENS
from configs.schema.data import Tokenizer as TokenizerSettings
from data_prep.tokens.vocab import Vocab, byte_alphabet

# Pieces are found by these before merging. gpt2: Radford et al. 2019; gpt4: the cl100k_base of tiktoken as Llama 3
# ships it; qwen2: the same with single digits.
_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# sequence: proteins and DNA have no spaces, and with a chromosome as one piece every merge would take as long as that
# is; tokens end where pieces end, which costs DNA some 2% more tokens.
PATTERNS = {
    "gpt4": _GPT4,
    "qwen2": _GPT4.replace(r"\p{N}{1,3}", r"\p{N}"),
    "sequence": r"\S{1,128}|\s{1,128}",
}
_MOST_KMERS = 2**20
# A merge seen once in the whole sample is a memorised string, not a unit of the language.
_MIN_FREQUENCY = 2


def train_vocab(settings: TokenizerSettings, texts: Iterable[str]) -> Vocab:
    """Makes the vocabulary that the recipe asks for.

    Args:
        settings: `data.tokenizer`.
        texts: training text. For `bpe`, chunks of at most some 100 kB whose overlong pieces are already removed (memory
            grows with the distinct pieces, not with the text); for `char`, any text that holds the whole alphabet once.
            Not read for `byte`, `kmer` and `file`.

    Raises:
        ValueError: when the text supports fewer tokens than asked for, or the file does not serve.
    """
    specials = settings.special_tokens
    if settings.kind == "file":
        assert settings.path is not None
        return read_vocab(settings)
    if settings.kind == "byte":
        tokenizer = _byte_level(models.BPE(_numbered([*specials, *byte_alphabet()]), []), None)
    elif settings.kind == "kmer":
        tokenizer = _kmer_tokenizer(settings)
    elif settings.kind == "char":
        tokenizer = _character_tokenizer(specials, texts)
    else:
        tokenizer = _train_bpe(settings, texts)
    tokenizer.add_special_tokens(specials)
    return Vocab(tokenizer, specials[0])


def read_vocab(settings: TokenizerSettings) -> Vocab:
    """Reads the vocabulary of `data.tokenizer.path`, and gives it those of `special_tokens` that it lacks.

    A chat vocabulary ends documents as the file's own does: an imported model knows that token, and no other.

    Raises:
        ValueError: when the file does not serve.
    """
    assert settings.path is not None
    first, *others = settings.special_tokens
    if settings.special_tokens == list(CHAT_TOKENS):
        return Vocab.load(settings.path).extended(others)
    vocab = Vocab.load(settings.path, first)
    known = vocab.special_ids.issuperset(vocab.vocabulary.get(token, -1) for token in others)
    return vocab if known else vocab.extended(others)


def _numbered(tokens: Sequence[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(tokens)}


def _byte_level(model: Any, pattern: str | None) -> Tokenizer:
    """A byte-level tokenizer; `pattern`: a name, a regular expression of its own, or None for one piece.

    "gpt2" is built into ByteLevel.
    """
    tokenizer = Tokenizer(model)
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern == "gpt2")
    if pattern not in (None, "gpt2"):
        split = pre_tokenizers.Split(Regex(PATTERNS.get(pattern, pattern)), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, whole])
    else:
        tokenizer.pre_tokenizer = whole
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _kmer_tokenizer(settings: TokenizerSettings) -> Tokenizer:
    """One id per string of `kmer` letters, read from the left of every run of letters; bytes for all that is left over.

    Left over are the ends of runs, letters outside the alphabet such as N, lower case, white space.
    """
    letters = sorted(set(settings.alphabet))
    if any(map(str.isspace, letters)):
        raise ValueError("data.tokenizer.alphabet has white space in it; give letters only")
    if len(letters) ** settings.kmer > _MOST_KMERS:
        raise ValueError(
            f"data.tokenizer: {len(letters)} letters make {len(letters) ** settings.kmer:,} strings of "
            f"{settings.kmer}, more than {_MOST_KMERS:,}; lower data.tokenizer.kmer or shorten data.tokenizer.alphabet"
        )
    as_bytes = byte_alphabet()
    spelled = ["".join(as_bytes[byte] for byte in letter.encode()) for letter in letters]
    kmers = map("".join, itertools.product(spelled, repeat=settings.kmer))
    tokens = dict.fromkeys([*settings.special_tokens, *as_bytes, *kmers])
    return _byte_level(
        models.BPE(_numbered(list(tokens)), [], ignore_merges=True), kmer_pattern("".join(letters), settings.kmer)
    )


def kmer_pattern(letters: str, length: int) -> str:
    """The regular expression whose matches are the strings of `length` letters; what is between them is no piece."""
    return f"[{re.escape(letters)}]{{{length}}}"


def _character_tokenizer(specials: Sequence[str], texts: Iterable[str]) -> Tokenizer:
    """One id per character of the training text; any other character becomes its UTF-8 bytes, so nothing is lost."""
    alphabet = sorted(set().union(*map(set, texts)))
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(_numbered([*specials, *fallback, *alphabet]), [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _train_bpe(settings: TokenizerSettings, texts: Iterable[str]) -> Tokenizer:
    smallest = 256 + len(settings.special_tokens)
    if settings.vocab_size < smallest:
        raise ValueError(
            f"data.tokenizer.vocab_size is {settings.vocab_size}, but {len(settings.special_tokens)} special tokens "
            f"and 256 bytes need {smallest}; raise it"
        )
    tokenizer = _byte_level(models.BPE(), settings.pattern)
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        min_frequency=_MIN_FREQUENCY,
        special_tokens=list(settings.special_tokens),
        initial_alphabet=byte_alphabet(),
        max_token_length=settings.max_piece_bytes,
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(texts), trainer)
    achieved = tokenizer.get_vocab_size()
    if achieved < settings.vocab_size:
        raise ValueError(
            f"data.tokenizer.vocab_size is {settings.vocab_size}, but the training text supports only {achieved} "
            f"tokens; set data.tokenizer.vocab_size to at most {achieved}, or give more text"
        )
    return tokenizer
