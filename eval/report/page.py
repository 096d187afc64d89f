"""Renders the report: one self-contained page and a Markdown summary from `results.json` and `metrics.jsonl`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from configs.common import rendering
from configs.common.files import write_text
from configs.common.layout import REPORT, RESULTS
from configs.common.numerics_record import numerics_lines
from configs.common.versions import own_version
from configs.safety.hide_secrets import mask
from configs.schema.recipe import Recipe, load_run, published, to_yaml
from data_prep.funnel.table import funnel_rows
from eval.currency import check_current
from eval.in_training.record import read_records
from eval.remarks import remarks
from eval.report.baseline import baseline_of, read_baseline
from eval.report.cards import headline_cards, trained_tokens, training_seconds
from eval.report.chain import KINDS, chain_facts, change_rows, changes_facts
from eval.report.evaluation_charts import evaluation_facts
from eval.report.gates import Gate, evaluate_gates, results_of_stages
from eval.report.history import History, read_history
from eval.report.information_table import information_rows
from eval.report.item_pages import OtherRun, write_item_pages
from eval.report.mixture_table import mixture_rows
from eval.report.people_table import people_tables
from eval.report.rollout_examples import example_rollouts
from eval.report.size_table import size_rows
from eval.report.text_tables import summary_tables, translation_tables
from eval.report.training_charts import training_charts
from eval.results import MEMBERS, Result, Results, load_results
from eval.stage_facts import kind_of, stage_of

_HERE = Path(__file__).parent
_COMPRESSORS = (("codec", "coded file"), ("gzip", "gzip -9"), ("zstd", "zstd -19"), ("xz", "xz -9e"))


def write_report(run: Path, baseline: Path | None = None) -> Path:
    """Renders `report/index.html` and `report/report.md` of an evaluated run; returns the page.

    Args:
        run: a run directory with `results.json`.
        baseline: another one, or a directory with its results and items, to compare the scores with; None:
            `report.baseline` of the recipe.

    Raises:
        ValueError: when there are no results, the results of the run or its baseline are not current, a gate cannot be
            evaluated, or the baseline has no score in common.
    """
    recipe, results, whole = load_run(run), load_results(run), read_history(run)
    check_current(run, results)
    history = whole.until(results.checkpoint["step"])  # no figure of the page is of another step than the scores
    against = read_baseline(recipe, run, results, baseline)
    if against is not None:
        check_current(against.other, load_results(against.other))
    stages = results_of_stages(recipe)
    gates = evaluate_gates(recipe.report.gates, results, stages, against)
    facts = _facts(recipe, results, history, gates)
    facts["deltas"] = change_rows(against.all_changes(), results) if against is not None else []
    facts["baseline"] = against.label if against is not None else None
    facts |= chain_facts(recipe, results, stages) | changes_facts(results, run)
    facts["evaluations"] = evaluation_facts(
        [one for one in read_records(run) if one.step <= results.checkpoint["step"]]
    )
    facts["rollouts"] = example_rollouts(run, results.checkpoint["step"])
    facts["lead"] += _chosen(results, whole)
    facts["numerics"] = numerics_lines(run)
    environment = _environment(autoescape=True)
    facts["items"] = write_item_pages(
        run, results, environment, facts, _other_run(recipe, baseline_of(recipe, baseline))
    )
    page = run / REPORT / "index.html"
    write_text(page, environment.get_template("page.html.j2").render(facts))
    summary = _environment(finalize=_as_markdown).get_template("summary.md.j2").render(facts)
    write_text(run / REPORT / "report.md", summary)
    return page


def _other_run(recipe: Recipe, baseline: Path | None) -> OtherRun | None:
    """Returns the run that items are compared with: the baseline, or what a stage started from."""
    if baseline is not None:
        return OtherRun(baseline.resolve().name, baseline, load_results(baseline))
    stage = stage_of(recipe)
    if stage is None or not (stage.parent_run / RESULTS).is_file():
        return None
    return OtherRun(stage.parent, stage.parent_run, load_results(stage.parent_run))


def _environment(**escaping: Any) -> jinja2.Environment:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, loader=jinja2.FileSystemLoader(_HERE), trim_blocks=True, **escaping
    )
    environment.filters["score"] = rendering.score
    environment.filters["breakable"] = breakable
    environment.filters["settings"] = _settings
    environment.filters["code"] = lambda text: Markup(rendering.markdown_code(text))
    return environment


def _as_markdown(value: Any) -> str:
    """Escapes everything that a Markdown template prints, except code spans."""
    return str(value) if isinstance(value, Markup) else rendering.markdown_text(value)


def _facts(recipe: Recipe, results: Results, history: History, gates: list[Gate]) -> dict[str, Any]:
    compression = _compression(results)
    benchmarks = _benchmarks(results)
    failed = sum(not gate.passed for gate in gates)
    return {
        "title": recipe.report.title or recipe.name,
        "lead": _lead(results, history, compression),
        "cards": headline_cards(results, history, compression),
        "gates": gates,
        "gates_passed": failed == 0,
        "verdict": _verdict(gates),
        "compression": compression,
        "charts": training_charts(history, kind_of(recipe.train.objective) == "masked_diffusion"),
        "remarks": _remarks(results, history),
        "benchmarks": benchmarks,
        "any_chance": any(row["chance"] is not None for row in benchmarks),
        "translations": translation_tables(results),
        "information": information_rows(results),
        "sizes": size_rows(results),
        "summaries": summary_tables(results),
        "people": people_tables(results),
        "samples": results.samples,
        "funnel": funnel_rows(results.funnel),
        "mixture": mixture_rows(results.data.get("mixture", [])),
        "contamination": results.data.get("contamination"),
        "failures": results.failures,
        "results": results.results,
        "checkpoint": f"{results.checkpoint['name']} ({results.checkpoint['fingerprint'][:12]})",
        "lineage": results.lineage,
        "versions": sorted(results.versions.items()),
        "recipe": _made_with(recipe, results),
        "replica_version": own_version(),
        "style": rendering.style_sheet(),
        "script": hover_script(),
    }


def _made_with(recipe: Recipe, results: Results) -> str:
    """Returns the recipe of the scores, with the current `report` section."""
    if not results.recipe:  # of an earlier version
        return published(recipe)
    return to_yaml(mask({**results.recipe, "report": recipe.report.model_dump(mode="json")}))


def _verdict(gates: list[Gate]) -> str:
    count, undecided = len(gates), sum(gate.undecided for gate in gates)
    failed = sum(not gate.passed for gate in gates) - undecided
    if undecided and not failed:
        return f"Without a baseline, {undecided} of {count} gates {'is' if undecided == 1 else 'are'} not decided"
    if count == 1:
        return "The gate fails" if failed else "The gate passes"
    return f"{failed} of {count} gates fail" if failed else f"All {count} gates pass"


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items() if name != MEMBERS)


def breakable(name: str) -> Markup:
    """Formats a score's name so that a narrow column can break it after slashes and underscores."""
    return Markup(re.sub("[/_]", r"\g<0><wbr>", str(escape(name))))


def hover_script() -> str:
    """Reads the script that shows the value under the pointer on line charts."""
    return (_HERE / "hover.js").read_text(encoding="utf-8")


# -------------------------------------------------------------------------------------------------------------- header
def _lead(results: Results, history: History, compression: list[dict[str, Any]]) -> str:
    model, stage = results.model, results.stage
    kind = KINDS.get(stage.get("kind", ""), "")
    text = f"{kind[:1].upper()}{kind[1:]}, from {stage['parent']}. " if stage else ""
    text += f"A {model['family']} model of {rendering.short(model['parameters'])} parameters"
    tokens = trained_tokens(results, history)
    if tokens:
        text += f", trained on {rendering.short(tokens)} tokens"
        seconds = training_seconds(history)
        text += f" in {rendering.duration(seconds)}" if seconds else ""
    if compression:
        first = compression[0]
        bits = f"{first['ours']:.2f} bits per byte"
        stores = f"stores text it has never seen in {bits}"
        text += f". It {f'needs at most {bits} for text it has never seen' if first['bound'] else stores}"
        text += f", {first['versus_xz']}" if first["versus_xz"] else ""
    return text + "."


def _chosen(results: Results, whole: History) -> str:
    """Returns a remark if the scores are of another than the newest checkpoint, or used overrides."""
    said, chosen = "", results.chosen
    if chosen.get("best") or chosen.get("step") is not None:
        why = _why_best(results) if chosen["best"] else "chosen by hand"
        went_on = f"; training went on to step {whole.steps:,.0f}" if whole.steps > results.checkpoint["step"] else ""
        said += f" All figures are of step {results.checkpoint['step']:,} ({why}){went_on}."
    if chosen.get("overrides"):
        said += f" It was scored with {', '.join(chosen['overrides'])}."
    return said


def _why_best(results: Results) -> str:
    curve = results.recipe.get("train", {}).get("checkpoint", {}).get("best_by", "val/loss")
    return "the lowest validation loss" if curve == "val/loss" else f"the best {curve}"


def _remarks(results: Results, history: History) -> list[str]:
    """Returns what the scores say of a model that has learnt nothing that they ask for."""
    found = [f"{text[:1].upper()}{text[1:]}." for text in remarks(results.results).values()]
    ours, theirs = history.last("val/bits_per_byte"), history.last("val/unigram_bits_per_byte")
    if ours is not None and theirs is not None and ours >= theirs:
        found.append(
            f"The validation split takes {ours:.3f} bits per byte, the frequencies of tokens alone {theirs:.3f}: the "
            "model has learnt nothing of their order."
        )
    return found


# ------------------------------------------------------------------------------------------------------------ sections
def _compression(results: Results) -> list[dict[str, Any]]:
    """Builds bars of bits per byte for each perplexity set: the model and the compressors, on a common scale."""
    scores, sets = results.by_name(), []
    for ours in results.results:
        kind, label, metric, variant = ours.named
        if (kind, metric, variant) != ("perplexity", "bits_per_byte", ""):
            continue
        if results.stage:  # compressors are on the page of the base
            continue
        others = {key: scores.get(f"compression/{label}/{key}_bits_per_byte") for key, _ in _COMPRESSORS}
        bound = ours.is_bound
        rows = [("this model, at most" if bound else "this model", ours, True)]
        rows += [(text, found, False) for key, text in _COMPRESSORS if (found := others[key]) is not None]
        top = max(max(result.value, result.high or 0) for _, result, _ in rows) * 1.02
        xz = others["xz"]
        change = ours.value / xz.value - 1 if xz else 0.0
        sets.append(
            {
                "name": label,
                "size": ours.note,
                "ours": ours.value,
                "bound": bound,
                "range_text": _range(ours),
                "xz_change": change,
                "versus_xz": f"{abs(change):.0%} {'less' if change < 0 else 'more'} than xz -9e" if xz else "",
                "bars": [_bar(text, result, top, is_ours) for text, result, is_ours in rows],
                "remark": f"The line on the model's bar is its 95% interval ({ours.interval})." if ours.low else "",
            }
        )
    return sets


def _range(result: Result) -> str:
    if result.low is None or result.high is None:
        return ""
    return f"{rendering.score(result.low)} to {rendering.score(result.high)}"


def _bar(name: str, result: Result, top: float, ours: bool) -> dict[str, Any]:
    spread = ours and result.low is not None and result.high is not None
    return {
        "name": name,
        "ours": ours,
        "width": 100 * result.value / top,
        "value": f"{result.value:.3f}",
        "low": 100 * (result.low or 0) / top if spread else None,
        "high": 100 * (result.high or 0) / top if spread else None,
        "range": _range(result),
    }


def _benchmarks(results: Results) -> list[dict[str, Any]]:
    """Builds points of accuracies on a scale of 0 to 100%. Other metrics are in the table of all scores."""
    rows = []
    for result in results.results:
        kind, task, metric, variant = result.named
        if kind != "benchmark" or not metric.startswith(("acc", "exact_match")):
            continue
        chance = result.chance
        verdict, detail = "", f"{result.n:,} items"
        if chance is not None and result.low is not None and result.high is not None:
            above, below = result.low > chance, result.high < chance
            verdict = "above" if above else "below" if below else "level"
            detail += {"above": ", above chance", "below": ", below chance", "level": ", like guessing"}[verdict]
        rows.append(
            {
                "task": task,
                "metric": f"{metric}/{variant}" if variant else metric,
                "value": 100 * result.value,
                "low": None if result.low is None else 100 * result.low,
                "high": None if result.high is None else 100 * result.high,
                "chance": None if chance is None else 100 * chance,
                "verdict": verdict,
                "detail": detail,
            }
        )
    return rows
