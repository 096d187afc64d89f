"""A recipe's stages: what each inherits, problems with their paths, overrides by name, paths, the run directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.schema.chat import CHAT_TOKENS
from configs.schema.recipe import Recipe, RecipeError, dump, find_run, load, save

TEXT = """
seed: 7
data:
  sources: [{name: books, path: books.txt, weight: 1}]
  preset: gopher
  privacy: {emails: true}
  mixture: {max_epochs: 2}
  validation_fraction: 0.2
model: {family: llama, depth: 2, context_length: 64}
train:
  steps: 50
  global_batch_size: 8
  micro_batch_size: 4
  precision: fp32
  optimizer: {lr: 2e-3, embedding_lr: 5e-3}
  schedule: {kind: wsd, warmup_steps: 10}
  checkpoint: {every: 1000, keep: 5, mirror: "file:///mirror"}
report: {gates: ["perplexity/x/bits_per_byte < 3"]}
stages:
  - name: sft
    objective: {kind: sft}
    data: {sources: [{name: chats, path: chats.jsonl, shape: openai}]}
    train: {epochs: 2, optimizer: {lr: 1e-3}}
  - name: reward
    from: sft
    objective: {kind: reward}
    data: {sources: [{name: hh, path: sub/hh.jsonl, shape: hh}], validation_fraction: 0.5}
    model: {dropout: 0.0}
    train: {epochs: 1, global_batch_size: 32}
  - name: dpo
    from: sft
    objective: {kind: dpo, beta: 0.2}
    data: {like: reward}
    train: {steps: 9, schedule: {kind: linear}}
  - name: grpo
    from: sft
    objective: {kind: grpo, rewards: {model: {stage: reward}}, rollout: {prompts: 6, samples: 4, updates: 3}}
    data: {sources: [{name: sums, path: sums.jsonl, shape: gsm8k}]}
    train: {steps: 30}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipes" / "assistant.yaml"
    path.parent.mkdir()
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def problems(file: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as error:
        load(file, overrides)
    return str(error.value).splitlines()[1:]


def test_a_stage_is_an_ordinary_recipe(file: Path, run: Path) -> None:
    recipe = load(file, [f"out={run}"])
    sft = recipe.stage("sft")
    assert (sft.name, sft.run_directory, sft.seed) == ("assistant.sft", run / "stages" / "sft", 7)
    assert sft.train.init_from == str(run) and sft.parents == {"base": str(run)}
    assert sft.data_directory == run / "stages" / "sft" / "data"
    assert sft.train.objective == recipe.stages[0].objective and not sft.stages and not sft.report.gates
    tokenizer = sft.data.tokenizer
    assert (tokenizer.kind, tokenizer.path) == ("file", str(run / "data" / "tokenizer"))
    assert tokenizer.special_tokens == list(CHAT_TOKENS)
    assert recipe.stage("base") is recipe
    assert sft.model.hidden_size == recipe.model.hidden_size and sft.model.depth is None
    with pytest.raises(RecipeError, match=r"no stage `ppo`; it has base, sft, reward, dpo, grpo"):
        recipe.stage("ppo")


def test_what_a_stage_inherits_and_what_it_does_not(file: Path, run: Path) -> None:
    sft = load(file, [f"out={run}"]).stage("sft")
    train, data = sft.train, sft.data
    assert (train.precision, train.global_batch_size, train.checkpoint.keep) == ("fp32", 8, 5)
    assert (train.steps, train.epochs, train.micro_batch_size) == (None, 2, None)
    assert (train.optimizer.lr, train.optimizer.embedding_lr) == (1e-3, None)  # its rate holds for all weights
    assert (train.schedule.kind, train.schedule.warmup_steps) == ("cosine", 0)
    assert (train.packing, train.document_masking) == ("best_fit", True)
    assert train.checkpoint.mirror == "file:///mirror/stages/sft"  # a mirror holds one run
    assert (train.checkpoint.every, train.validation.every) == (100, 50)
    assert data.privacy.emails and data.preset == "none" and not data.quality.rules and data.dedup.near is None
    assert data.mixture.max_epochs is None and data.validation_fraction == 0.05
    assert load(file).stage("reward").train.optimizer.embedding_lr == 5e-3  # it says no rate of its own


def test_parents_data_and_batch_of_later_stages(file: Path, run: Path) -> None:
    recipe = load(file, [f"out={run}"])
    reward, dpo, grpo = (recipe.stage(name) for name in ("reward", "dpo", "grpo"))
    assert dpo.data_directory == reward.data_directory == run / "stages" / "reward" / "data"
    assert dpo.data.sources == reward.data.sources and dpo.data.validation_fraction == 0.5
    assert dpo.parents == {"sft": str(run / "stages" / "sft")} == reward.parents
    assert list(grpo.parents) == ["sft", "reward"] and grpo.train.init_from == grpo.parents["sft"]
    assert (grpo.train.global_batch_size, grpo.train.log_every, grpo.train.schedule.kind) == (8, 1, "constant")
    assert grpo.train.checkpoint.every == 102  # a multiple of the updates of a rollout
    overrides = ["stages.grpo.from=null", "stages.grpo.objective.rewards={exact_answer: 1}"]
    following = load(file, [f"out={run}", *overrides]).stage("grpo")
    assert following.parents == {"dpo": str(run / "stages" / "dpo")}  # the stage before


def test_paths_overrides_and_round_trip(file: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load(file, [f"out={run}", "stages.grpo.train.steps=77", "stages.1.train.epochs=3",
                         "stages.grpo.data.sources.sums.path=mine.jsonl"])  # fmt: skip
    assert recipe.stage("reward").data.sources[0].path == str(file.parent / "sub" / "hh.jsonl")
    assert recipe.stage("grpo").data.sources[0].path == str(tmp_path / "mine.jsonl")  # as the command line means it
    assert (recipe.stage("grpo").train.steps, recipe.stage("reward").train.epochs) == (77, 3)
    again = load(save(recipe, run))
    assert again == recipe and dump(again) == dump(recipe) and "from: sft" in dump(recipe)
    for name in ("sft", "reward", "dpo", "grpo"):
        stage = recipe.stage(name)
        assert load(save(stage, stage.run_directory)) == stage == again.stage(name)


def test_a_later_stage_is_no_setting_of_the_base(file: Path) -> None:
    plain, other = load(file), load(file, ["stages.grpo.train.steps=31"])
    assert plain.fingerprint() == other.fingerprint()
    assert plain.stage("grpo").fingerprint() != other.stage("grpo").fingerprint()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "stages.reward.train.optimizer={lrr: 1}",
            "stages.1.train.optimizer.lrr: unknown key; did you mean `stages.1.train.optimizer.lr`?",
        ),
        ("stages.sft.objective.train_onn=all", "stages.0.objective.train_onn: unknown key; did you mean `stages.0.obj"),
        ("stages.grpo.objective.rollout.sampels=4", "did you mean `stages.3.objective.rollout.samples`?"),
        ("stages.sft.objective.kind=sfft", "stages.0.objective"),
        ("stages.sft.train.steps=5", "stages.0.train: give exactly one of steps, tokens and epochs (given: steps, epo"),
        ("stages.sft.train={}", "stages.0.train: give exactly one of steps, tokens and epochs (given: none)"),
        ("stages.sft.data={}", "stages.0.data.sources: missing"),
        ("stages.sft.data.sources.0.shape=alpacca", "stages.0.data.sources.0.shape: Input should be 'text', 'openai'"),
        ("stages.sft.data.tokenizer={kind: byte}", "stages.0.data.tokenizer: a stage reads with the base's tokenizer"),
        ("stages.sft.model.hidden_size=8", "stages.0.model.hidden_size: a stage has the base's model; it may set cont"),
        ("stages.sft.train.init_from=x", "stages.0.train.init_from: say it as `from` of the stage"),
        ("stages.sft.train.objective=x", "stages.0.train.objective: say it as `objective` of the stage"),
        ("stages.sft.name=base", "stages.0.name: `base` means the run of the recipe itself"),
        ("stages.dpo.name=reward", "stages.2.name: `reward` is the name of another stage"),
        ("stages.reward.from=nothing", "stages.1.from: `nothing` is no stage; a stage needs one that comes before it"),
        ("stages.sft.from=sft", "stages.0.from: `sft` is this stage"),
        ("stages.sft.from=grpo", "stages.0.from: `grpo` comes later"),
        ("stages.dpo.from=null", "stages.2.from: the stage before, `reward`, trains a reward model; say which stage"),
        ("stages.dpo.data.like=grpo", "stages.2.data.like: `grpo` is no stage before this one; name one of base, sft"),
        ("stages.dpo.data.like=sft", "is made of units `conversation`, but this objective reads `pair`"),
        ("stages.dpo.data.sources=[]", "stages.2.data.like: it takes all settings of another stage's data; leave"),
        ("stages.dpo.model.context_length=32", "stages.2.data.like: `reward` has another model.context_length"),
        ("stages.grpo.objective.rewards.model.stage=dpo", "`dpo` trains no reward model; name a stage of kind"),
        ("stages.grpo.objective.rewards.model.stage=x", "stages.3.objective.rewards.model.stage: `x` is no stage"),
        ("stages.pp.train.steps=5", "stages is a list; give an index below 4, or a name: sft, reward, dpo, grpo"),
        (
            "train.optimizer={name: muon}",
            "stages.0.train.optimizer.lr: the recipe's Muon has a rate of its own, which stays",
        ),
    ],
)  # fmt: skip
def test_problems_of_stages_have_their_path(file: Path, override: str, words: str) -> None:
    found = problems(file, override)
    assert any(words in line for line in found), found


def test_prompts_of_another_stage_leave_room_for_its_answers(file: Path) -> None:
    more = "{name: more, from: sft, objective: {kind: rloo, rewards: {format: 1}, rollout: {max_new_tokens: 9}}"
    text = f"{TEXT}  - {more}, data: {{like: grpo}}, train: {{steps: 1}}}}\n"
    file.write_text(text)
    assert any("stages.4.data.like: `grpo` has another rollout.max_new_tokens" in line for line in problems(file))
    assert load(file, ["stages.more.objective.rollout.max_new_tokens=64"]).stage("more").data.sources[0].name == "sums"


def test_all_problems_are_reported_at_once_and_each_once(file: Path) -> None:
    found = problems(file, "train.grad_clip=-1", "stages.sft.train.epochs=-2", "stages.grpo.train.stepss=3", "seed=-1")
    assert len(found) == 4 and all(
        any(words in line for line in found)
        for words in ("- train.grad_clip", "- stages.0.train.epochs", "- stages.3.train.stepss", "- seed")
    ), found


def test_a_colon_names_a_stage_of_a_run(file: Path, run: Path, tmp_path: Path) -> None:
    recipe = load(file, [f"out={run}"])
    save(recipe, run)
    sft = recipe.stage("sft")
    save(sft, sft.run_directory)
    assert find_run(f"{run}:sft") == sft.run_directory and find_run(f"{run}:base") == run == find_run(run)
    with pytest.raises(RecipeError, match="has no stage `dpo` that has begun; it has base, sft"):
        find_run(f"{run}:dpo")
    odd = tmp_path / "a:sft"  # a directory of this name is that directory
    odd.mkdir()
    assert find_run(odd) == odd and find_run("nowhere:sft") == Path("nowhere:sft")
    assert isinstance(recipe.stage("grpo"), Recipe)
