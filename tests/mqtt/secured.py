"""A mosquitto as it should be: TLS, a password for everybody, and the rules of the example."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trustme
from broker import Listener, Mosquitto, running_mosquitto
from pydantic import SecretStr

RULES = Path(__file__).parents[2] / "systemd" / "mosquitto.acl"
USERS = ("edge-07", "edge-08", "viewer", "operator", "homeassistant", "witness")
_EVERYTHING = "\nuser witness\ntopic readwrite #\n"
"""One who hears and may say all, so that a test can."""


def password(user: str) -> str:
    return f"correct horse of {user}"


def login(broker: Mosquitto, user: str) -> dict[str, Any]:
    """The settings of a node that may come in."""
    secret = SecretStr(password(user))
    return {"username": user, "password": secret, "ca_file": broker.ca_file}


def listener(broker: Mosquitto, user: str) -> Listener:
    return Listener(broker, username=user, password=password(user))


@contextmanager
def secured_mosquitto(folder: Path) -> Iterator[Mosquitto]:
    """A running broker with all that, and its authority's certificate in `ca_file`."""
    words, rules = folder / "passwords", folder / "rules"
    words.write_text("".join(f"{user}:{password(user)}\n" for user in USERS))
    subprocess.run(["mosquitto_passwd", "-U", words], check=True)
    rules.write_text(RULES.read_text() + _EVERYTHING)
    for file in (words, rules):
        file.chmod(0o600)
    options = ["allow_anonymous false", f"password_file {words}", f"acl_file {rules}"]
    with running_mosquitto(folder, [*options, *tls(folder)]) as broker:
        broker.ca_file = folder / "authority.pem"
        yield broker


def tls(folder: Path) -> list[str]:
    """What makes a broker speak TLS as `localhost`; `authority.pem` vouches for it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    localhost = authority.issue_cert("localhost")
    localhost.cert_chain_pems[0].write_to_path(str(folder / "localhost.pem"))
    localhost.private_key_pem.write_to_path(str(folder / "localhost-key.pem"))
    return [f"certfile {folder}/localhost.pem", f"keyfile {folder}/localhost-key.pem"]
