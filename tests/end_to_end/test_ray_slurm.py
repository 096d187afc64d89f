"""`launch/ray.sh run` under a real Slurm: a Ray cluster over two nodes for one command."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_data_prep import make_corpus, make_recipe, shard_hashes
from test_slurm import Cluster, cluster, project

from configs.schema.recipe import load
from data_prep.stages.pipeline import prepare_inline

__all__ = ["cluster", "project"]  # fixtures


@pytest.mark.chaos
def test_two_nodes_prepare_data(cluster: Cluster, project: Path, tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus")
    whole = make_recipe(tmp_path / "corpus", tmp_path / "whole")
    prepare_inline(load(whole))
    file = make_recipe(tmp_path / "corpus", tmp_path / "here")
    run = tmp_path / "here" / "run"
    command = ("launch/ray.sh", "run", "--", "replica", "data", str(file), "--out", str(run))
    state, log = cluster.submit(project, "--nodes=2", "--output=replica-%j.log", *command)
    assert state == "JobState=COMPLETED ExitCode=0:0", log
    assert "worker on two" in log
    assert shard_hashes(run) == shard_hashes(tmp_path / "whole" / "run")
