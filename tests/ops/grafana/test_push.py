"""`fdmoe dashboards push` against a Grafana that keeps state: what it writes, and what it leaves alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_grafana import FakeGrafana, Trouble, running_grafana
from typer.testing import CliRunner, Result

from fdmoe_ops.cli.dashboards import app
from fdmoe_ops.version import version

Run = Callable[..., Result]
OURS = f"fdmoe-ops {version()}"


def lines(result: Result) -> list[str]:
    return [" ".join(line.split()) for line in result.stdout.splitlines()]


def test_a_first_push_makes_everything_and_a_second_changes_nothing(run: Run, grafana: FakeGrafana) -> None:
    result = run("push")
    assert (result.exit_code, result.stderr) == (0, "")
    assert lines(result) == [
        "created the folder fdmoe",
        f"created fdmoe-gpu {grafana.url}/d/fdmoe-gpu/fdmoe-gpu",
        f"created fdmoe-service {grafana.url}/d/fdmoe-service/fdmoe-service",
    ]
    assert grafana.writes() == ["POST /api/folders", "POST /api/dashboards/db", "POST /api/dashboards/db"]
    assert grafana.folders["fdmoe"]["title"] == "fdmoe"
    assert {uid: (stored.folder, stored.history[-1]["message"]) for uid, stored in grafana.dashboards.items()} == {
        "fdmoe-gpu": ("fdmoe", OURS),
        "fdmoe-service": ("fdmoe", OURS),
    }
    result = run("push")
    assert result.exit_code == 0
    assert lines(result) == [
        f"unchanged fdmoe-gpu {grafana.url}/d/fdmoe-gpu/fdmoe-gpu",
        f"unchanged fdmoe-service {grafana.url}/d/fdmoe-service/fdmoe-service",
        "nothing has changed",
    ]
    assert len(grafana.writes()) == 3
    assert [stored.version for stored in grafana.dashboards.values()] == [1, 1]


def test_links_to_runbooks_lead_where_they_are_read(run: Run, grafana: FakeGrafana, directory: Path) -> None:
    file = directory / "fdmoe-gpu.json"
    link = {"title": "Runbook: xid-critical", "url": "dashboards/runbooks/xid-critical.md"}
    panels = [{"id": 1, "title": "Xids", "links": [link], "description": "See dashboards/runbooks/xid-critical.md."}]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"panels": panels}))
    assert run("push").exit_code == 0
    assert grafana.dashboards["fdmoe-gpu"].model["panels"] == panels
    assert run("push", "--runbooks-url", "https://wiki.example.org/fdmoe/").exit_code == 0
    (panel,) = grafana.dashboards["fdmoe-gpu"].model["panels"]
    assert panel["links"] == [link | {"url": "https://wiki.example.org/fdmoe/xid-critical.md"}]
    assert panel["description"] == panels[0]["description"]
    refused = run("push", "--runbooks-url", "wiki")
    assert refused.exit_code == 2
    assert "allowed: http://HOST:PORT or https://HOST:PORT, with a path or without" in " ".join(refused.stderr.split())


def test_a_newer_dashboard_of_ours_replaces_an_older_one_of_ours(
    run: Run, grafana: FakeGrafana, directory: Path
) -> None:  # fmt: skip
    run("push")
    file = directory / "fdmoe-gpu.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"refresh": "10s"}))
    result = run("push")
    assert result.exit_code == 0, result.stderr
    assert [line.split()[:2] for line in lines(result)] == [["updated", "fdmoe-gpu"], ["unchanged", "fdmoe-service"]]
    assert grafana.dashboards["fdmoe-gpu"].model["refresh"] == "10s"
    assert grafana.dashboards["fdmoe-gpu"].version == 2


def test_what_somebody_has_edited_is_left_alone_until_it_is_to_be_overwritten(run: Run, grafana: FakeGrafana) -> None:
    run("push")
    grafana.somebody_saves("fdmoe-gpu", refresh="5s")
    result = run("push")
    assert result.exit_code == 1
    assert [line.split()[:2] for line in lines(result)] == [["refused", "fdmoe-gpu"], ["unchanged", "fdmoe-service"]]
    assert result.stderr == (
        "error: fdmoe-gpu is left as it is: version 2 was saved by anna at 2030-01-02T03:04:05Z, not by fdmoe\n"
        "error: `fdmoe dashboards diff` shows what --overwrite would replace\n"
    )
    assert grafana.dashboards["fdmoe-gpu"].model["refresh"] == "5s"
    result = run("push", "--overwrite")
    assert (result.exit_code, lines(result)[0].split()[:2]) == (0, ["updated", "fdmoe-gpu"])
    assert "refresh" not in grafana.dashboards["fdmoe-gpu"].model
    assert grafana.dashboards["fdmoe-gpu"].version == 3


def test_an_edit_that_changes_nothing_is_no_difference(run: Run, grafana: FakeGrafana) -> None:
    run("push")
    grafana.somebody_saves("fdmoe-gpu")
    assert lines(run("push"))[-1] == "nothing has changed"


def test_an_edit_between_reading_and_writing_is_refused_by_grafana(
    run: Run, grafana: FakeGrafana, directory: Path
) -> None:  # fmt: skip
    run("push")
    file = directory / "fdmoe-gpu.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"refresh": "10s"}))
    told = b'{"message": "The dashboard has been changed by someone else", "status": "version-mismatch"}'
    grafana.troubles.append(Trouble("POST /api/dashboards/db", 412, told))
    result = run("push")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == (
        f"error: fdmoe-gpu is left as it is: Grafana at {grafana.url} did not save the dashboard fdmoe-gpu "
        "(412: The dashboard has been changed by someone else)"
    )


def test_a_version_that_is_not_the_one_that_was_read_is_refused(run: Run, grafana: FakeGrafana) -> None:
    """The fake itself knows about versions: else the test above would prove nothing."""
    run("push")
    body = {"dashboard": grafana.dashboards["fdmoe-gpu"].model | {"version": 7}, "folderUid": "fdmoe"}
    with pytest.raises(Exception, match="version-mismatch"):
        grafana._save(body)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("path", ["POST /api/folders", "POST /api/dashboards/db"])
def test_a_lost_answer_is_no_conflict(run: Run, grafana: FakeGrafana, path: str) -> None:
    grafana.troubles.append(Trouble(path, times=1, done=True, hang_up=True))
    result = run("push", "--deadline-s", "20")
    assert result.exit_code == 0, result.stderr
    assert [line.split()[0] for line in lines(result)] == ["created", "created", "created"]
    assert [stored.version for stored in grafana.dashboards.values()] == [1, 1]


def test_a_dashboard_in_another_folder_is_brought_back(run: Run, grafana: FakeGrafana) -> None:
    run("push")
    grafana.folders["other"] = {"uid": "other", "title": "Other"}
    grafana.dashboards["fdmoe-gpu"].folder = "other"
    assert lines(run("push"))[0].startswith("updated fdmoe-gpu")
    assert grafana.dashboards["fdmoe-gpu"].folder == "fdmoe"


def test_another_folder(run: Run, grafana: FakeGrafana) -> None:
    assert run("push", "--folder-uid", "moe", "--folder-title", "Experts").exit_code == 0
    assert {uid: folder["title"] for uid, folder in grafana.folders.items()} == {"moe": "Experts"}


def test_a_folder_of_that_title_which_is_another(run: Run, grafana: FakeGrafana) -> None:
    grafana.folders["old"] = {"uid": "old", "title": "fdmoe"}
    result = run("push")
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: Grafana at {grafana.url} did not make the folder fdmoe (409: a folder with the same name already "
        "exists in the current location); --folder-title or --folder-uid names another\n"
    )
    assert grafana.dashboards == {}


@pytest.mark.parametrize("name", ["prom-1", "Metrics of the fleet"])
def test_dashboards_open_with_the_data_source_that_is_named(run: Run, grafana: FakeGrafana, name: str) -> None:
    assert run("push", "--datasource", name).exit_code == 0
    variable, logs = grafana.dashboards["fdmoe-gpu"].model["templating"]["list"]
    assert "current" not in logs
    assert variable["current"] == {"selected": True, "text": "Metrics of the fleet", "value": "prom-1"}
    assert lines(run("push", "--datasource", name))[-1] == "nothing has changed"


def test_a_grafana_under_a_path(token_file: Path, directory: Path) -> None:
    with running_grafana(prefix="/ops/grafana") as grafana:
        flags = ("--url", f"{grafana.url}/", "--token-file", str(token_file), "--directory", str(directory))
        result = CliRunner().invoke(app, ["push", *flags])
        assert result.exit_code == 0, result.stderr
        assert lines(result)[1] == f"created fdmoe-gpu {grafana.url}/d/fdmoe-gpu/fdmoe-gpu"
