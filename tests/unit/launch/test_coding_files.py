"""`replica compress` and `replica decompress`: files, standard streams, and what is refused before any work."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from configs.schema.recipe import load
from launch.cli import main
from launch.commands.decoding import train_and_code
from launch.models import coding_files
from tests.parts.chat_model import write_tiny_run
from tests.parts.coding_model import coding_model, coding_text
from tests.parts.training_run import write_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_run(tmp_path_factory.mktemp("coding") / "run", None, model=coding_model()))


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text(coding_text(4000))
    return tmp_path / "book.txt"


def test_a_file_comes_back_from_a_fresh_process(run: str, book: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The check starts another process, which finds the same probabilities in memory of its own."""
    assert main(["compress", run, "book.txt"]) == 0
    out, err = capfd.readouterr()
    assert "4,000 bytes in " in out and "coded by the model; decoded again and equal" in out
    assert "decoding it again in a fresh process" in err
    text = book.read_bytes()
    book.unlink()
    assert main(["decompress", run, "book.txt.replica"]) == 0
    assert book.read_bytes() == text
    assert sorted(path.name for path in book.parent.iterdir()) == ["book.txt", "book.txt.replica"]


def test_nothing_is_written_that_does_not_come_back(
    run: str, book: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(coding_files.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=2))
    assert main(["compress", run, "book.txt"]) == 2
    assert "did not come back in a fresh process (exit code 2, see above), so it was not" in capsys.readouterr().err
    assert list(book.parent.iterdir()) == [book]


def test_standard_streams(run: str, book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def piped(data: bytes, *words: str) -> bytes:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
        assert main([words[0], run, *words[1:]]) == 0
        sys.stdout.flush()
        return sys.stdout.buffer.getvalue()  # type: ignore[attr-defined,no-any-return]

    text = book.read_bytes()
    coded = piped(text, "compress", "-", "--no-verify")
    assert len(coded) < len(text) / 4
    assert piped(coded, "decompress", "-") == text
    (book.parent / "x.replica").write_bytes(coded)
    assert piped(b"", "decompress", "x.replica", "-o", "-") == text


def test_several_files_go_one_by_one(run: str, book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("b.bin").write_bytes(bytes(range(256)))
    Path("empty").touch()
    assert main(["compress", run, "book.txt", "b.bin", "empty", "--no-verify"]) == 0
    out = capsys.readouterr().out
    assert "stored as it is, because it is not UTF-8 text (byte 0x80 at 128); not decoded again" in out
    assert "empty.replica: 0 bytes in " in out and "because it is empty" in out
    assert main(["decompress", "--test", run, "book.txt.replica", "b.bin.replica", "empty.replica"]) == 0
    assert capsys.readouterr().out.count("as they were coded") == 3
    assert main(["decompress", run, "book.txt.replica", "b.bin.replica", "--force"]) == 0
    assert Path("b.bin").read_bytes() == bytes(range(256))


REFUSED = {
    "missing": (["compress", "RUN", "none.txt"], "none.txt: No such file"),
    "directory": (["compress", "RUN", "."], ".: it is a directory; pack it to one file first"),
    "exists": (["compress", "RUN", "book.txt", "-o", "there"], "there exists; give --force to replace it"),
    "itself": (["compress", "RUN", "book.txt", "-o", "book.txt", "--force"], "book.txt is the input itself"),
    "no file": (["compress", "RUN", "book.txt", "-o", "folder"], "folder is a directory"),
    "a device": (["compress", "RUN", "book.txt", "-o", "/dev/null", "--force"], "/dev/null is a device or a pipe"),
    "in a file": (["compress", "RUN", "book.txt", "-o", "there/x"], "there is not a directory; choose another place"),
    "two into one": (["compress", "RUN", "book.txt", "there", "-o", "x"], "-o names one output, but there are 2"),
    "twice": (["compress", "RUN", "book.txt", "book.txt"], "book.txt.replica would be written twice"),
    "no suffix": (["decompress", "RUN", "book.txt"], "book.txt does not end in .replica; name the output with -o"),
    "not coded": (["decompress", "RUN", "book.txt", "-o", "x"], "book.txt: it is not a file that `replica compress`"),
    "no run": (["compress", "nowhere", "book.txt"], "nowhere"),
    "no step": (["compress", "RUN", "book.txt", "--step", "7"], "no checkpoint of step 7; it has those of steps 0"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(
    run: str, book: Path, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is coded, which may take hours."""
    monkeypatch.setattr(coding_files, "compress", None)
    Path("there").write_text("keep me")
    Path("folder").mkdir()
    words, said = REFUSED[kind]
    assert _code([run if word == "RUN" else word for word in words]) == 2
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in book.parent.iterdir()) == ["book.txt", "folder", "there"]
    assert Path("there").read_text() == "keep me"


def _code(words: list[str]) -> int | str | None:
    try:
        return main(words)
    except SystemExit as end:  # of argparse
        return end.code


def test_a_terminal_gets_no_bytes(run: str, book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for words in (["compress", run, "book.txt"], ["decompress", run, "x.replica"]):
        assert main([*words, "-o", "-"]) == 2


def test_a_damaged_file_leaves_nothing(run: str, book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", run, "book.txt", "--no-verify"]) == 0
    coded = bytearray(Path("book.txt.replica").read_bytes())
    coded[-40] ^= 4
    Path("d.replica").write_bytes(coded)
    assert main(["decompress", run, "d.replica"]) == 2
    assert "d.replica: its checksum does not match: a bit was flipped" in capsys.readouterr().err
    assert not Path("d").exists()


def test_a_huge_file_is_refused_before_it_is_read(
    run: str, book: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("huge").open("wb") as file:
        file.truncate(2**40)
    assert main(["compress", run, "huge"]) == 2
    assert "huge: 1,099,511,627,776 bytes are more than the 134,217,728" in capsys.readouterr().err


def test_a_corpus_is_not_coded_to_a_file_that_is_there(tmp_path: Path) -> None:
    """It is refused before a run directory is made."""
    recipe = load(write_recipe(tmp_path / "recipe.yaml", tmp_path / "data"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is there already"):
        train_and_code(recipe, tmp_path / "file")
    assert not recipe.run_directory.exists()
