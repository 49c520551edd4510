"""Signed bundles: who may score, tried with keys and signatures of our own and of OpenSSL."""

from __future__ import annotations

import base64
import json
import logging
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from click.testing import CliRunner, Result

from orcawatch import daemon, signing
from orcawatch.bundle import MANIFEST, SHIPPED, SIGNATURE, load_bundle, manifest_digest
from orcawatch.bundles import in_force
from orcawatch.cli import main
from orcawatch.config import BundleSettings, Settings, load_settings
from orcawatch.errors import BundleError, ConfigError, InputError, OrcawatchError
from orcawatch.shelf import Shelf
from orcawatch.web.looking import open_quietly


def command(*words: object, told: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], input=told)


def variant(folder: Path, name: str) -> Path:
    """The shipped bundle under another name: it works, and its digest is another."""
    shutil.copytree(SHIPPED, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["name"] = name
    manifest["digest"] = manifest_digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two pairs of keys, and two bundles that are not signed."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("old", "new"):
        signing.make_keys(folder / name)
    return {
        **{name: folder / name for name in ("old", "new")},
        **{f"{name}.pub": folder / f"{name}.pub" for name in ("old", "new")},
        **{name: variant(folder / name, name) for name in ("first", "second")},
    }


@pytest.fixture
def first(made: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["first"], tmp_path / "first"))


def trusting(made: dict[str, Path], *names: str, output: Path | None = None, **more: Any) -> Settings:
    keys = tuple(made[f"{name}.pub"] for name in names)
    return Settings(bundles=BundleSettings(keys, **more), output=output or Path("nowhere"))


def resign(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest, and let its digest fit again, as somebody on the way would."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    manifest["digest"] = manifest_digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_signed_verified_and_installed_by_commands(made: dict[str, Path], first: Path, tmp_path: Path) -> None:
    done = command("bundle", "keygen", tmp_path / "mine")
    assert done.exit_code == 0, done.output
    name = done.output.split()[1].rstrip(":")
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o600
    config = tmp_path / "station.yaml"
    config.write_text("bundles: {trusted_keys: [mine.pub]}\noutput: out\n")
    for words in (("verify", first), ("install", first)):
        done = command("bundle", *words, "--config", config)
        assert (
            done.exit_code == 2
            and f"is not signed: sign it where the key is (orcawatch bundle sign FOLDER --key FILE); trusted is {name}"
            in done.output
        )
    assert not list((tmp_path / "out" / "bundles").glob("*-*")) and in_force(load_settings(config)).origin == "shipped"
    assert f"signed with key {name}" in command("bundle", "sign", first, "--key", tmp_path / "mine").output
    assert (
        f"signed with the trusted key {name}"
        in command("bundle", "verify", first, "--key", tmp_path / "mine.pub").output
    )
    assert "which nobody has checked" in command("bundle", "verify", first).output
    assert command("bundle", "verify", first, "--key", made["old.pub"]).exit_code == 2
    done = command("bundle", "install", first, "--config", config)
    assert done.exit_code == 0 and "current: first" in done.output
    found = in_force(load_settings(config))
    assert (found.origin, found.faults) == ("current", ()) and (found.bundle.folder / SIGNATURE).is_file()


def test_what_openssl_says_of_keys_and_signatures(made: dict[str, Path], first: Path, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is missing")
    private = tmp_path / "theirs"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    private.chmod(0o600)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", tmp_path / "theirs.pub"], check=True)
    name = signing.sign(first, private)
    (tmp_path / "said").write_bytes(signing.message(load_bundle(first)))
    (tmp_path / "sig").write_bytes(signing.signatures(first)[name])
    verify = [
        "openssl",
        "pkeyutl",
        "-verify",
        "-pubin",
        "-rawin",
        "-in",
        tmp_path / "said",
        "-sigfile",
        tmp_path / "sig",
    ]
    assert (
        subprocess.run([*verify, "-inkey", tmp_path / "theirs.pub"], capture_output=True, check=False).returncode == 0
    )
    assert subprocess.run([*verify, "-inkey", made["old.pub"]], capture_output=True, check=False).returncode != 0
    assert signing.signer(load_bundle(first), [signing.public_key(tmp_path / "theirs.pub")]).id == name


def changes(folder: Path) -> dict[str, Callable[[], object]]:
    sign = folder / SIGNATURE
    return {
        "a model": lambda: (folder / "heads.tflite").write_bytes(b"theirs"),
        "the manifest": lambda: resign(folder, lambda manifest: manifest["thresholds"].update(start=1.0, stop=1.0)),
        "a model, and its hash": lambda: resign(folder, lambda found: (
            (folder / "model-card.md").write_text("theirs"),
            found["files"].update({"model-card.md": signing.hashlib.sha256(b"theirs").hexdigest()}),
        )),
        "a manifest that names its signature": lambda: resign(
            folder, lambda found: found["files"].update({SIGNATURE: signing.hashlib.sha256(sign.read_bytes()).hexdigest()})
        ),
        "no signature": sign.unlink,
        "an empty signature": lambda: sign.write_text(""),
        "half a signature": lambda: sign.write_text(sign.read_text()[:60]),
        "no text": lambda: sign.write_bytes(b"\xff\x1b[2J" * 10),
        "another algorithm": lambda: sign.write_text(sign.read_text().replace("ed25519", "none")),
        "a long signature": lambda: sign.write_text(sign.read_text() * 1000),
        "zeros": lambda: sign.write_text(f"{sign.read_text()[:25]}{base64.b64encode(bytes(64)).decode()}\n"),
        "a folder": lambda: (sign.unlink(), sign.mkdir()),
    }  # fmt: skip


@pytest.mark.parametrize("name", changes(Path()))
def test_whatever_is_changed_after_signing_is_refused_everywhere(
    made: dict[str, Path], first: Path, tmp_path: Path, name: str
) -> None:
    settings = trusting(made, "old", output=tmp_path / "out")
    shelf = Shelf(settings.output)
    settings.output.mkdir()
    signing.sign(first, made["old"])
    installed = shelf.install(first).folder
    assert in_force(settings).origin == "current"
    changes(installed)[name]()
    found = in_force(settings)
    assert found.origin == "shipped" and len(found.faults) == 1
    with pytest.raises(BundleError):
        in_force(replace(settings, bundle=installed))
    with pytest.raises(BundleError):
        signing.check_signature(load_bundle(installed), settings.bundles)
    with pytest.raises(BundleError):
        open_quietly(settings.bundles, installed)


def test_every_way_to_a_model_asks_for_the_signature(made: dict[str, Path], first: Path, tmp_path: Path) -> None:
    """Installed while unsigned ones were allowed, they are refused once keys are trusted."""
    settings = trusting(made, "old", output=tmp_path / "out")
    settings.output.mkdir()
    shelf = Shelf(settings.output)
    shelf.install(first)
    shelf.install(made["second"])
    shelf.install_shadow(first, 1)
    with pytest.raises(BundleError, match="is not signed"):
        daemon.open_ensemble(settings, shelf.bundle("shadow"))
    found, ensemble = daemon.open_working(settings)
    assert found.origin == "shipped" and len(found.faults) == 2 and ensemble.bundle.folder == SHIPPED
    assert daemon.open_ensemble(settings).bundle.folder == SHIPPED
    config = tmp_path / "station.yaml"
    config.write_text(f"bundles: {{trusted_keys: [{made['old.pub']}]}}\noutput: out\n")
    for words in (("rollback",), ("shadow", "promote"), ("install", first), ("install", first, "--shadow")):
        done = command("bundle", *words, "--config", config)
        assert done.exit_code == 2 and "is not signed" in done.output, (words, done.output)
    assert "in force   first-light" in command("bundle", "list", "--config", config).output
    assert "is not signed" in command("config", "check", config).output


def test_an_archive_brings_its_signature(made: dict[str, Path], first: Path, tmp_path: Path) -> None:
    settings = trusting(made, "old", output=tmp_path / "out")
    settings.output.mkdir()
    signing.sign(first, made["old"])
    with tarfile.open(tmp_path / "first.tar.gz", "w:gz", compresslevel=1) as tape:
        tape.add(first, "first")
    Shelf(settings.output).install(
        tmp_path / "first.tar.gz", lambda found: signing.check_signature(found, settings.bundles)
    )
    assert in_force(settings).origin == "current"


def test_what_is_installed_already_gets_its_signature(made: dict[str, Path], first: Path, tmp_path: Path) -> None:
    settings = trusting(made, "old", output=tmp_path / "out")
    settings.output.mkdir()
    shelf = Shelf(settings.output)
    place = shelf.install(first).folder
    assert in_force(settings).origin == "shipped"
    signing.sign(first, made["old"])
    assert shelf.install(first).folder == place and in_force(settings).origin == "current"
    shelf.install(made["first"])  # the same without a signature takes none away
    assert in_force(settings).origin == "current"


def test_a_change_of_keys(made: dict[str, Path], first: Path) -> None:
    old, new, both = (trusting(made, *names).bundles for names in (("old",), ("new",), ("old", "new")))
    signing.sign(first, made["old"])
    bundle = load_bundle(first)
    signing.check_signature(bundle, old)
    signing.check_signature(bundle, both)
    with pytest.raises(
        BundleError, match=r"is signed with key [0-9a-f]{16}, and trusted is [0-9a-f]{16} \(.*new.pub\)"
    ):
        signing.check_signature(bundle, new)
    signing.sign(first, made["new"])
    for trusted in (old, new, both):
        signing.check_signature(bundle, trusted)
    before = (first / SIGNATURE).read_bytes()
    signing.sign(first, made["new"])
    assert (first / SIGNATURE).read_bytes() == before


def test_the_signature_of_one_bundle_is_none_of_another(made: dict[str, Path], first: Path, tmp_path: Path) -> None:
    second = Path(shutil.copytree(made["second"], tmp_path / "second"))
    signing.sign(first, made["old"])
    shutil.copy(first / SIGNATURE, second)
    with pytest.raises(BundleError, match="was changed after it was signed, or the signature is another's"):
        signing.check_signature(load_bundle(second), trusting(made, "old").bundles)
    signing.sign(second, made["new"])  # beside it
    with pytest.raises(BundleError, match="does not fit"):
        signing.check_signature(load_bundle(second), trusting(made, "old").bundles)
    signing.check_signature(load_bundle(second), trusting(made, "old", "new").bundles)


def test_the_shipped_bundle_is_trusted_as_the_program_is(made: dict[str, Path], tmp_path: Path) -> None:
    trusted = trusting(made, "old").bundles
    signing.check_signature(load_bundle(SHIPPED), trusted)
    signing.check_signature(load_bundle(Path(shutil.copytree(SHIPPED, tmp_path / "copy"))), trusted)
    resign(tmp_path / "copy", lambda manifest: manifest.update(name="First-Light"))
    with pytest.raises(BundleError):
        signing.check_signature(load_bundle(tmp_path / "copy"), trusted)


def test_a_damaged_shipped_bundle_does_not_stop_a_signed_one(
    made: dict[str, Path], first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signing.sign(first, made["old"])
    unsigned = load_bundle(Path(shutil.copytree(made["second"], tmp_path / "second")))
    trusted = trusting(made, "old").bundles
    for text in ("{", "[]", None):
        monkeypatch.setattr(signing, "SHIPPED", tmp_path / "shipped")
        (tmp_path / "shipped").mkdir(exist_ok=True)
        if text is None:
            (tmp_path / "shipped" / "manifest.json").unlink()
        else:
            (tmp_path / "shipped" / "manifest.json").write_text(text)
        signing.check_signature(load_bundle(first), trusted)
        with pytest.raises(BundleError):
            signing.check_signature(unsigned, trusted)


def test_a_damaged_signature_is_signed_over(made: dict[str, Path], first: Path) -> None:
    (first / SIGNATURE).write_text("nothing of the kind\n")
    with pytest.raises(BundleError, match="is damaged"):
        signing.check_signature(load_bundle(first), trusting(made, "old").bundles)
    signing.sign(first, made["old"])
    signing.check_signature(load_bundle(first), trusting(made, "old").bundles)


def test_not_required_it_is_only_told(made: dict[str, Path], first: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        signing.check_signature(load_bundle(first), trusting(made, "old", require_signature=False).bundles)
        assert "is not signed" in caplog.text and "it is used all the same" in caplog.text
        caplog.clear()
        signing.check_signature(load_bundle(first), BundleSettings())
        signing.sign(first, made["old"])
        signing.check_signature(load_bundle(first), trusting(made, "old", require_signature=False).bundles)
    assert not caplog.text


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PUBLIC KEY-----\n", b"\xff" * 9000, None])
def test_a_key_that_cannot_be_read_takes_no_other_keys_trust(
    made: dict[str, Path], first: Path, tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    bad = tmp_path / "bad.pub"
    if content is not None:
        bad.write_bytes(content)
    signing.sign(first, made["old"])
    signing.check_signature(load_bundle(first), BundleSettings((bad, made["old.pub"])))
    assert "bad.pub" in caplog.text
    with pytest.raises(BundleError, match=r"bad.pub"):
        signing.check_signature(load_bundle(first), BundleSettings((bad,)))


def test_without_cryptography_signed_bundles_are_refused_with_the_cure(
    made: dict[str, Path], first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signing.sign(first, made["old"])
    for name in [name for name in sys.modules if name.startswith("cryptography")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BundleError, match=r"pip install 'orcawatch\[signed\]'"):
        signing.check_signature(load_bundle(first), trusting(made, "old").bundles)
    signing.check_signature(load_bundle(SHIPPED), trusting(made, "old").bundles)
    signing.check_signature(load_bundle(first), BundleSettings())


def test_an_encrypted_key(first: Path, tmp_path: Path) -> None:
    done = command("bundle", "keygen", tmp_path / "mine", "--passphrase", told="deep water\ndeep water\n")
    assert done.exit_code == 0 and b"ENCRYPTED" in (tmp_path / "mine").read_bytes()
    done = command("bundle", "sign", first, "--key", tmp_path / "mine", told="shallow\n")
    assert done.exit_code == 2 and "cannot be read with this passphrase" in done.output
    assert not (first / SIGNATURE).exists() and "shallow" not in done.output
    assert command("bundle", "sign", first, "--key", tmp_path / "mine", told="deep water\n").exit_code == 0
    assert command("bundle", "verify", first, "--key", tmp_path / "mine.pub").exit_code == 0


def test_keys_are_careful_with_files(made: dict[str, Path], first: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists already"):
        signing.make_keys(made["old"])
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="exists already"):
        signing.make_keys(tmp_path / "link")
    with pytest.raises(OrcawatchError, match="cannot be written"):
        signing.make_keys(tmp_path / "absent" / "key")
    shutil.copy(made["old"], tmp_path / "open")
    (tmp_path / "open").chmod(0o640)
    with pytest.raises(InputError, match=r"others can read the private key .*: chmod 600"):
        signing.sign(first, tmp_path / "open")
    (tmp_path / "public").write_bytes(made["old.pub"].read_bytes())
    (tmp_path / "public").chmod(0o600)
    with pytest.raises(InputError, match="is no private key"):
        signing.sign(first, tmp_path / "public")
    with pytest.raises(InputError, match="is no public key"):
        signing.public_key(made["old"])
    if shutil.which("openssl"):
        subprocess.run(["openssl", "genpkey", "-algorithm", "x25519", "-out", tmp_path / "x"], check=True)
        (tmp_path / "x").chmod(0o600)
        with pytest.raises(InputError, match="another kind than Ed25519"):
            signing.sign(first, tmp_path / "x")


def test_required_without_keys_is_a_fault(tmp_path: Path) -> None:
    config = tmp_path / "station.yaml"
    config.write_text("bundles: {require_signature: true}\n")
    with pytest.raises(ConfigError, match=r"bundles.require_signature needs bundles.trusted_keys"):
        load_settings(config)
    config.write_text("bundles: {trusted_keys: key.pub}\n")
    with pytest.raises(ConfigError, match=r"bundles.trusted_keys must be a list of paths, not 'key.pub'"):
        load_settings(config)
    config.write_text("bundles: {trusted_keys: [keys/a.pub, /b.pub]}\n")
    assert load_settings(config).bundles.trusted_keys == (tmp_path / "keys/a.pub", Path("/b.pub"))


def test_checking_costs_next_to_nothing(made: dict[str, Path], first: Path) -> None:
    import time

    signing.sign(first, made["old"])
    bundle, trusted = load_bundle(first), trusting(made, "old").bundles
    times = []
    for _ in range(20):
        began = time.perf_counter()
        signing.check_signature(bundle, trusted)
        times.append(time.perf_counter() - began)
    assert np.median(times) < 0.05
