"""Files from a stranger: each tries to run code when it is read, or to be written where it does not belong."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml

from configs.common.files import fingerprint, sha256_file, write_json
from configs.schema.recipe import load, load_run
from data_prep.documents.classifier import QualityClassifier
from data_prep.tokens.shards import beside, load_manifest
from data_prep.tokens.vocab import Vocab
from launch.models.import_model import import_run
from launch.processes.training import free_port
from pretrain.checkpoint.load_weights import load_weights
from pretrain.checkpoint.manifest import MANIFEST, newest, read_info
from pretrain.parallel import rendezvous
from pretrain.parallel.ranks import Ranks
from pretrain.session import run
from tests.parts.reading import read
from tests.parts.training_run import ROOT, prepare_data, tiny_recipe

PACKAGES = ("configs", "data_prep", "pretrain", "eval", "launch")


class Bomb:
    """Leaves a file behind when somebody unpickles it."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self._mark}",)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that exists when code of the stranger ran; checked again after the test by `nothing_ran`."""
    return tmp_path / "code-ran"


@pytest.fixture(autouse=True)
def nothing_ran(mark: Path) -> object:
    yield
    assert not mark.exists()


@pytest.fixture
def pickled(mark: Path) -> bytes:
    """A pickle that runs code; that it does is tried in a process of its own."""
    content = pickle.dumps(Bomb(mark))
    subprocess.run(
        [sys.executable, "-c", "import pickle, sys; pickle.load(sys.stdin.buffer)"], input=content, check=True
    )
    assert mark.exists()
    mark.unlink()
    return content


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    directory = tmp_path_factory.mktemp("trained")
    recipe = tiny_recipe(directory, prepare_data(directory / "data"), steps=2)
    assert run(recipe)
    return recipe.run_directory


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    """A checkpoint to do harm to."""
    shutil.copytree(trained, tmp_path / "run")
    found = newest(tmp_path / "run")
    assert found is not None
    return found.directory


def vouch_for(checkpoint: Path, name: str) -> None:
    """Enters a file into the manifest as whole, as a stranger would."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    del manifest["seal"]
    file = checkpoint / name
    manifest["files"][name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    write_json(checkpoint / MANIFEST, {**manifest, "seal": fingerprint(manifest)})


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_checkpoint_of_pickles(checkpoint: Path, pickled: bytes, mark: Path, form: str) -> None:
    weights = next(checkpoint.glob("weights-*"))
    if form == "pickle":
        weights.write_bytes(pickled)
    else:
        torch.save({"embed.weight@0": Bomb(mark)}, weights)
    vouch_for(checkpoint, weights.name)
    with pytest.raises(Exception, match=r"(?i)header|safetensors"):
        load_weights(checkpoint)
    for name in ("pytorch_model.bin", "mp_rank_00_model_states.pt", "training_args.bin"):
        (checkpoint / name).write_bytes(pickled)
    found = newest(checkpoint.parents[1])
    assert found is None or found.directory == checkpoint


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os."]
)
def test_yaml_tags(checkpoint: Path, tmp_path: Path, mark: Path, tag: str) -> None:
    hostile = f"name: x\nseed: {tag} ['touch {mark}']\n"
    assert yaml.safe_load("a: 1") == {"a": 1}
    (tmp_path / "recipe.yaml").write_text(hostile)
    (checkpoint / "recipe.yaml").write_text(hostile)
    for attempt in (
        lambda: load(tmp_path / "recipe.yaml"),
        lambda: read_info(checkpoint).recipe,
        lambda: load_run(tmp_path),
    ):
        with pytest.raises(ValueError, match="could not determine a constructor"):
            attempt()


def test_arrays_of_objects(tmp_path: Path, mark: Path) -> None:
    """numpy refuses pickled arrays unless it is told otherwise, and nothing in the project tells it so."""
    np.save(tmp_path / "hostile.npy", np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        np.load(tmp_path / "hostile.npy")


def test_shards_of_pickles(tmp_path: Path, pickled: bytes) -> None:
    directory = prepare_data(tmp_path / "data")
    for file in directory.rglob("*.idx"):
        file.write_bytes(pickled)
    with pytest.raises(ValueError):
        load_manifest(directory)
        run(tiny_recipe(tmp_path, directory))
    assert beside(directory / "tiny" / "00000", ".idx").read_bytes() == pickled


def test_a_classifier_of_pickles(tmp_path: Path, pickled: bytes) -> None:
    (tmp_path / "model").write_bytes(pickled)
    with pytest.raises(ValueError, match="is not a classifier"):
        QualityClassifier.load(tmp_path / "model")


def test_a_tokenizer_with_code_in_it(checkpoint: Path, mark: Path) -> None:
    file = checkpoint / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    code = f"__import__('os').system('touch {mark}')"
    settings = {"auto_map": {"AutoTokenizer": "evil.Evil"}, "chat_template": "{{ cycler.__init__.__globals__ }}"}
    (file.parent / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>", **settings}))
    (file.parent / "evil.py").write_text(code)
    assert Vocab.load(file.parent).decode(Vocab.load(file.parent).encode(code)) == code
    content["pre_tokenizer"] = {"type": "Code", "code": code, "__reduce__": code}
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is not a tokenizer"):
        Vocab.load(file.parent)


def hugging_face_directory(directory: Path, pickled: bytes, mark: Path) -> Path:
    """A model with code of its own and pickled weights."""
    directory.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 300,
        "hidden_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
        "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"},
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text("{}")
    (directory / "evil.py").write_text(f"import os\nos.system('touch {mark}')\n")
    (directory / "pytorch_model.bin").write_bytes(pickled)
    return directory


def test_a_hugging_face_model_with_code_and_pickles(tmp_path: Path, pickled: bytes, mark: Path) -> None:
    directory = hugging_face_directory(tmp_path / "model", pickled, mark)
    with pytest.raises(ValueError, match=r"weights only as pickle \(pytorch_model.bin\)"):
        import_run(directory, tmp_path / "out", None)
    (directory / "model.safetensors").write_bytes(pickled)
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        import_run(directory, tmp_path / "out", None)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(ValueError, match=re.escape(f"{directory / 'passwd'} cannot be read")):
        import_run(directory, tmp_path / "out", None)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "architectures": ["Evil"]}))
    with pytest.raises(ValueError, match="architecture Evil cannot be imported"):
        import_run(directory, tmp_path / "out", None)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_archives_write_nothing_outside(tmp_path: Path, kind: str) -> None:
    names = ("../up.txt", "/tmp/replica-escaped.txt", "a/../../up.txt", "fine.txt")
    archive = tmp_path / "corpus" / f"texts.{kind}"
    archive.parent.mkdir()
    if kind == "tar":
        with tarfile.open(archive, "w") as tar:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = 3
                tar.addfile(info, io.BytesIO(b"abc"))
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
    else:
        with zipfile.ZipFile(archive, "w") as packed:
            for name in names:
                packed.writestr(name, "abc")
    before = sorted(tmp_path.rglob("*"))
    documents, rejected = read(archive)
    assert [document.text for document in documents] == ["abc"]
    assert {item.reason for item in rejected} == {"unsafe_member"}
    assert sorted(tmp_path.rglob("*")) == before and not Path("/tmp/replica-escaped.txt").exists()


JOIN = """
import sys
from pretrain.parallel.collectives import gather
from pretrain.engine.connection import connected
from pretrain.parallel.ranks import placed_ranks
with placed_ranks() as ranks, connected(ranks):
    gather(ranks.rank)
    print("joined", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_ranks_of_one_machine_listen_on_loopback_alone() -> None:
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", JOIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        for rank in ranks:
            assert rank.stdout is not None
            assert any(line == "joined\n" for line in rank.stdout)
        listening = [
            connection.laddr.ip
            for rank in ranks
            for connection in psutil.Process(rank.pid).net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
    finally:
        for rank in ranks:
            rank.communicate(timeout=60)
    assert len(listening) >= 3 and set(listening) <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize(
    ("host", "others", "listens"),
    [("127.0.0.1", 0, "127.0.0.1"), ("127.0.0.1", 1, "127.0.0.1"), ("localhost", 0, "127.0.0.1"), ("localhost", 1, "")],
)
def test_a_store_listens_where_it_was_told(
    host: str, others: int, listens: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that means loopback to its own machine must still be found by ranks on other machines."""
    asked: list[str] = []

    def listen(address: str, port: int) -> socket.socket:
        asked.append(address)
        raise OSError

    monkeypatch.setattr(rendezvous, "_listen", listen)
    for name, value in {"MASTER_ADDR": host, "MASTER_PORT": "1", "GLOO_SOCKET_IFNAME": "lo"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OSError):
        rendezvous.open_store(Ranks(rank=0, count=2 + others, local_rank=0, local_count=2))
    assert asked == [listens]


def test_a_single_rank_listens_on_loopback_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """gloo opens a port even for one process: on the interface of the machine's name, unless it is told another."""
    monkeypatch.setattr(os, "environ", {})
    rendezvous.open_store(Ranks(rank=0, count=1, local_rank=0, local_count=1))
    assert os.environ == {"GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0"}


def test_an_address_of_another_machine_is_said() -> None:
    with pytest.raises(ValueError, match=r"MASTER_ADDR 192\.0\.2\.77 is not an address of this machine"):
        rendezvous._listen("192.0.2.77", 0)


def test_the_code_asks_for_no_pickle() -> None:
    """What reads foreign bytes by running them is nowhere called."""
    forbidden = re.compile(
        r"\b(pickle\.load|pickle\.Unpickler|torch\.load|allow_pickle=True|"
        r"yaml\.(unsafe_|full_)?load\((?!text, Loader=_LenientLoader if twice else _Loader)|"
        r"trust_remote_code=True|extractall|joblib|shelve|marshal\.load|dill|cloudpickle)|(?<![\w.])(eval|exec)\("
    )
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for package in PACKAGES
        for file in sorted((ROOT / package).rglob("*.py"))
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if forbidden.search(line)
    ]
    assert found == []
