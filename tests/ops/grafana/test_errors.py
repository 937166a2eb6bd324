"""What is said when a Grafana, its token or its address is not what it should be; the exit code is 2 each time."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_grafana import LOKI, FakeGrafana, Trouble
from typer.testing import CliRunner, Result

from fdmoe_ops.cli.dashboards import app
from fdmoe_ops.grafana import extra

Run = Callable[..., Result]


def error_of(result: Result) -> str:
    assert result.exit_code == 2, (result.exit_code, result.output)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr.removeprefix("error: ").rstrip("\n")


def test_a_token_that_grafana_does_not_know(run: Run, grafana: FakeGrafana, token_file: Path) -> None:
    token_file.write_text("glsa_of_another_grafana")
    assert error_of(run("push")) == (
        f"Grafana at {grafana.url} does not take the token (401: Invalid API key): is it this Grafana's, and has it "
        "not expired?"
    )


def test_a_token_that_may_not_write(run: Run, grafana: FakeGrafana) -> None:
    grafana.may_write = False
    assert error_of(run("push")) == (
        f"Grafana at {grafana.url} did not let us make the folder fdmoe (403: You'll need additional permissions to "
        "perform this action. Permissions needed: folders:create): the token's service account needs folders:create"
    )


def test_an_address_without_a_grafana(run: Run, grafana: FakeGrafana) -> None:
    url = f"{grafana.url}/somewhere"
    assert error_of(run("push", url=url)) == (
        f"Grafana at {url} could not say how it is (404: Not found); is the path in grafana.url the one that Grafana "
        "is served under?"
    )


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<html>Welcome</html>", "text/html"),
        (b"[1, 2]", "application/json"),
        (b"{", "application/json"),
        (b"\xff\x00", "application/octet-stream"),
    ],
)
def test_an_answer_of_somebody_else(run: Run, grafana: FakeGrafana, body: bytes, kind: str) -> None:
    grafana.troubles.append(Trouble("GET /api/health", 200, body, kind))
    assert error_of(run("push")) == (
        f"asked to say how it is, {grafana.url} gave no answer of Grafana's: is there one at this address?"
    )


def test_a_dashboard_that_is_none(run: Run, grafana: FakeGrafana) -> None:
    grafana.troubles.append(Trouble("GET /api/dashboards/uid/fdmoe-gpu", 200, b'{"dashboard": 1}'))
    assert error_of(run("diff")) == (
        f"asked to read the dashboard fdmoe-gpu, {grafana.url} gave no answer of Grafana's: is there one at this "
        "address?"
    )


def test_a_redirect_is_not_followed(run: Run, grafana: FakeGrafana) -> None:
    place = "https://grafana.example.org/api/health"
    grafana.troubles.append(Trouble("GET /api/health", 301, headers=(("Location", place),)))
    assert error_of(run("push")) == (
        f"{grafana.url} sends us on to {place}: give the address that it has (grafana.url)"
    )  # fmt: skip
    assert grafana.requests == ["GET /api/health"]


@pytest.mark.parametrize("told", ["10.4.19", "11.5.7", "9.0.0-beta3"])
def test_a_grafana_that_is_too_old(run: Run, grafana: FakeGrafana, told: str) -> None:
    grafana.version = told
    assert error_of(run("push")) == f"Grafana at {grafana.url} has version {told}; the dashboards need 11.6 or newer"


@pytest.mark.parametrize("told", ["11.6.0+security-01", "12.0.0-88106", "13.1.2"])
def test_a_grafana_that_is_new_enough(run: Run, grafana: FakeGrafana, told: str) -> None:
    grafana.version = told
    assert run("push").exit_code == 0


def test_a_grafana_that_hides_its_version(run: Run, grafana: FakeGrafana) -> None:
    grafana.version = ""
    result = run("push")
    assert result.exit_code == 0
    assert result.stderr == (
        f"warning: Grafana at {grafana.url} does not say its version; 11.6 is the oldest that will do\n"
    )  # fmt: skip


def test_a_data_source_that_is_not_there(run: Run) -> None:
    assert error_of(run("push", "--datasource", "Metrics/2")) == (
        "grafana.datasource is 'Metrics/2'; no data source has that uid or name"
    )  # fmt: skip


def test_a_data_source_of_another_kind(run: Run) -> None:
    assert error_of(run("push", "--datasource", "Logs")) == (
        "grafana.datasource is 'Logs', of type loki; a Prometheus data source is needed"
    )  # fmt: skip


def test_no_prometheus(run: Run, grafana: FakeGrafana) -> None:
    grafana.sources = [LOKI]
    assert error_of(run("push")) == f"Grafana at {grafana.url} has no Prometheus data source; add one first"


def test_an_editor_may_not_read_data_sources_and_may_push(run: Run, grafana: FakeGrafana) -> None:
    grafana.may_read_sources = False
    result = run("push")
    assert (result.exit_code, len(grafana.dashboards)) == (0, 2)
    assert result.stderr.startswith("warning: whether there is a Prometheus data source is not known: Grafana at ")
    assert "the token's service account needs datasources:read\n" in result.stderr
    assert "datasources:read" in error_of(run("push", "--datasource", "prom-1"))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_grafana_that_is_busy_is_asked_again(run: Run, grafana: FakeGrafana, status: int) -> None:
    for path in ("GET /api/health", "POST /api/folders", "POST /api/dashboards/db"):
        grafana.troubles.append(Trouble(path, status, b'{"message": "busy"}', times=1))
    result = run("push", "--deadline-s", "20")
    assert (result.exit_code, result.stderr) == (0, "")
    assert [stored.version for stored in grafana.dashboards.values()] == [1, 1]


def test_a_grafana_that_stays_broken(run: Run, grafana: FakeGrafana) -> None:
    grafana.troubles.append(Trouble("POST /api/dashboards/db", 500, b'{"message": "database is locked"}'))
    assert error_of(run("push")) == (
        f"Grafana at {grafana.url} could not save the dashboard fdmoe-gpu (500: database is locked) "
        "(tried once in 0.1 s)"
    )


def test_a_grafana_that_wants_to_be_left_alone_for_longer_than_we_have(run: Run, grafana: FakeGrafana) -> None:
    grafana.troubles.append(Trouble("GET /api/health", 429, b"{}", headers=(("Retry-After", "60"),)))
    assert error_of(run("push", "--deadline-s", "20")).endswith("could not say how it is (429) (tried once in 20 s)")
    assert grafana.requests == ["GET /api/health"]


def test_a_grafana_that_hangs(run: Run, grafana: FakeGrafana) -> None:
    grafana.troubles.append(Trouble("GET /api/health", hang=True))
    assert error_of(run("push", "--timeout-s", "0.1")) == (
        f"Grafana at {grafana.url} did not answer in 0.1 s (tried once in 0.1 s)"
    )  # fmt: skip


def test_nobody_listens(run: Run) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen: nobody else gets the port meanwhile
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert error_of(run("push", url=url)) == (
            f"no connection to Grafana at {url}: Connection refused (tried once in 0.1 s)"
        )  # fmt: skip


def test_no_certificate(run: Run, grafana: FakeGrafana) -> None:
    url = grafana.url.replace("http://", "https://")
    told = error_of(run("push", url=url))
    assert told.startswith(f"no secure connection to {url}: ")
    assert told.endswith("; REQUESTS_CA_BUNDLE names a file of certificates that are trusted")


def test_no_address(directory: Path) -> None:
    result = CliRunner().invoke(app, ["push", "--directory", str(directory)])
    assert error_of(result) == (
        "grafana.url is not set; the address of a Grafana is needed "
        "[--url, --grafana-url, FDMOE_GRAFANA__URL, or grafana.url in the YAML file]"
    )


@pytest.mark.parametrize("flag", ["--url", "--grafana-url"])
def test_an_address_without_a_scheme(flag: str) -> None:
    result = CliRunner().invoke(app, ["push", flag, "grafana.example.org"])
    assert error_of(result).startswith(
        "grafana.url is 'grafana.example.org' (from a flag): allowed: http:// or https://"
    )


# ---- the token's file


def test_no_token_file(directory: Path) -> None:
    result = CliRunner().invoke(
        app, ["push", "--url", "http://127.0.0.1", "--directory", str(directory)]
    )  # fmt: skip
    assert error_of(result).startswith("grafana.token_file is not set; a file with a service account's token is needed")


def test_a_token_file_that_is_missing(run: Run, token_file: Path) -> None:
    token_file.unlink()
    assert error_of(run("push")) == f"grafana.token_file is {token_file}: No such file or directory"


@pytest.mark.parametrize("text", ["", "\n", "  \n"])
def test_a_token_file_that_is_empty(run: Run, token_file: Path, text: str) -> None:
    token_file.write_text(text)
    assert error_of(run("push")) == (
        f"grafana.token_file is {token_file}, and it is empty; a service account's token is needed"
    )


@pytest.mark.parametrize("text", ["one two", "one\ntwo\n", "tök", "x" * 5000])
def test_a_token_file_with_something_else(run: Run, token_file: Path, text: str, grafana: FakeGrafana) -> None:
    token_file.write_text(text)
    assert error_of(run("push")) == (
        f"grafana.token_file is {token_file}, and it holds more than one token on one line"
    )  # fmt: skip
    assert grafana.requests == []


def test_a_token_file_that_others_can_read(run: Run, token_file: Path) -> None:
    token_file.chmod(0o644)
    result = run("push")
    assert result.exit_code == 0
    assert result.stderr == (
        f"warning: {token_file} can be read by everybody on this machine (mode 0644); chmod 600 keeps it yours\n"
    )
    token_file.chmod(0o640)
    assert run("push").stderr == ""


# ---- the extra, and the dashboards themselves


def test_without_the_extra(run: Run, grafana: FakeGrafana, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extra.importlib.util, "find_spec", lambda _: None)
    assert error_of(run("push")) == "grafana-client is not installed: pip install 'fdmoe-ops[grafana]'"
    assert grafana.requests == []


def test_the_command_line_does_without_the_extra() -> None:
    script = (
        "import sys; from fdmoe_ops.cli.dashboards import app; import fdmoe_ops.cli.serve;"
        "print(sorted({'grafana_client', 'requests', 'urllib3'} & set(sys.modules)))"
    )
    done = subprocess.run((sys.executable, "-P", "-c", script), capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "Expecting property name enclosed in double quotes"),
        ("[]", "uid is None; 1 to 40 letters, digits, '-' and '_' are allowed"),
        ('{"uid": "a b", "title": "t"}', "uid is 'a b'; 1 to 40 letters"),
        ('{"uid": "a", "title": " "}', "title is ' '; a text is needed"),
    ],
)
def test_a_file_that_is_no_dashboard(run: Run, directory: Path, text: str, problem: str) -> None:
    (directory / "bad.json").write_text(text)
    assert error_of(run("push")).startswith(f"{directory}/bad.json is no dashboard: {problem}")


def test_two_dashboards_of_one_uid(run: Run, directory: Path) -> None:
    (directory / "again.json").write_text('{"uid": "fdmoe-gpu", "title": "again"}')
    assert error_of(run("push")) == f"two dashboards in {directory} have the uid fdmoe-gpu"


def test_a_directory_without_dashboards(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, reason in (("empty", "it has no file *.json"), ("absent", "No such file or directory")):
        result = run("push", "--directory", str(tmp_path / name))
        assert error_of(result) == f"no dashboards in {tmp_path / name}: {reason}"
