from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from orcawatch.bundle import load_bundle, manifest_digest
from orcawatch.cascade import Cascade, Gate
from orcawatch.compare import Clip, window_scores
from orcawatch.config import Settings, overridden
from orcawatch.deploy import build as building
from orcawatch.deploy import cascade as cascades
from orcawatch.deploy.build import build_bundle, plan_bundle, verify_bundle
from orcawatch.deploy.cascade import Clips, Scored, choose, with_mixtures
from orcawatch.deploy.cli import deploy
from orcawatch.deploy.faint import SNRS_DB, Mixture, draw, gain, mix
from orcawatch.deploy.run import Run, read_run
from orcawatch.ensemble import Ensemble
from orcawatch.errors import BundleError, InputError
from orcawatch.records import Window
from orcawatch.spectrogram import FrontEnd, prominence

VOTE = ("small_mel_neg", "small_power", "fusion_neg")
STOP = 0.5
CLIPS, WINDOWS = 200, 800


def scored(seed: int = 0, noise: float = 0.05, prominent: float = 9.0) -> Scored:
    """Devel windows where the cheap backbone's second member tells of the vote, and its first one nothing."""
    generator = np.random.default_rng(seed)
    orca = np.repeat(np.arange(CLIPS) % 4 == 0, WINDOWS // CLIPS)
    vote = np.clip(np.where(orca, 0.8, 0.1) + generator.normal(0, 0.1, WINDOWS), 0, 1)
    cheap = np.clip(vote + generator.normal(0, noise, WINDOWS), 0, 1)
    table = np.stack([generator.random(WINDOWS), cheap, vote, vote], axis=1)
    return Scored(
        ("blind", "cheap", "middle", "heavy"),
        table,
        vote,
        {"blind": ["a"], "cheap": ["a"], "middle": ["a", "b"], "heavy": ["a", "b", "c"]},
        ["b", "c"],
        {name: np.clip(vote + generator.normal(0, prominent, WINDOWS), 0, 1) for name in "abc"},
        {"c": 14.0, "a": 4.0, "b": 7.0},
        orca,
        np.repeat(np.arange(CLIPS) // 4, WINDOWS // CLIPS).astype(str),
        np.full(WINDOWS, np.nan),
        STOP,
    )


def clips() -> Clips:
    recordings = [str(k // 4) for k in range(CLIPS)]
    return Clips(np.arange(WINDOWS) // 4, np.arange(CLIPS) % 4 == 0, recordings, np.full(CLIPS, np.nan))


def with_faint(windows: Scored) -> tuple[Scored, Clips]:
    """The orca clips' windows again, fainter: less stands out, and a vote that goes by something else stays."""
    whole, again = clips(), np.flatnonzero(windows.orca)
    calls = np.flatnonzero(whole.orca).tolist()
    mixtures = [Mixture(call, 1, 0.0, 0.0, snr_db) for snr_db in (-3.0, 3.0) for call in calls]
    of_window = np.append(whole.of_window, CLIPS + np.repeat(np.arange(len(mixtures)), 4))
    joined = with_mixtures(whole.orca, whole.recordings, mixtures, of_window)

    def also(recorded: Any, share: float) -> Any:
        return np.concatenate([recorded, share * recorded[again], (share + 1) / 2 * recorded[again]])

    fainter = replace(
        windows,
        scores=also(windows.scores, 0.9),
        vote=also(windows.vote, 0.9),
        prominences={name: also(found, 0.3) for name, found in windows.prominences.items()},
        orca=joined.orca[of_window],
        recordings=np.array(joined.recordings)[of_window],
        snr_db=joined.snr_db[of_window],
    )
    return fainter, joined


def test_the_cheapest_backbone_gates_with_the_member_that_tells() -> None:
    found = choose(scored(), 0.01)
    first = found.gates[0]
    assert (first.backbones, first.members, found.holds_from) == (("a",), ("cheap",), STOP)
    assert first.slope == pytest.approx(1, abs=0.3)
    assert [gate.backbones for gate in found.gates] in ([("a",)], [("a",), ("a", "b")])


def test_where_nothing_stands_out_no_backbone_is_heard() -> None:
    windows = scored(prominent=0.1)
    first = choose(windows, 0.01).gates[0]
    assert (first.backbones, first.members) == ((), ()) and first.prominence_of in ("a", "b")
    assert cascades.cost(windows, Cascade((first,), STOP), ~windows.orca) < 10
    alone = replace(
        windows, milliseconds={"a": 4.0}, needed=["a"], backbones_of={name: ["a"] for name in windows.members}
    )
    assert [gate.prominence_of for gate in choose(alone, 0.01).gates] == ["a"]


@pytest.mark.parametrize("most_lost", [0.0, 0.01, 0.1])
def test_the_bound_holds_and_is_used(most_lost: float) -> None:
    windows = scored(noise=0.2)
    found = choose(windows, most_lost)
    called = windows.vote >= STOP
    lost = called & (cascades.pass_gates(windows, found.gates) < len(found.gates))
    assert cascades.upper_share(lost, called, windows.recordings) <= most_lost
    assert bool(lost.any()) == (most_lost == 0.1)  # the bound counts the interval, so that little is lost under 1 %


def test_the_upper_end_of_the_share_lost_is_that_of_resampled_recordings() -> None:
    windows = scored()
    called = windows.vote >= STOP
    lost = called & (windows.recordings == "4")
    names = sorted(set(windows.recordings[called].tolist()))
    shares, generator = [], np.random.default_rng(3)
    for _ in range(2000):
        drawn = generator.choice(names, len(names))
        counts = [
            (np.sum(lost & (windows.recordings == one)), np.sum(called & (windows.recordings == one))) for one in drawn
        ]
        shares.append(sum(one for one, _ in counts) / sum(of for _, of in counts))
    assert cascades.upper_share(lost, called, windows.recordings) == pytest.approx(
        np.percentile(shares, 97.5), abs=0.01
    )


@pytest.mark.parametrize("prominent", [0.2, 9.0])
def test_scores_and_cost_are_those_of_a_plain_loop(prominent: float) -> None:
    windows = scored(noise=0.2, prominent=prominent)
    found = choose(windows, 0.05)
    assert found.gates
    whole = 25.0 if any("a" in gate.backbones for gate in found.gates) else 21.0
    expected, milliseconds = [], []
    for k in range(WINDOWS):
        score, spent = windows.vote[k], whole
        for gate in found.gates:
            named = [windows.scores[k, windows.members.index(name)] for name in gate.members]
            average = np.mean(named) if named else windows.prominences[gate.prominence_of][k]
            if average < gate.threshold:
                score = min(
                    max(gate.intercept + gate.slope * average, 0), np.nextafter(np.float32(STOP), np.float32(0))
                )
                spent = {0: 0.0, 1: 4.0, 2: 11.0}[len(gate.backbones)]
                break
        expected.append(score)
        milliseconds.append(spent)
    np.testing.assert_allclose(cascades.channel_scores(windows, found), expected, rtol=1e-9)
    noise = ~windows.orca
    assert cascades.cost(windows, found, noise) == pytest.approx(np.array(milliseconds)[noise].mean())
    assert cascades.cost(windows, found, noise) < cascades.cost(windows, Cascade(), noise) == 21


def test_members_that_tell_nothing_make_no_cascade() -> None:
    windows = scored()
    blind = replace(
        windows, scores=np.random.default_rng(1).random((WINDOWS, 4)), milliseconds={"a": 1.0, "b": 1.0, "c": 1.0}
    )
    found = choose(blind, 0.0)
    assert all(gate.threshold < 0.2 for gate in found.gates)
    silent = replace(windows, vote=np.zeros(WINDOWS))
    assert choose(silent, 0.01).gates == ()  # nothing is called: there is nothing to hold a bound against


def test_the_spectrogram_looked_at_is_of_a_backbone_that_is_heard() -> None:
    """The cheapest backbone is neither in the vote nor worth a gate, so that it will not be in the bundle."""
    windows = scored(prominent=0.1)
    blind = replace(windows, scores=np.random.default_rng(1).random((WINDOWS, 4)), needed=["c"])
    found = choose(blind, 0.0)
    assert [gate.prominence_of for gate in found.gates][:1] == ["c"]
    nobody = replace(windows, backbones_of=dict.fromkeys(windows.members, ("a", "b", "c")), needed=["a", "b", "c"])
    assert [gate.prominence_of for gate in choose(nobody, 0.01).gates] == ["a"]


def test_evidence_tells_what_is_lost() -> None:
    windows = scored(noise=0.2)
    found = choose(windows, 0.05)
    cascaded = cascades.channel_scores(windows, found)
    shown = cascades.evidence(windows, found, cascaded, clips(), 0.6, 0.05, draws=200, seed=1)
    called = windows.vote >= STOP
    assert shown["called"] == called.sum()
    assert shown["lost"] == (called & (cascaded < STOP)).sum() and shown["lost_upper"] <= 0.05
    assert shown["auc_full"] - shown["auc"] == pytest.approx(shown["auc_loss"]["value"])
    assert shown["recall"]["cascade"] <= shown["recall"]["full"] <= CLIPS // 4
    assert shown["left_out"]["lost"] >= 0 and shown["passed"]["noise"][0] < shown["passed"]["orca"][0]
    assert "faint" not in shown
    few = replace(clips(), recordings=["one"] * CLIPS)
    alone = replace(windows, recordings=np.full(WINDOWS, "one"))
    assert cascades.evidence(alone, found, cascaded, few, 0.6, 0.05, draws=20, seed=1)["left_out"] is None


def test_a_gate_chosen_without_fainter_calls_loses_them_and_one_chosen_with_them_does_not() -> None:
    windows = scored(prominent=0.05)
    fainter, joined = with_faint(windows)
    blind, found = (choose(one, 0.01, members=False) for one in (windows, fainter))

    def shown(cascade: Cascade) -> dict[str, Any]:
        cascaded = cascades.channel_scores(fainter, cascade)
        return cascades.evidence(fainter, cascade, cascaded, joined, 0.6, 0.01, draws=20, seed=1)

    before, after = shown(blind), shown(found)
    assert before["lost_upper"] <= 0.01 and after["lost_upper"] <= 0.01
    assert before["faint"]["lost"] > 0.2 * before["faint"]["called"]
    assert after["faint"]["lost_upper"] <= 0.01 and after["passed"]["noise"][0] < 1
    assert before["faint"]["recall"]["cascade"] < 0.9 * before["faint"]["recall"]["full"]
    assert after["faint"]["recall"]["cascade"] >= 0.99 * after["faint"]["recall"]["full"]
    by_snr = before["faint"]["by_snr"]
    assert [one["snr_db"] for one in by_snr] == [-3, 3] and by_snr[0]["lost"] > by_snr[1]["lost"]
    assert sum(one["called"] for one in by_snr) == before["faint"]["called"]
    assert {key: before[key] for key in ("called", "lost", "auc_full")} == {
        key: of[key]
        for of in [
            cascades.evidence(windows, blind, cascades.channel_scores(windows, blind), clips(), 0.6, 0.01, 20, 1)
        ]
        for key in ("called", "lost", "auc_full")
    }  # what is told of the clips as recorded is what it was


def test_what_many_loud_windows_do_not_lose_does_not_pay_for_the_faint() -> None:
    """One recording in twenty is fainter and nothing else: pooled, its loss would be within the bound."""
    fainter, _ = with_faint(scored(prominent=0.05))
    rare = fainter.part(~fainter.faint | (np.arange(len(fainter.vote)) % 20 == 0))
    lost = rare.called & (cascades.pass_gates(rare, choose(rare, 0.1, members=False).gates) < 1)
    assert lost[rare.faint].sum() <= 0.1 * rare.called[rare.faint].sum() < rare.called[rare.faint].sum()
    pooled = choose(replace(rare, snr_db=np.full(len(rare.vote), np.nan)), 0.1, members=False)
    paid = rare.called & (cascades.pass_gates(rare, pooled.gates) < 1)
    assert paid[rare.faint].sum() > 0.1 * rare.called[rare.faint].sum()


def halves(scored: Scored, most_lost: float, members: bool = True) -> Cascade:
    """Two gates, each of which stops half of what comes: the tiny networks know nothing, so that few would be chosen."""
    drafts = [
        Gate((), (), "", "small_mel", 0, 0.1, 0.2),
        Gate(("small_mel",), ("small_mel", "small_mel_neg"), "gate_2", "", 0, 0.0, 1.5),
    ]
    gates: list[Gate] = []
    for gate in drafts:
        passing = cascades.pass_gates(scored, gates) == len(gates)
        gates.append(replace(gate, threshold=float(np.median(cascades.sign(scored, gate)[passing]))))
    return Cascade(tuple(gates), scored.stop)


@pytest.fixture(scope="module")
def cascaded(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny run with these two gates."""
    folder = tmp_path_factory.mktemp("cascade") / "bundle"
    plan = plan_bundle(run, dict.fromkeys(run.backbones, "float32"), VOTE, most_lost=0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascades, "choose", halves)
        build_bundle(run, folder, plan)
    return folder


def test_a_bundle_holds_its_cascade_with_its_evidence(run: Run, cascaded: Path) -> None:
    bundle = load_bundle(cascaded)
    assert bundle.cascade.holds_from == bundle.stop_threshold
    assert [(gate.backbones, gate.prominence_of) for gate in bundle.cascade.gates] == [
        ((), "small_mel"),
        (("small_mel",), ""),
    ]
    assert set(bundle.members) == {*VOTE, "small_mel", "small_mel_neg"}
    shown = bundle.manifest["cascade"]["evidence"]
    assert shown["most_lost"] == 0.01 and 0 < shown["lost"] <= shown["called"]
    assert shown["milliseconds"]["cascade"] < shown["milliseconds"]["full"]
    assert f"ROC AUC {shown['auc']:.4f}" in (cascaded / "model-card.md").read_text()
    verified = verify_bundle(run, cascaded)
    assert verified.auc["cascade"].value == pytest.approx(shown["auc"])


RATES_HZ = (16000, 24000)


@pytest.fixture(scope="module")
def audible(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny run with what its data stage decoded: a train clip, then the devel clips, tones in noise."""
    root = tmp_path_factory.mktemp("audible")
    shutil.copytree(run.folder, root / "result")
    data = root / "artifacts" / f"data-{'d' * 16}"
    data.mkdir(parents=True)
    (root / "result" / "stage.json").write_text(json.dumps({"inputs": {"data": "d" * 64}}))
    (data / "clips.json").write_text(json.dumps({"clips": [{"split": "train"}, *[{"split": "devel"}] * 24]}))
    for rate_hz in RATES_HZ:
        waves = [wave(k, rate_hz) for k in range(-1, 24)]
        np.save(data / f"waveforms-{rate_hz}.npy", np.concatenate(waves))
        np.save(data / f"ends-{rate_hz}.npy", np.cumsum([len(one) for one in waves]))
    return read_run(root)


def wave(clip: int, rate_hz: int) -> np.ndarray:
    """The same sound at any rate."""
    time_s = np.arange(round((1.5 + 0.1 * (clip % 3)) * rate_hz)) / rate_hz
    tones = np.random.default_rng(clip + 1).uniform([300, 0, 0], [7000, 6, 0.1], (40, 3))
    return np.sum([level * np.sin(2 * np.pi * hz * time_s + at) for hz, at, level in tones], axis=0).astype(np.float32)


def test_a_run_with_audio_is_heard_again_fainter(audible: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Scored] = []
    drawn: list[Mixture] = []
    monkeypatch.setattr(cascades, "choose", lambda scored, *rest: (seen.append(scored), halves(scored, 0))[1])
    monkeypatch.setattr(
        building,
        "draw",
        lambda orca, called, *rest: (drawn.extend(found := draw(orca, ~orca & False, *rest)), found)[1],
    )
    plan = plan_bundle(audible, dict.fromkeys(audible.backbones, "float32"), VOTE, most_lost=0.01)
    build_bundle(audible, tmp_path / "b", plan)
    bundle = load_bundle(tmp_path / "b")
    mixtures, scored = drawn[: len(drawn) // 2], seen[0]
    assert drawn == 2 * mixtures and len(mixtures) > 20
    assert scored.faint[-1] and scored.faint.sum() + 48 == len(scored.vote)
    ensemble = Ensemble(bundle)
    ensemble.cascade = Cascade()
    votes: list[float] = []
    for one in mixtures[:12]:
        call, noise = wave(one.call, 24000), wave(one.noise, 24000)
        path = tmp_path / "mixture.wav"
        soundfile.write(path, mix(call, noise, one, gain(call, noise, 24000, one)), 24000, subtype="FLOAT")
        votes += window_scores(Clip(path, "orca", "", "", 0.0), ensemble)
    heard = scored.vote[scored.faint][: len(votes)]
    np.testing.assert_allclose(heard, votes, atol=0.02)  # as the edge hears it, resampled there
    shown = bundle.manifest["cascade"]["evidence"]["faint"]
    assert [one["snr_db"] for one in shown["by_snr"]] == list(SNRS_DB)
    assert f"found {shown['recall']['cascade']} of" in (tmp_path / "b" / "model-card.md").read_text()


def windows_of(folder: Path) -> list[Window]:
    """Noise from flat to peaked, and the lower bands alone: what the tiny networks say of it differs widely."""
    bundle, generator = load_bundle(folder), np.random.default_rng(5)

    def rows(front_end: FrontEnd, power: float, share: float) -> np.ndarray:
        found = generator.random((4, front_end.frames, front_end.shape[1]), np.float32) ** power
        found[:, :, int(share * found.shape[2]) :] *= 1e-6
        return found.astype(np.float32)

    kinds = [(power, share) for power in (0.1, 1, 5, 30) for share in (0.1, 0.3, 0.6, 0.9, 1)]
    return [
        Window(0, 1, {name: rows(one.front_end, *kind) for name, one in bundle.backbones.items()}) for kind in kinds
    ]


def test_the_edge_follows_the_cascade_as_it_is_defined(cascaded: Path) -> None:
    """Where a channel passes, its score is the full vote; where not, the line, and no other backbone is run."""
    bundle = load_bundle(cascaded)
    still, heard = bundle.cascade.gates
    whole, ensemble = Ensemble(bundle), Ensemble(bundle)
    whole.cascade = Cascade()
    runs: Counter[str] = Counter()
    for name, backbone in ensemble._backbones.items():
        backbone.features = counted(backbone.features, name, runs)  # type: ignore[method-assign]
    ends: Counter[str] = Counter()
    for window in windows_of(cascaded):
        full, found = whole.score(window), ensemble.score(window)
        for channel in range(4):
            finished = bundle.backbones["small_mel"].front_end.finish(window.rows["small_mel"][channel])
            average = full.member_scores[channel, [bundle.members.index(name) for name in heard.members]].mean()
            score = found.channel_scores[channel]
            if prominence(finished) < still.threshold:
                ends["still"] += 1
                assert score == pytest.approx(still.score(prominence(finished), bundle.stop_threshold))
                assert np.isnan(found.member_scores[channel]).all()
            elif average < heard.threshold:
                ends["heard"] += 1
                assert score == pytest.approx(heard.score(average, bundle.stop_threshold), abs=1e-5)
                known = [name in heard.members for name in bundle.members]
                assert (np.isnan(found.member_scores[channel]) == np.logical_not(known)).all()
            else:
                ends["voted"] += 1
                np.testing.assert_allclose(found.member_scores[channel], full.member_scores[channel], atol=1e-6)
                assert score == pytest.approx(full.channel_scores[channel], abs=1e-6)
        assert found.score == np.nanmax(found.channel_scores)
    assert min(ends.values()) > 0 and len(ends) == 3 and sum(ends.values()) == 80
    assert runs == {"small_mel": ends["heard"] + ends["voted"], "small_power": ends["voted"]}


@pytest.mark.parametrize(("alone", "gates"), [("small_mel", 1), ("small_power", 2)])
def test_with_one_backbone_left_the_gates_stay_that_do_not_hear_it(cascaded: Path, alone: str, gates: int) -> None:
    """As at the overload ladder's step `members`: what stops a channel there stops it with the whole vote, too."""
    bundle = load_bundle(cascaded)
    left, fewer, plain = Ensemble(bundle), Ensemble(bundle), Ensemble(bundle)
    fewer.cascade, plain.cascade = replace(bundle.cascade, gates=bundle.cascade.gates[:gates]), Cascade()
    stopped = 0
    for window in windows_of(cascaded):
        found, same, full = (one.score(window, vote=[alone]).channel_scores for one in (left, fewer, plain))
        np.testing.assert_array_equal(found, same)
        stopped += np.count_nonzero(found != full)
    assert stopped > 0


def counted(features: Callable[[Any], Any], name: str, runs: Counter[str]) -> Callable[[Any], Any]:
    """The same function, which counts its calls."""

    def call(patch: Any) -> Any:
        runs[name] += 1
        return features(patch)

    return call


def test_thresholds_below_those_of_the_cascade_take_it_away(cascaded: Path) -> None:
    bundle = load_bundle(cascaded)
    assert overridden(bundle, Settings()).cascade == bundle.cascade
    assert overridden(bundle, Settings(cascade=False)).cascade.gates == ()
    lower = bundle.stop_threshold * 0.9
    assert overridden(bundle, Settings(stop_threshold=lower)).cascade.gates == ()
    assert overridden(bundle, Settings(start_threshold=1.0)).cascade == bundle.cascade


def test_inspect_and_the_maker_show_it(run: Run, cascaded: Path, tmp_path: Path) -> None:
    arguments = ["bundle", str(run.root), str(tmp_path / "b"), "--quantization", "float32", "--most-lost", "0.9"]
    done = CliRunner().invoke(deploy, arguments, catch_exceptions=False)
    assert "cascade: backbones take" in done.output
    none = CliRunner().invoke(deploy, [*arguments[:2], str(tmp_path / "c"), "--no-cascade"], catch_exceptions=False)
    assert "cascade: none: every backbone is heard on every window" in none.output
    assert "cascade" not in load_bundle(tmp_path / "c").manifest


def test_a_gate_may_be_a_backbone_outside_the_vote(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variants, alone = dict.fromkeys(run.backbones, "float32"), ("small_power",)
    monkeypatch.setattr(cascades, "choose", halves)
    build_bundle(run, tmp_path / "b", plan_bundle(run, variants, alone, most_lost=0.1, gates=["small_mel"]))
    bundle = load_bundle(tmp_path / "b")
    assert bundle.vote == alone and list(bundle.backbones) == ["small_mel", "small_power"]
    monkeypatch.setattr(cascades, "choose", lambda *given: Cascade())
    build_bundle(run, tmp_path / "c", plan_bundle(run, variants, alone, most_lost=0.1, gates=["small_mel"]))
    assert list(load_bundle(tmp_path / "c").backbones) == ["small_power"]  # a gate that spares nothing is left out
    with pytest.raises(InputError, match=r"gates are backbones of the run, .*; not \['other'\]"):
        plan_bundle(run, variants, alone, most_lost=0.1, gates=["other"])
    with pytest.raises(InputError, match="without one"):
        plan_bundle(run, variants, alone, gates=["small_mel"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"backbones": ["small_mel", "small_power"]}, "must hear more"),
        ({"backbones": []}, "must hear more"),
        ({"members": []}, "a gate must name members"),
        ({"members": ["none_such"]}, "a gate must name members"),
        ({"members": ["fusion_neg"]}, "need other backbones"),
        ({"slope": -1.0}, "must be finite"),
        ({"threshold": None}, "lacks or garbles"),
        ({"signature": "nothing"}, "has no signature"),
    ],
)
def test_a_cascade_that_does_not_fit_is_refused(
    cascaded: Path, tmp_path: Path, change: dict[str, object], told: str
) -> None:
    import shutil

    shutil.copytree(cascaded, tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["cascade"]["gates"][1] |= change
    path.write_text(json.dumps({**manifest, "digest": manifest_digest(manifest)}))
    with pytest.raises(BundleError, match=told):
        Ensemble(load_bundle(tmp_path / "b"))
