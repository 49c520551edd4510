"""A sink that publishes messages to an MQTT broker."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Condition
from typing import TYPE_CHECKING, Any

from .config import SinkSettings
from .errors import ConfigError
from .keys import choice, joined, number, path, switch, text, whole
from .sinks import Message, RefusedError, SinkError, Site, UnreachableError

if TYPE_CHECKING:
    from paho.mqtt.client import Client
    from paho.mqtt.reasoncodes import ReasonCode

log = logging.getLogger(__name__)

PORT, TLS_PORT = 1883, 8883
STATUS, ONLINE, OFFLINE = "status", "online", "offline"
TOO_LARGE, WRONG_FORMAT = 0x95, 0x99  # answers of MQTT 5 that say that the message is wrong
FAREWELL_S = 2.0
HEADER_BYTES = 10  # of a message beside topic and payload, at most

# ruff: noqa: RUF009


@dataclass(frozen=True)
class MqttSettings(SinkSettings):
    """An MQTT broker: each message is published to `PREFIX/STATION/KIND` with QoS 1, the status is retained."""

    host: str = text("", "Name or address of the broker.")
    port: int | None = whole(None, 1, 65535, "TCP port of the broker.", "1883, or 8883 with `tls`")
    version: str = choice("5", ("5", "3.1.1"), "Of MQTT. Brokers tell with 5 only that they reject a message.")
    prefix: str = text("orcawatch", "First part of the topics.")
    client_id: str | None = text(None, "Name of the connection, unique at the broker.", "orcawatch-STATION-NAME")
    username: str | None = text(None, "User at the broker.", "none")
    password_file: Path | None = path(None, "A file with the password on its first line.", "none")
    tls: bool = switch(False, "Encrypt the connection, and check the broker's certificate.")
    ca_file: Path | None = path(None, "Certificates (PEM) that the broker's is checked against.", "the system's")
    keepalive_s: int = whole(60, 5, 65535, "Silence after which a sign of life is sent.", unit="s")
    timeout_s: float = number(30, 1, 600, "s", "How long the broker may take to answer.")

    def crossed(self, where: str) -> Iterator[str]:
        """Faults between keys."""
        if not self.host:
            yield f"{joined(where, 'host')} must name the broker"
        if any(sign in self.prefix for sign in "+#\0") or not self.prefix.strip("/"):
            yield f"{joined(where, 'prefix')} must be the beginning of a topic, without + and #, not {self.prefix!r}"
        if self.password_file is not None and self.username is None:
            yield f"{joined(where, 'password_file')} needs {joined(where, 'username')}"
        if self.ca_file is not None and not self.tls:
            yield f"{joined(where, 'ca_file')} needs {joined(where, 'tls')}: true"


class MqttSink:
    """Publishes one message after the other, and waits for the broker's acknowledgement of each.

    The queue in the database is the memory of what was acknowledged. So each connection begins without a session at the
    broker (which would hold nothing for one that only publishes with QoS 1), and nothing is ever sent behind the
    queue's back or out of order. The client id stays the same, so that a new connection ends one that is half dead.

    Parameters
    ----------
    settings, site : as for every sink.

    Raises
    ------
    ConfigError : the settings do not fit together.
    """

    Settings = MqttSettings
    overhead_bytes = 120

    def __init__(self, settings: MqttSettings, site: Site) -> None:
        if faults := list(settings.crossed("")):
            raise ConfigError("; ".join(faults))
        self._settings = settings
        self._topic = f"{settings.prefix.strip('/')}/{site.label}"
        self._client_id = settings.client_id or f"orcawatch-{site.label}-{settings.queue}"
        self._link: Link | None = None

    def open(self) -> None:
        """Connect where there is no connection, and say that the station is online.

        Raises
        ------
        UnreachableError : there is no way to the broker, or it does not let us in.
        """
        if self._link is not None and self._link.up:
            return
        self.close()
        link = Link(self._settings, self._client_id, f"{self._topic}/{STATUS}")
        try:
            link.connect()
            link.publish(link.status, ONLINE.encode(), retain=True)
        except BaseException as fault:
            link.close()
            if isinstance(fault, SinkError) and not isinstance(fault, UnreachableError):
                raise UnreachableError(str(fault)) from fault
            raise
        self._link = link

    def send(self, message: Message) -> None:
        """Publish a message.

        Raises
        ------
        SinkError : the broker did not acknowledge it in time, or does not take it now.
        RefusedError : it says that the message is too large or wrong.
        """
        if self._link is None:
            raise UnreachableError("the connection to the broker is not open: call open() before send()")
        self._link.publish(f"{self._topic}/{message.kind}", message.payload)

    def close(self) -> None:
        """Say that the station is offline, and disconnect. Where the connection is lost, the broker says so itself."""
        link, self._link = self._link, None
        if link is not None:
            link.farewell()
            link.close()


class Link:
    """One connection to a broker, from its begin to its end.

    Parameters
    ----------
    settings : broker, user, encryption.
    client_id : name of the connection.
    status : topic that the broker says `offline` in where the connection is lost.
    """

    def __init__(self, settings: MqttSettings, client_id: str, status: str) -> None:
        self.status = status
        self._settings = settings
        self._port = settings.port or (TLS_PORT if settings.tls else PORT)
        self._name = f"MQTT broker {settings.host}:{self._port}"
        self._changed = Condition()
        self._up = False
        self._lost = ""  # why there is no connection any more
        self._answers: dict[int, ReasonCode] = {}  # by message
        self._most_bytes: int | None = None  # that the broker takes at once
        self._client = self._new_client(client_id)

    @property
    def up(self) -> bool:
        """Whether the connection stands."""
        with self._changed:
            return self._up

    def connect(self) -> None:
        """Connect, and wait until the broker lets us in.

        Raises
        ------
        UnreachableError : it does not.
        """
        self._authenticate()
        try:
            self._client.connect(self._settings.host, self._port, self._settings.keepalive_s)
        except (OSError, ValueError) as fault:
            hint = "; check `ca_file`, `port` and the broker's certificate" if self._settings.tls else ""
            raise UnreachableError(f"{self._name} cannot be reached: {fault}{hint}") from fault
        self._client.loop_start()
        with self._changed:
            self._changed.wait_for(lambda: self._up or self._lost, self._settings.timeout_s)
            if not self._up:
                raise UnreachableError(f"{self._name} {self._lost or 'does not answer'}")

    def publish(self, topic: str, payload: bytes, retain: bool = False, patience_s: float | None = None) -> None:
        """Publish, and wait for the broker's acknowledgement.

        Raises
        ------
        SinkError, RefusedError : as for `MqttSink.send`.
        """
        size = len(topic.encode()) + len(payload) + HEADER_BYTES
        if self._most_bytes is not None and size > self._most_bytes:
            raise RefusedError(f"{self._name} takes at most {self._most_bytes} bytes at once, not {size}")
        sent = self._client.publish(topic, payload, qos=1, retain=retain).mid
        with self._changed:
            self._changed.wait_for(
                lambda: sent in self._answers or not self._up, patience_s or self._settings.timeout_s
            )
            answer, lost = self._answers.pop(sent, None), self._lost
        if answer is None:
            raise SinkError(f"{self._name} {lost or 'does not acknowledge'}")
        if answer.is_failure:
            kind = RefusedError if answer.value in (TOO_LARGE, WRONG_FORMAT) else SinkError
            raise kind(f"{self._name} rejects {topic}: {answer}; check its limits and access rights")

    def farewell(self) -> None:
        """Say that we are offline, as far as that is still possible."""
        if self.up:
            try:
                self.publish(self.status, OFFLINE.encode(), retain=True, patience_s=FAREWELL_S)
            except (SinkError, RefusedError) as fault:
                log.debug("%s; it says `%s` by itself where the connection is lost", fault, OFFLINE)

    def close(self) -> None:
        """Disconnect, end the thread, and let go of the client, which keeps two file handles as long as it lives."""
        self._client.disconnect()
        self._client.loop_stop()
        self._client.on_connect = self._client.on_disconnect = self._client.on_publish = None

    def _new_client(self, client_id: str) -> Client:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

        newest = self._settings.version == "5"
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id,
            clean_session=None if newest else True,  # with version 5 the first connection is clean
            protocol=MQTTProtocolVersion.MQTTv5 if newest else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client.will_set(self.status, OFFLINE, qos=1, retain=True)
        client.on_connect, client.on_disconnect, client.on_publish = (
            self._connected,
            self._disconnected,
            self._published,
        )
        client.connect_timeout = self._settings.timeout_s
        return client

    def _authenticate(self) -> None:
        """User, password and certificates, as the files have them now."""
        settings = self._settings
        try:
            if settings.username is not None:
                self._client.username_pw_set(settings.username, password(settings.password_file))
            if settings.tls:
                self._client.tls_set(None if settings.ca_file is None else str(settings.ca_file))
        except (OSError, ValueError) as fault:
            raise UnreachableError(f"{self._name}: {fault}; check `password_file` and `ca_file`") from fault

    def _connected(self, client: Client, data: Any, flags: Any, answer: ReasonCode, properties: Any) -> None:
        with self._changed:
            if answer.is_failure:
                self._lost = f"does not let us in: {answer}; check `username` and `password_file`"
            else:
                self._up = True
                self._most_bytes = getattr(properties, "MaximumPacketSize", None)
            self._changed.notify_all()

    def _disconnected(self, client: Client, data: Any, flags: Any, answer: ReasonCode, properties: Any) -> None:
        with self._changed:
            self._up = False
            self._lost = self._lost or f"ended the connection: {answer}"
            self._changed.notify_all()

    def _published(self, client: Client, data: Any, mid: int, answer: ReasonCode, properties: Any) -> None:
        with self._changed:
            self._answers[mid] = answer
            self._changed.notify_all()


def password(file: Path | None) -> str | None:
    """The first line of a file; None where there is no file.

    Raises
    ------
    OSError, UnicodeDecodeError : it cannot be read.
    """
    return None if file is None else (file.read_text(encoding="utf-8").splitlines() or [""])[0]
