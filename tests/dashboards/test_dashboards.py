"""The Grafana dashboards: what they are made of, that they come from their generator, and what their queries answer.

No Grafana takes part: Prometheus' own engine (promtool) evaluates every panel's query over a written history.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from dashboard_history import ANSWERS, END, HISTORY
from dashboard_queries import DASHBOARDS, PanelQuery, load, panel_queries, panels, replaced, uids

Promtool = Callable[..., subprocess.CompletedProcess[str]]
UIDS = ("fdmoe-experts", "fdmoe-gpu", "fdmoe-kernel", "fdmoe-service")


def selectors(expression: str) -> Iterable[tuple[str, str]]:
    """Each of our metrics in an expression, and its matchers."""
    return re.findall(r"((?:instance:)?fdmoe_[\w:]+|ALERTS)\{([^}]*)\}", expression)


def evaluated(promtool: Promtool, folder: Path, expected: Iterable[tuple[PanelQuery, dict[str, float]]]) -> None:
    history = {
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [{"series": series, "values": values} for series, values in HISTORY.items()],
                "promql_expr_test": [
                    {
                        "expr": query.expression,
                        "eval_time": END,
                        "exp_samples": [{"labels": labels, "value": value} for labels, value in answer.items()],
                    }
                    for query, answer in expected
                ],
            }
        ],
    }
    file = folder / "panels.yaml"
    file.write_text(yaml.safe_dump(history))
    tested = promtool("test", "rules", file)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_the_generator_writes_these_bytes() -> None:
    pytest.importorskip(
        "grafana_foundation_sdk", reason="pip install 'grafana-foundation-sdk==1769699379!11.6.0' to regenerate"
    )
    from fdmoe_dashboards.files import dashboard_files

    generated = dashboard_files()
    assert tuple(sorted(generated)) == tuple(f"{uid}.json" for uid in UIDS)
    for name, text in generated.items():
        assert text.encode() == (DASHBOARDS / name).read_bytes(), f"{name}: run make dashboards"


def test_there_are_four_and_each_is_under_its_uid() -> None:
    assert uids() == UIDS
    assert {uid: (load(uid)["uid"], load(uid)["title"], load(uid)["schemaVersion"]) for uid in UIDS} == {
        "fdmoe-service": ("fdmoe-service", "fdmoe service", 41),
        "fdmoe-kernel": ("fdmoe-kernel", "fdmoe kernel and watchdog", 41),
        "fdmoe-gpu": ("fdmoe-gpu", "fdmoe GPU", 41),
        "fdmoe-experts": ("fdmoe-experts", "fdmoe experts", 41),
    }


@pytest.mark.parametrize("uid", UIDS)
def test_variables_and_links(uid: str) -> None:
    source, *others = load(uid)["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    place = 'cluster=~"$cluster", namespace=~"$namespace"'
    expected = {
        "cluster": "label_values(fdmoe_build_info, cluster)",
        "namespace": 'label_values(fdmoe_build_info{cluster=~"$cluster"}, namespace)',
        "pod": f"label_values(fdmoe_build_info{{{place}}}, pod)",
        "device": f'label_values(fdmoe_path_active{{{place}, pod=~"$pod"}}, device)',
    }
    if uid == "fdmoe-experts":
        expected["layer"] = f'label_values(fdmoe_request_tokens_total{{{place}, pod=~"$pod"}}, layer)'
    assert {variable["name"]: variable["query"] for variable in others} == expected
    for variable in others:
        assert (variable["multi"], variable["includeAll"], variable["allValue"]) == (True, True, ".*")
        assert variable["current"] == {"selected": True, "text": "All", "value": "$__all"}
        assert variable["datasource"]["uid"] == "${datasource}"
    (link,) = load(uid)["links"]
    assert (link["type"], link["tags"], link["includeVars"], link["keepTime"]) == ("dashboards", ["fdmoe"], True, True)
    assert load(uid)["tags"] == ["fdmoe"]


@pytest.mark.parametrize("uid", UIDS)
def test_path_switches_are_annotations(uid: str, promtool: Promtool, tmp_path: Path) -> None:
    annotation, failovers = load(uid)["annotations"]["list"]
    assert (failovers["datasource"]["uid"], failovers["target"]["tags"]) == ("-- Grafana --", ["fdmoe"])
    assert annotation["datasource"]["uid"] == "${datasource}"
    assert (annotation["titleFormat"], annotation["textFormat"]) == ("{{from}} to {{to}}", "{{reason}}, {{instance}}")
    query = PanelQuery(uid, annotation["name"], "Anno", replaced(annotation["target"]["expr"]))
    answer = {'{instance="n:9400", from="fused", to="baseline", reason="stall"}': 2.0}
    evaluated(promtool, tmp_path, [(query, answer)])


def test_the_path_is_told_by_name_and_colour() -> None:
    timeline = next(panel for panel in panels("fdmoe-service") if panel["title"] == "Path")
    assert timeline["type"] == "state-timeline"
    (mapping,) = timeline["fieldConfig"]["defaults"]["mappings"]
    assert {value: (shown["text"], shown["color"]) for value, shown in mapping["options"].items()} == {
        "0": ("not serving", "red"),
        "1": ("fused", "green"),
        "2": ("shadow", "yellow"),
        "3": ("baseline", "orange"),
    }


@pytest.mark.parametrize("uid", UIDS)
def test_panels_are_whole_and_do_not_overlap(uid: str) -> None:
    everything = load(uid)["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    cells: dict[tuple[int, int], str] = {}
    for panel in everything:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for cell in (
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ):
            assert cell not in cells, f"{panel['title']} lies over {cells[cell]}"
            cells[cell] = panel["title"]
        # a cell of the grid is some 60 pixels of a small screen, a letter of a title 8; the menu's button takes 4
        assert len(panel["title"]) <= 7 * place["w"] - 4, panel["title"]
    bottom = 1 + max(y for _, y in cells)
    assert len(cells) == 24 * bottom, "there are holes between the panels"


@pytest.mark.parametrize("uid", UIDS)
def test_panels_say_what_they_show_and_where_it_comes_from(uid: str) -> None:
    titles = [panel["title"] for panel in panels(uid)]
    assert len(titles) == len(set(titles))
    for panel in panels(uid):
        assert panel["description"].endswith("."), panel["title"]
        assert [target["refId"] for target in panel["targets"]] == list("ABC"[: len(panel["targets"])])
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_the_divergence_panel_says_why() -> None:
    text = next(panel for panel in load("fdmoe-kernel")["panels"] if panel["type"] == "text")
    assert text["title"] == "Why utilisation is not progress"
    assert "| a launch stalled | 100 % | 62 % | 0 % | 0 % | 130 W |" in text["options"]["content"]
    beside = {p["title"] for p in panels("fdmoe-kernel") if p["gridPos"]["y"] == text["gridPos"]["y"]}
    assert beside == {"Utilisation and progress", "Divergence"}


def test_every_query_answers_what_its_title_says(promtool: Promtool, tmp_path: Path) -> None:
    queries = list(panel_queries())
    assert {uid: list(panel) for uid, panel in ANSWERS.items()} == {
        uid: [panel["title"] for panel in panels(uid)] for uid in ANSWERS
    }
    answers = [ANSWERS[query.dashboard][query.panel]["ABC".index(query.query)] for query in queries]
    assert len(answers) == sum(len(found) for panel in ANSWERS.values() for found in panel.values())
    evaluated(promtool, tmp_path, zip(queries, answers, strict=True))


@pytest.mark.parametrize("variable", ["cluster", "namespace", "pod"])
def test_every_query_leaves_other_places_out(variable: str, promtool: Promtool, tmp_path: Path) -> None:
    """With a value that no series has, nothing is left but the count of alerts: none, or with another pod the one that
    has no pod."""
    nothing = {query: {} for query in panel_queries(**{variable: "another"})}
    firing = next(query for query in nothing if query.panel == "Alerts firing")
    count = {"{}": 1.0 if variable == "pod" else 0.0}
    evaluated(promtool, tmp_path, [(query, count if query == firing else {}) for query in nothing])


@pytest.mark.parametrize(("uid", "title"), [("fdmoe-service", "Path now"), ("fdmoe-gpu", "Power")])
def test_the_device_variable_leaves_the_other_devices_out(
    uid: str, title: str, promtool: Promtool, tmp_path: Path
) -> None:
    (query,) = (q for q in panel_queries(device="cuda:1") if (q.dashboard, q.panel) == (uid, title))
    answers = {"Path now": {'{device="cuda:1", instance="n:9400"}': 1.0}, "Power": {}}
    evaluated(promtool, tmp_path, [(query, answers[title])])


@pytest.mark.parametrize("uid", UIDS)
def test_every_selector_honours_the_variables(uid: str) -> None:
    place = 'cluster=~"$cluster", namespace=~"$namespace", pod=~"$pod"'
    for panel in panels(uid):
        for target in panel["targets"]:
            found = list(selectors(target["expr"]))
            assert found, panel["title"]
            assert len(found) == len(re.findall(r"fdmoe_\w+|ALERTS", target["expr"])), panel["title"]
            for name, matchers in found:
                # alerts of all pods together have no pod
                allowed = (place, f'{place[:-1]}|"') if name == "ALERTS" else (place,)
                assert matchers.startswith(allowed), (panel["title"], name)


@pytest.mark.parametrize("uid", UIDS)
def test_legends_use_labels_that_their_query_keeps(uid: str) -> None:
    for panel in panels(uid):
        for target in panel["targets"]:
            kept = {label for labels in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in labels.split(", ")}
            kept |= set(re.findall(r'"(what)"', target["expr"]))
            assert set(re.findall(r"{{(\w+)}}", target.get("legendFormat", ""))) <= kept, panel["title"]


def test_panel_links_lead_to_the_alerts_runbooks() -> None:
    links: dict[str, Any] = {
        link["url"]: link["title"] for uid in UIDS for panel in panels(uid) for link in panel.get("links", ())
    }
    pages = {f"dashboards/runbooks/{page.name}": f"Runbook: {page.stem}" for page in DASHBOARDS.glob("runbooks/*.md")}
    # what is not scraped has no panel
    for missing in ("target-down", "target-missing"):
        pages.pop(f"dashboards/runbooks/{missing}.md")
    assert links == pages


def test_the_recorded_gpu_is_labelled() -> None:
    (info,) = (panel for panel in panels("fdmoe-gpu") if panel["title"] == "GPUs")
    assert info["type"] == "table"
    assert "`recorded`" in info["description"]
    assert info["targets"][0]["format"] == "table"
