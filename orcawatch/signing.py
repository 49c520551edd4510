"""Signed bundles: a station lets only those score that were signed with a key it trusts.

Keys are Ed25519, in PEM files as `openssl genpkey -algorithm ed25519` makes them. Signatures stand beside the manifest,
in `manifest.json.sig`, one line for each key: `ed25519 KEY SIGNATURE`. They cover the manifest's digest, and with it
every file. The bundle that comes with orcawatch needs none: who can change it can change the program that would check.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from .bundle import MANIFEST, SHIPPED, SIGNATURE, Bundle, load_bundle, manifest_digest
from .durable import write_bytes
from .errors import BundleError, InputError, OrcawatchError

if TYPE_CHECKING:
    from .config import BundleSettings

log = logging.getLogger(__name__)

ALGORITHM = "ed25519"
ID_CHARACTERS = 16  # of a key's hash, by which people and files name it
LINE = re.compile(rf"{ALGORITHM} ([0-9a-f]{{{ID_CHARACTERS}}}) ([A-Za-z0-9+/]{{86}}==)")
MOST_B = 8 << 10  # of a signature file, or of a key's
CURE = "pip install 'orcawatch[signed]'"


@dataclass(frozen=True)
class PublicKey:
    """A key that a station trusts.

    Attributes
    ----------
    id : how it is named.
    file : where it stands.
    verify : of a signature and what was signed; raises where they do not belong together.
    """

    id: str
    file: Path
    verify: Callable[[bytes, bytes], object]


def check_signature(bundle: Bundle, trusted: BundleSettings) -> None:
    """Refuse a bundle that no trusted key has signed, where the settings say so; otherwise say so in the log.

    Raises
    ------
    BundleError : it is unsigned, signed with other keys only, or was changed after it was signed; or a signature cannot
        be checked, because no key can be read, or a package is missing.
    """
    if not trusted.trusted_keys:
        return
    try:
        signer(bundle, readable_keys(trusted.trusted_keys))
    except OrcawatchError as fault:
        if bundle.digest == shipped_digest():
            return
        if trusted.required:
            raise BundleError(f"{fault}; so it is not used (bundles.require_signature)") from fault
        log.warning("%s; it is used all the same (bundles.require_signature: false)", fault)


def readable_keys(files: Sequence[Path]) -> list[PublicKey]:
    """The keys in those files that can be read; a damaged one must not take the others' trust away.

    Raises
    ------
    OrcawatchError : none can.
    """
    keys, faults = [], []
    for file in files:
        try:
            keys.append(public_key(file))
        except InputError as fault:
            faults.append(fault)
            log.warning("%s", fault)
    if not keys and faults:
        raise faults[0]
    return keys


def signer(bundle: Bundle, keys: Sequence[PublicKey]) -> PublicKey:
    """The first of some keys that has signed a bundle.

    Raises
    ------
    BundleError : none has.
    """
    found = signatures(bundle.folder)
    for key in keys:
        with suppress(Exception):  # InvalidSignature, which is told below
            key.verify(found.get(key.id, b""), message(bundle))
            return key
    known = ", ".join(f"{key.id} ({key.file})" for key in keys)
    if not found:
        raise BundleError(
            f"{bundle.folder} is not signed: sign it where the key is (orcawatch bundle sign FOLDER --key FILE); "
            f"trusted is {known}"
        )
    if bad := sorted(found.keys() & {key.id for key in keys}):
        raise BundleError(
            f"the signature of key {bad[0]} does not fit {bundle.folder}: the bundle was changed after it was signed, "
            "or the signature is another's; copy it again, or sign it again"
        )
    raise BundleError(
        f"{bundle.folder} is signed with key {', '.join(sorted(found))}, and trusted is {known}: sign it with "
        "that one, or name the other's public file in bundles.trusted_keys"
    )


def signatures(folder: Path) -> dict[str, bytes]:
    """The signatures beside a manifest by the key's name; none where there is no such file.

    Raises
    ------
    BundleError : the file holds something else.
    """
    path = folder / SIGNATURE
    try:
        lines = limited(path).decode("ascii").splitlines()
        found = [match for line in lines if (match := LINE.fullmatch(line))]
        if len(found) != len(lines):
            raise ValueError("a line in it is no signature")
        return {match[1]: base64.b64decode(match[2], validate=True) for match in found}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as fault:
        raise BundleError(f"{path} is damaged, or no signature: {fault}; copy the bundle, or sign it, again") from fault


def sign(folder: Path, private_file: Path, passphrase: bytes | None = None) -> str:
    """Sign a bundle, beside the signatures of other keys; the key's name.

    Raises
    ------
    BundleError : the bundle is damaged.
    InputError : the key cannot be used.
    PassphraseError : it is encrypted, and the passphrase is missing or wrong.
    OrcawatchError : the disk refuses.
    """
    bundle = load_bundle(folder)
    private = private_key(private_file, passphrase)
    name = key_id(private.public_key())
    try:
        others = signatures(folder)
    except BundleError as fault:
        log.warning("%s: it is written anew, with this signature alone", fault)
        others = {}
    made = {**others, name: private.sign(message(bundle))}
    lines = [f"{ALGORITHM} {key} {base64.b64encode(made[key]).decode()}\n" for key in sorted(made)]
    try:
        write_bytes(folder / SIGNATURE, "".join(lines).encode())
    except OSError as fault:
        raise OrcawatchError(f"{folder / SIGNATURE} cannot be written: {fault.strerror}; check the disk") from fault
    return name


def message(bundle: Bundle) -> bytes:
    """What is signed: a line that says what it is about, so that a signature can mean nothing else."""
    return f"orcawatch bundle 1 {bundle.digest}\n".encode()


def shipped_digest() -> str | None:
    """Of the bundle that comes with orcawatch: what has its digest is the same in every byte; None if it is damaged."""
    try:
        return manifest_digest(json.loads((SHIPPED / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError):
        return None


class PassphraseError(InputError):
    """A key is encrypted, and its passphrase is missing or wrong."""


def make_keys(private_file: Path, passphrase: bytes | None = None) -> tuple[Path, str]:
    """Make a pair of keys: the private one, for its owner alone, and the public one beside it; that file, and the name.

    Raises
    ------
    InputError : one of the files exists.
    OrcawatchError : the disk refuses.
    """
    serialization, ed25519 = library()
    private = ed25519.Ed25519PrivateKey.generate()
    hidden = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    secret = private.private_bytes(pem, serialization.PrivateFormat.PKCS8, hidden)
    shown = private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    public_file = private_file.with_name(f"{private_file.name}.pub")
    for path in (private_file, public_file):
        if os.path.lexists(path):
            raise InputError(f"{path} exists already, and a lost key cannot be made again: name another file")
    write_new(private_file, secret, 0o600)
    write_new(public_file, shown, 0o644)
    return public_file, key_id(private.public_key())


def write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that does not exist; it is on the disk at the end."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as fault:
        raise OrcawatchError(f"{path} cannot be written: {fault.strerror}; name another file") from fault


def public_key(file: Path) -> PublicKey:
    """A public key; raises InputError where the file is none, OrcawatchError where `cryptography` is missing."""
    serialization, ed25519 = library()
    try:
        found = serialization.load_pem_public_key(limited(file))
    except OSError as fault:
        raise InputError(f"the public key {file} cannot be read: {fault.strerror}; copy it again") from fault
    except Exception as fault:
        raise InputError(f"{file} is no public key: {fault}; name the .pub file of `bundle keygen`") from fault
    if not isinstance(found, ed25519.Ed25519PublicKey):
        raise InputError(f"{file} holds a key of another kind than Ed25519: make one with `orcawatch bundle keygen`")
    return PublicKey(key_id(found), file, found.verify)


def private_key(file: Path, passphrase: bytes | None) -> Any:
    """A private key; raises InputError where the file is none, or others than its owner may read it."""
    serialization, ed25519 = library()
    try:
        pem, mode = limited(file), file.stat().st_mode
    except OSError as fault:
        raise InputError(f"the private key {file} cannot be read: {fault.strerror}; name another file") from fault
    if mode & 0o077:
        raise InputError(f"others can read the private key {file}: chmod 600 {file}, or make a new one if they have")
    try:
        found = serialization.load_pem_private_key(pem, passphrase)
    except TypeError as fault:
        if passphrase:  # it has none
            return private_key(file, None)
        raise PassphraseError(f"{file} is encrypted: give its passphrase") from fault
    except Exception as fault:
        if passphrase:
            raise PassphraseError(f"{file} cannot be read with this passphrase: try again") from fault
        raise InputError(f"{file} is no private key: {fault}; name the file of `bundle keygen`") from fault
    if not isinstance(found, ed25519.Ed25519PrivateKey):
        raise InputError(f"{file} holds a key of another kind than Ed25519: make one with `orcawatch bundle keygen`")
    return found


def key_id(public: Any) -> str:
    """The name of a public key: the beginning of its hash."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()[:ID_CHARACTERS]


def limited(file: Path) -> bytes:
    """The content of a small file; raises ValueError where it is large."""
    with file.open("rb") as opened:
        content = opened.read(MOST_B + 1)
    if len(content) > MOST_B:
        raise ValueError(f"it is larger than {MOST_B} bytes")
    return content


def library() -> tuple[Any, Any]:
    """The parts of `cryptography` that are needed.

    Raises
    ------
    OrcawatchError : it is not installed.
    """
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as fault:
        raise OrcawatchError(f"signatures need the package cryptography, which is not installed: {CURE}") from fault
    return serialization, ed25519
