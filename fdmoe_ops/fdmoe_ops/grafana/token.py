"""The token of a Grafana service account, read from a file: a flag or a variable would show it to everybody."""

from __future__ import annotations

import stat

from fdmoe_ops.settings import GrafanaSettings, SettingsError

_MAX_BYTES = 4096


def read_token(settings: GrafanaSettings) -> str:
    """Raises SettingsError where no file is given, it cannot be read, or what is in it can be no token."""
    path = settings.token_file
    if path is None:
        raise SettingsError(
            "grafana.token_file is not set; a file with a service account's token is needed "
            "[--grafana-token-file, FDMOE_GRAFANA__TOKEN_FILE, or grafana.token_file in the YAML file]"
        )
    try:
        with path.expanduser().open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"grafana.token_file is {path}: {error.strerror or error}") from error
    token = raw.strip()
    if not token:
        raise SettingsError(f"grafana.token_file is {path}, and it is empty; a service account's token is needed")
    # it goes into a header as it is
    if len(raw) > _MAX_BYTES or not all(33 <= byte <= 126 for byte in token):
        raise SettingsError(f"grafana.token_file is {path}, and it holds more than one token on one line")
    return token.decode("ascii")


def exposure(settings: GrafanaSettings) -> str:
    """What is wrong with the file's mode, or "": anybody who may log in could read the token."""
    path = settings.token_file
    if path is None:
        return ""
    mode = path.expanduser().stat().st_mode
    if not mode & stat.S_IROTH:
        return ""
    return f"{path} can be read by everybody on this machine (mode {stat.S_IMODE(mode):04o}); chmod 600 keeps it yours"
