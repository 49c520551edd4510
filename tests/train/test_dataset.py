"""Readers: what they take, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from orcawatch.errors import AudioError, TrainingError
from orcawatch.training import dataset


def change(tables: SimpleNamespace, folder: Path, file_name: str, **fields: str) -> None:
    """Change a row of the labels."""
    rows = tables.read(folder / "labels.csv")
    for row in rows:
        if row["file_name"] == file_name:
            row.update(fields)
    tables.write(folder / "labels.csv", rows)


def test_labels_give_clips_with_their_recordings(tiny_data: Path, tables: SimpleNamespace) -> None:
    found = dataset.read_labels(tiny_data)
    assert len(found.clips) == 24 and not found.set_aside
    first = found.clips[0]
    assert (first.file_name, first.label, first.split, first.group) == (
        "train_orca_0.flac",
        "orca",
        "train",
        "train-orca-0",
    )
    assert first.seconds == pytest.approx(float(tables.read(tiny_data / "labels.csv")[0]["seconds"]), abs=1e-3)
    assert (first.repository, first.licence, found.recordings) == ("tests/made", "CC0", "given")
    assert dataset.from_json(dataset.to_json(first)) == first


def test_waveforms_are_as_long_as_the_file_and_resampled_as_asked(tiny_data: Path) -> None:
    clip = dataset.read_labels(tiny_data).clips[0]
    waveform, rate_hz = dataset.load_waveform(clip, 0.025)
    assert waveform.dtype == np.float32
    assert len(waveform) == pytest.approx(clip.seconds * rate_hz, abs=1)
    assert len(dataset.resample(waveform, rate_hz, 16000)) == pytest.approx(clip.seconds * 16000, abs=2)
    with pytest.raises(AudioError, match="at least 9 s are needed"):
        dataset.load_waveform(clip, 9.0)
    with pytest.raises(AudioError, match=r"has 22050 samples a second; at least 24000 are needed"):
        dataset.load_waveform(clip, 0.025, 24000)


def test_a_recording_on_both_sides_is_refused_by_name(tiny_data: Path, tables: SimpleNamespace) -> None:
    change(tables, tiny_data, "devel_orca_0.flac", group="train-orca-1")
    with pytest.raises(TrainingError, match="recording train-orca-1 stands in devel and train"):
        dataset.read_labels(tiny_data)


def test_test_rows_are_checked_but_their_files_are_not_looked_at(tiny_data: Path, tables: SimpleNamespace) -> None:
    held_back = {"file_name": "absent.flac", "label": "orca", "split": "test", "group": "held-back"}
    rows = tables.read(tiny_data / "labels.csv")
    tables.write(tiny_data / "labels.csv", [*rows, held_back])
    assert {clip.split for clip in dataset.read_labels(tiny_data).clips} == {"train", "devel"}
    with pytest.raises(TrainingError, match="1 of 25 files are missing"):
        dataset.read_labels(tiny_data, with_test=True)
    tables.write(tiny_data / "labels.csv", [*rows, {**held_back, "group": "train-orca-1"}])
    with pytest.raises(TrainingError, match="recording train-orca-1 stands in test and train"):
        dataset.read_labels(tiny_data)


def test_one_class_only_is_refused(tiny_data: Path, tables: SimpleNamespace) -> None:
    rows = tables.read(tiny_data / "labels.csv")
    tables.write(tiny_data / "labels.csv", [row for row in rows if (row["split"], row["label"]) != ("train", "noise")])
    with pytest.raises(TrainingError, match="split train has no noise clip"):
        dataset.read_labels(tiny_data)


def test_all_faults_of_the_rows_are_told_at_once(tiny_data: Path, tables: SimpleNamespace) -> None:
    change(tables, tiny_data, "train_orca_0.flac", label="dolphin")
    change(tables, tiny_data, "train_orca_1.flac", split="dev")
    change(tables, tiny_data, "train_orca_2.flac", group="")
    (tiny_data / "wav" / "train_orca_3.flac").unlink()
    with pytest.raises(TrainingError) as caught:
        dataset.read_labels(tiny_data)
    for text in ("not 'dolphin'", "not 'dev'", "group is empty", "1 of 24 files are missing", "train_orca_3.flac"):
        assert text in str(caught.value)


def test_missing_labels_and_columns_are_named(tmp_path: Path, tiny_data: Path, tables: SimpleNamespace) -> None:
    with pytest.raises(TrainingError, match=r"there is no .*labels\.csv"):
        dataset.read_labels(tmp_path / "nowhere")
    tables.write(tiny_data / "labels.csv", tables.read(tiny_data / "labels.csv"), ("file_name", "label"))
    with pytest.raises(TrainingError, match="lacks the columns"):
        dataset.read_labels(tiny_data)


def test_an_unreadable_file_is_refused_or_set_aside(tiny_data: Path) -> None:
    (tiny_data / "wav" / "train_noise_1.flac").write_text("this is no audio")
    with pytest.raises(TrainingError, match=r"train_noise_1\.flac cannot be read"):
        dataset.read_labels(tiny_data)
    found = dataset.read_labels(tiny_data, "set_aside")
    assert len(found.clips) == 23
    assert [fault.file_name for fault in found.set_aside] == ["train_noise_1.flac"]


def test_a_truncated_file_and_samples_that_are_not_finite_are_audio_errors(tiny_data: Path) -> None:
    path = tiny_data / "wav" / "train_orca_0.flac"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    clip = dataset.read_labels(tiny_data).clips[0]
    with pytest.raises(AudioError, match=r"train_orca_0\.flac"):
        dataset.load_waveform(clip, 0.025)
    soundfile.write(tiny_data / "wav" / "nan.wav", np.full(8000, np.nan, np.float32), 16000, subtype="FLOAT")
    broken = dataset.Clip(**{**clip.__dict__, "path": tiny_data / "wav" / "nan.wav"})
    with pytest.raises(AudioError, match="not finite"):
        dataset.load_waveform(broken, 0.025)


def test_loading_refuses_or_sets_aside_what_cannot_be_decoded(tiny_data: Path) -> None:
    path = tiny_data / "wav" / "train_orca_0.flac"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    clips = dataset.read_labels(tiny_data).clips
    faults: list[dataset.Fault] = []
    usable = [clip for clip, _, _ in dataset.load_each(clips, 0.025, 8000, faults, iter)]
    assert (len(usable), [fault.file_name for fault in faults]) == (23, ["train_orca_0.flac"])
    with pytest.raises(TrainingError, match=r"train_orca_0\.flac"):
        dataset.check_usable(usable, faults, "refuse")
    dataset.check_usable(usable, faults, "set_aside")
    with pytest.raises(TrainingError, match="split train has no noise clip"):
        dataset.check_usable([c for c in usable if (c.split, c.label) != ("train", "noise")], faults, "set_aside")


def test_the_fingerprint_follows_content_and_labels_but_not_order(tiny_data: Path, tables: SimpleNamespace) -> None:
    clips = dataset.read_labels(tiny_data).clips
    before = dataset.fingerprint(clips)
    assert dataset.fingerprint(clips[::-1]) == before
    change(tables, tiny_data, "train_orca_0.flac", group="train-orca-9")
    relabelled = dataset.fingerprint(dataset.read_labels(tiny_data).clips)
    soundfile.write(tiny_data / "wav" / "train_orca_0.flac", np.zeros(8000), 16000)
    assert len({before, relabelled, dataset.fingerprint(dataset.read_labels(tiny_data).clips)}) == 3


def test_counts_by_split_label_and_source(tiny_data: Path, tables: SimpleNamespace) -> None:
    change(tables, tiny_data, "devel_orca_0.flac", repository="", licence="")
    counted = dataset.counts(dataset.read_labels(tiny_data).clips)
    assert [(row["split"], row["label"], row["clips"], row["groups"]) for row in counted["splits"]] == [
        ("train", "noise", 6, 3),
        ("train", "orca", 6, 3),
        ("devel", "noise", 6, 3),
        ("devel", "orca", 6, 3),
    ]
    assert [tuple(row.values()) for row in counted["sources"]] == [
        ("not stated", "not stated", "devel", 1),
        ("tests/made", "CC0", "devel", 11),
        ("tests/made", "CC0", "train", 12),
    ]


@pytest.fixture()
def compare_folder(tmp_path: Path, tables: SimpleNamespace) -> Path:
    """The ComParE 2019 layout with one four-channel training file."""
    root = tmp_path / "compare" / "ComParE2019_OrcaActivity"
    for name in ("lab", "wav", "wav_4channel"):
        (root / name).mkdir(parents=True)
    rows = [("train", "orca"), ("train", "noise"), ("devel", "orca"), ("devel", "noise"), ("test", "?")]
    table = [{"file_name": f"{split}_{k:05d}.wav", "label": label} for k, (split, label) in enumerate(rows)]
    for row in table:
        soundfile.write(root / "wav" / row["file_name"], np.zeros(4000), 16000)
    four = np.stack([np.full(4000, 0.1 * (k + 1)) for k in range(4)], axis=1)
    soundfile.write(root / "wav_4channel" / "train_00000.wav", four, 16000)
    tables.write(root / "lab" / "labels.csv", table, ("file_name", "label"))
    return tmp_path / "compare"


def test_compare_splits_four_channels_into_four_samples_of_one_recording(compare_folder: Path) -> None:
    found = dataset.read_compare2019(compare_folder)
    clips = found.clips
    assert found.recordings == "one per file"
    four = [clip for clip in clips if clip.file_name == "train_00000.wav"]
    assert [clip.channel for clip in four] == [0, 1, 2, 3]
    assert {clip.group for clip in four} == {"train_00000"}
    levels = [float(np.median(dataset.load_waveform(clip, 0.025)[0])) for clip in four]
    np.testing.assert_allclose(levels, [0.1, 0.2, 0.3, 0.4], atol=1e-3)
    assert [(clip.split, clip.label) for clip in clips[4:]] == [
        ("train", "noise"),
        ("devel", "orca"),
        ("devel", "noise"),
    ]


def test_test_clips_without_labels_are_read_where_asked_for(compare_folder: Path) -> None:
    clips = dataset.read_compare2019(compare_folder, with_test=True).clips
    assert [(clip.split, clip.label) for clip in clips][-1] == ("test", "?")
    assert dataset.counts(clips)["splits"][-1] == {
        "split": "test",
        "label": "?",
        "clips": 1,
        "seconds": 0.2,
        "groups": 1,
    }


def test_compare_evaluation_must_be_mono(compare_folder: Path) -> None:
    path = compare_folder / "ComParE2019_OrcaActivity" / "wav" / "devel_00002.wav"
    soundfile.write(path, np.zeros((4000, 4)), 16000)
    with pytest.raises(TrainingError, match="evaluation takes mono files, this one has 4 channels"):
        dataset.read_compare2019(compare_folder)


def test_compare_takes_the_later_release_and_a_column_of_recordings(
    compare_folder: Path, tables: SimpleNamespace
) -> None:
    lab = compare_folder / "ComParE2019_OrcaActivity" / "lab"
    rows = [{**row, "group": "tape"} for row in tables.read(lab / "labels.csv")]
    (lab / "labels.csv").unlink()
    tables.write(lab / "DeepAL_ComParE.csv", rows, ("file_name", "label", "group"))
    with pytest.raises(TrainingError, match="recording tape stands in devel and test and train"):
        dataset.read_compare2019(compare_folder)
    apart = [{**row, "group": row["file_name"][:5]} for row in rows]
    tables.write(lab / "DeepAL_ComParE.csv", apart, ("file_name", "label", "group"))
    assert dataset.read_compare2019(compare_folder).recordings == "given"
    with pytest.raises(TrainingError, match=r"has no lab/labels\.csv"):
        dataset.read_compare2019(compare_folder / "ComParE2019_OrcaActivity" / "wav")


def beside(tables: SimpleNamespace, folder: Path, other: Path, **fields: str) -> Path:
    """A second folder with one training clip of noise."""
    (other / "wav").mkdir(parents=True)
    name = fields.get("file_name", "squeak.flac")
    soundfile.write(other / "wav" / name, np.full((22050, 2), 0.1), 22050)
    row = {"file_name": name, "label": "noise", "split": "train", "group": "mooring", "site": "Haro", **fields}
    tables.write(other / "labels.csv", [row], (*dataset.COLUMNS, "site"))
    return other


def test_several_folders_are_one_data_set(tiny_data: Path, tmp_path: Path, tables: SimpleNamespace) -> None:
    other = beside(tables, tiny_data, tmp_path / "reviewed")
    alone = dataset.read_labels(tiny_data)
    found = dataset.read_all("labels", [tiny_data, other])
    assert found.clips[:-2] == alone.clips
    assert [(clip.group, clip.channel, clip.site) for clip in found.clips[-2:]] == [
        ("mooring", 0, "Haro"),
        ("mooring", 1, "Haro"),
    ]
    assert dataset.fingerprint(found.clips) != dataset.fingerprint(alone.clips)
    with pytest.raises(TrainingError, match="split train has no orca clip"):
        dataset.read_labels(other)
    assert len(dataset.read_all("labels", [other], one_class=True).clips) == 2


def test_a_recording_on_both_sides_of_a_split_is_found_across_folders(
    tiny_data: Path, tmp_path: Path, tables: SimpleNamespace
) -> None:
    other = beside(tables, tiny_data, tmp_path / "reviewed", group="devel-orca-0")
    with pytest.raises(TrainingError, match=r"devel-orca-0 stands in devel \(.*data.*\) and train \(.*reviewed"):
        dataset.read_all("labels", [tiny_data, other])


def test_two_folders_with_a_file_of_one_name_are_refused(
    tiny_data: Path, tmp_path: Path, tables: SimpleNamespace
) -> None:
    other = beside(tables, tiny_data, tmp_path / "reviewed", file_name="train_orca_0.flac")
    with pytest.raises(TrainingError, match=r"train_orca_0\.flac is in .*data.* and .*reviewed"):
        dataset.read_all("labels", [tiny_data, other])


def test_reviewed_detections_go_beside_the_compare_layout(
    compare_folder: Path, tmp_path: Path, tables: SimpleNamespace
) -> None:
    other = beside(tables, compare_folder, tmp_path / "reviewed")
    found = dataset.read_all("compare2019", [compare_folder, other])
    assert found.recordings == "one per file"
    assert found.clips[-1].file_name == "squeak.flac"
