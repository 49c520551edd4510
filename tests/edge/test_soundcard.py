"""Live capture with the real PortAudio, on null sinks of a PulseAudio of its own: no sound card is needed."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from hydrophones import sea_in, wait_for

from orcawatch import clock, live
from orcawatch.capture import Through
from orcawatch.clock import Clocks
from orcawatch.config import ClipSettings, Settings, SourceSettings
from orcawatch.daemon import open_ensemble, run
from orcawatch.devices import command as devices_command
from orcawatch.devices import find_devices
from orcawatch.errors import OrcawatchError
from orcawatch.listener import Totals
from orcawatch.live import LiveSource
from orcawatch.records import AudioBlock, Item, Missing
from orcawatch.scan import find_recordings, scan
from orcawatch.simulate import SceneSettings, simulate_scene
from orcawatch.soundcard import (
    AUDIO,
    FAULT,
    HEADER,
    OPENED,
    OVERFLOW,
    Buffer,
    CaptureError,
    Device,
    Header,
    chosen,
    plain,
)
from orcawatch.store import Detection
from orcawatch.workers import Here

pytestmark = pytest.mark.parts

CARDS = [
    Device(0, "HDA Intel PCH: ALC295 Analog (hw:0,0)", "ALSA", 2, 44100),
    Device(3, "USB Audio: - (hw:1,0)", "ALSA", 4, 48000),
    Device(4, "USB Audio Pro: - (hw:2,0)", "ALSA", 8, 96000),
    Device(6, "default", "ALSA", 32, 44100),
    Device(8, "USB Audio", "JACK Audio Connection Kit", 4, 48000),
]


@pytest.mark.parametrize(
    ("name", "hostapi", "index"),
    [
        (None, None, 6),
        (None, "JACK Audio Connection Kit", 8),
        ("USB Audio", "alsa", 3),
        ("USB Audio: - (hw:7,0)", "ALSA", 3),  # it had another number when the configuration was written
        ("usb audio pro", None, 4),
        ("alc295", None, 0),
        ("Pro", None, 4),
    ],
)
def test_device_is_chosen_by_its_stable_name(name: str | None, hostapi: str | None, index: int) -> None:
    assert chosen(CARDS, 6, name, hostapi).index == index


@pytest.mark.parametrize(
    ("name", "hostapi", "text"),
    [
        ("USB Adio Pro", None, r"no device is called 'USB Adio Pro'; did you mean 'USB Audio Pro: - \(hw:2,0\)'\?"),
        ("HDA Intl", None, r"did you mean 'HDA Intel PCH: ALC295 Analog \(hw:0,0\)'\?"),
        ("hydrophones", None, "no device is called 'hydrophones'; there is 'HDA Intel PCH"),
        ("audio", "ALSA", "'audio' stands for 2 devices: 'USB Audio: .* give more of the name"),
        ("USB Audio", None, "stands for 2 devices: .*JACK.*source.hostapi.*/etc/asound.conf"),
        ("default", "OSS", "no input is offered by hostapi 'OSS'; there is ALSA, JACK"),
    ],
)
def test_name_that_fits_none_or_several_is_refused_with_the_cure(name: str, hostapi: str | None, text: str) -> None:
    with pytest.raises(CaptureError, match=text):
        chosen(CARDS, 6, name, hostapi)


def test_no_card_at_all_is_said() -> None:
    with pytest.raises(CaptureError, match="no sound card with an input is there: plug it in"):
        chosen([], -1, None, None)


def test_name_without_its_numbers() -> None:
    assert plain("USB Audio: - (hw:1,0)") == plain("USB Audio (plughw:3,1)") == "USB Audio"
    assert plain("hydrophones") == "hydrophones"


def test_callback_copies_and_counts_and_never_waits() -> None:
    """Room for 25 rows: the third block of ten is dropped, and its overflow is told with the next that fits."""
    buffer = Buffer(25, lambda clock: 7)
    fine, over = SimpleNamespace(input_overflow=False), SimpleNamespace(input_overflow=True)
    for status in (fine, fine, over):
        buffer.callback(b"ab" * 10, 10, None, status)
    first, second = buffer.queue.get(), buffer.queue.get()
    assert first is not None and second is not None and buffer.queue.empty()
    buffer.taken(20)
    buffer.callback(b"cd" * 10, 10, None, fine)
    third = buffer.queue.get()
    assert third is not None and third[1] == b"cd" * 10
    assert [(frame[0].first, frame[0].rows, frame[0].flags) for frame in (first, second, third)] == [
        (0, 10, 0),
        (10, 10, 0),
        (30, 10, OVERFLOW),
    ]


# From here on with the real parts.


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The server that all tests of this module share."""
    with sea_in(tmp_path_factory.mktemp("sea")) as sea:
        yield sea


@pytest.fixture
def sea(server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The server, with no sink when the test begins and ends; a card's beginning is measured within 0.5 s."""
    monkeypatch.setattr(live, "HOLD_S", 0.5)
    yield server
    server.clear()


CHOICE = replace(
    SourceSettings(),
    device="hydrophones",
    device_channels=4,
    rate_hz=44100,
    retry_least_s=0.1,
    retry_most_s=0.3,
    stalled_s=1.5,
)
SCALES = {"int16": 2.0**15, "int24": 2.0**23, "int32": 2.0**31, "float32": 2.0**24}
TYPES = {"int16": "<i2", "int32": "<i4", "float32": "<f4"}


def counter(rows: int, channels: int, sample_format: str) -> tuple[bytes, Any]:
    """Samples that count, and are never 0, as bytes and as float32."""
    numbers = 1 + np.arange(rows * channels) % 32000
    exact = np.asarray(numbers / SCALES[sample_format], np.float32).reshape(rows, channels)
    if sample_format == "float32":
        return exact.tobytes(), exact
    if sample_format == "int24":
        return numbers.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes(), exact
    return numbers.astype(TYPES[sample_format]).tobytes(), exact


class Ear:
    """Listens to a source in a thread, keeps what it yields, and counts the samples that are not 0."""

    def __init__(self, source: LiveSource) -> None:
        self.items: list[Item] = []
        self.sounds = 0
        self.stop = threading.Event()
        self._source = source
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self) -> Ear:
        self._source.open(self.stop)
        self._thread.start()
        return self

    def __exit__(self, *about: object) -> None:
        self.stop.set()
        self._thread.join()
        self._source.close()

    @property
    def blocks(self) -> list[AudioBlock]:
        return [item for item in self.items if isinstance(item, AudioBlock)]

    def heard(self) -> Any:
        """All audio so far, shape (rows, channels)."""
        return np.concatenate([block.samples for block in self.blocks])

    def wait_for_audio(self) -> None:
        """Wait until audio comes, from now on."""
        before = len(self.blocks)
        wait_for(lambda: len(self.blocks) > before, "audio comes")

    def wait_for_missing(self, text: str) -> None:
        """Wait until something is missing for that reason, from now on."""
        before = len(self.items)
        wait_for(
            lambda: any(isinstance(item, Missing) and text in item.cause for item in self.items[before:]),
            f"something is missing because {text}",
        )

    def check_whole(self) -> None:
        """Every position is there once."""
        position = 0
        for item in self.items:
            if isinstance(item, (AudioBlock, Missing)):
                assert item.start_sample == position
                position = item.end_sample

    def _listen(self) -> None:
        for item in self._source.blocks():
            self.items.append(item)
            self.sounds += np.count_nonzero(item.samples) if isinstance(item, AudioBlock) else 0


def test_samples_are_those_that_were_played_to_the_bit(sea: Any) -> None:
    """Any number of channels, rate and format; all five at once."""
    cases = [
        ("bow", 1, 96000, "float32"),
        ("stern", 2, 22050, "int32"),
        ("hydrophones", 4, 44100, "float32"),
        ("port", 4, 48000, "int16"),
        ("starboard", 6, 32000, "int24"),
    ]
    for case in cases:
        sea.plug_in(*case)
    with ThreadPoolExecutor(len(cases)) as pool:
        list(pool.map(lambda case: check_case(sea, *case), cases))


def check_case(sea: Any, name: str, channels: int, rate_hz: int, sample_format: str) -> None:
    samples, exact = counter(2 * rate_hz, channels, sample_format)
    choice = replace(CHOICE, device=name, device_channels=channels, rate_hz=rate_hz, sample_format=sample_format)
    with Ear(LiveSource(choice, Clocks())) as ear:
        ear.wait_for_audio()
        sea.play(name, samples, channels, rate_hz, sample_format)
        wait_for(lambda: ear.sounds >= exact.size, f"all of it is heard on {name}")
    ear.check_whole()
    heard = ear.heard()
    start = first_sound(heard)
    np.testing.assert_array_equal(heard[start : start + len(exact)], exact)


def has(heard: Any, row: Any) -> bool:
    """Whether a row is among what was heard."""
    return bool((heard == row).all(axis=1).any())


def test_card_that_is_absent_pulled_out_or_whose_server_dies_comes_back(
    sea: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "orcawatch")
    with Ear(LiveSource(CHOICE, Clocks())) as ear:
        ear.wait_for_missing("device gone")
        sea.plug_in("hydrophones")
        ear.wait_for_audio()
        sea.pull_out("hydrophones")
        ear.wait_for_missing("device gone: 'hydrophones' ended its stream: was it pulled out?")
        sea.plug_in("hydrophones")
        ear.wait_for_audio()
        sea.kill()
        ear.wait_for_missing("was it pulled out?")
        wait_for(lambda: "no sound card with an input is there" in caplog.text, "the server is missed")
        sea.start()
        sea.plug_in("hydrophones")
        ear.wait_for_audio()
    ear.check_whole()
    told = [record.getMessage() for record in caplog.records]
    assert sum("'hydrophones' gives audio again after" in line for line in told) == 3
    assert sum("was it pulled out?; trying again" in line for line in told) >= 1
    assert sum("no sound card with an input" in line for line in told) == 1


def test_capture_process_that_is_killed_is_started_again(sea: Any) -> None:
    sea.plug_in("hydrophones")
    source = LiveSource(CHOICE, Clocks())
    with Ear(source) as ear:
        ear.wait_for_audio()
        assert source.pid is not None
        os.kill(source.pid, signal.SIGKILL)
        wait_for(lambda: source.reopens == 1, "the card is opened again")
        ear.wait_for_audio()
    ear.check_whole()
    causes = {item.cause for item in ear.items if isinstance(item, Missing)}
    assert causes == {"device gone: the capture process ended (signal 9)"}


@pytest.mark.parametrize("stop", ["kill the parent", "end the input", "SIGTERM"])
def test_capture_process_ends_with_its_parent(sea: Any, stop: str) -> None:
    sea.plug_in("hydrophones")
    program = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-m', 'orcawatch.soundcard', sys.argv[1]], "
        "stdin=subprocess.PIPE); print(child.pid, file=sys.stderr, flush=True); sys.stdin.read(); child.stdin.close(); child.wait()"
    )
    wanted = json.dumps({"device": "hydrophones", "channels": 4})
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", program, wanted], stdin=pipe, stdout=pipe, stderr=pipe, cwd="/"
    ) as parent:
        assert parent.stdin is not None and parent.stdout is not None and parent.stderr is not None
        pid = int(parent.stderr.readline())
        assert Header(*HEADER.unpack(parent.stdout.read(HEADER.size))).kind == OPENED
        if stop == "kill the parent":
            parent.kill()
        elif stop == "end the input":
            parent.stdin.close()
        else:
            os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not alive(pid), "the capture process has ended", 3.0)
        parent.kill()


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be counted out does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_capture_goes_on_while_nobody_reads_and_drops_exactly_what_finds_no_room(sea: Any) -> None:
    """One process has room for ten seconds, one for half a second (and 1 MB in the pipe); nobody reads for three."""
    channels, rate_hz = 6, 96000
    sea.plug_in("hydrophones", channels, rate_hz)
    samples = np.repeat(np.arange(1, 9 * rate_hz, dtype=np.float32)[:, None] / 2**24, channels, axis=1)
    with ThreadPoolExecutor(2) as pool:
        reading = [pool.submit(read_late, room_s, channels, rate_hz) for room_s in (10.0, 0.5)]
        time.sleep(2.0)  # the first audio takes as long
        sea.play("hydrophones", samples.tobytes(), channels, rate_hz)
        whole, dropped = (future.result() for future in reading)
    for frames in (whole, dropped):
        assert [header.sequence for header, _ in frames] == list(range(1, len(frames) + 1))
        assert not any(header.flags for header, _ in frames)
        offsets = {header.first - counter for header, counter in frames if counter}
        assert len(offsets) == 1  # what is missing is counted to the sample
    assert lost_rows(whole) == 0 and 1.0 < lost_rows(dropped) / rate_hz < 3.0


def lost_rows(frames: list[tuple[Header, int]]) -> int:
    """Rows that are missing between frames."""
    ends = [header.first + header.rows for header, _ in frames]
    return sum(header.first - end for (header, _), end in zip(frames[1:], ends))


def read_late(room_s: float, channels: int, rate_hz: int) -> list[tuple[Header, int]]:
    """Frames of audio with the counter in their first samples; while the player plays, nothing is read for 3 s."""
    wanted = {"device": "hydrophones", "channels": channels, "rate_hz": rate_hz, "room_s": room_s}
    pipe, frames = subprocess.PIPE, []
    command = [sys.executable, "-m", "orcawatch.soundcard", json.dumps(wanted)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd="/") as child:
        assert child.stdin is not None and child.stdout is not None
        heard = 0
        while heard < 45:
            header = Header(*HEADER.unpack(child.stdout.read(HEADER.size)))
            content = child.stdout.read(header.size)
            if header.kind != AUDIO:
                continue
            frames.append((header, round(float(np.frombuffer(content, np.float32, 1)[0]) * 2**24)))
            heard += frames[-1][1] > 0
            if heard == 5 and frames[-1][1] > 0:
                time.sleep(3.0)
        child.stdin.close()
    return frames


def test_capture_process_that_was_stopped_for_long_has_lost_audio_and_the_clock_finds_how_much(
    sea: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PulseAudio keeps 4 MB for it, then drops without telling PortAudio; the player counts, so that the truth is known."""
    monkeypatch.setattr(clock, "LOSS_S", 5.0)  # instead of ten
    channels, rate_hz, rows = 6, 96000, 96000 * 16
    sea.plug_in("hydrophones", channels, rate_hz)
    samples = np.repeat(np.arange(1, rows + 1, dtype=np.float32)[:, None] / 2**24, channels, axis=1)
    choice = replace(CHOICE, device_channels=channels, rate_hz=rate_hz, stalled_s=30)
    source = LiveSource(choice, Clocks())
    with Ear(source) as ear:
        ear.wait_for_audio()
        sea.play("hydrophones", samples.tobytes(), channels, rate_hz)
        wait_for(lambda: ear.blocks[-1].samples.any(), "the player is heard")
        assert source.pid is not None
        os.kill(source.pid, signal.SIGSTOP)
        time.sleep(3.0)
        os.kill(source.pid, signal.SIGCONT)
        wait_for(lambda: isinstance(ear.items[-1], Missing) or source.unnoticed_s, "the loss is found", 20.0)
        ear.wait_for_audio()
        ear.wait_for_audio()
    ear.check_whole()
    shifts = [position_less_counter(block) for block in ear.blocks if block.samples[-1, 0] > 0]
    lost_s = source.unnoticed_s
    assert 0.5 < lost_s < 3.0 and (source.overruns, source.reopens) == (0, 0)
    assert abs(shifts[-1] - shifts[0]) < 0.15 * rate_hz  # blocks arrive by twos: jitter of 0.1 s
    causes = {item.cause for item in ear.items if isinstance(item, Missing)}
    assert causes == {"samples lost without notice"}


def position_less_counter(block: AudioBlock) -> int:
    """How far the stream is ahead of the player, at a block's last sample."""
    return block.end_sample - round(float(block.samples[-1, 0]) * 2**24)


def fault_of(program: Sequence[str] = ("-m", "orcawatch.soundcard"), **wanted: Any) -> str:
    """What the capture process says where it cannot open what is wanted."""
    pipe = subprocess.PIPE
    command = [sys.executable, *program, json.dumps(wanted)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, cwd="/") as child:
        assert child.stdout is not None
        written = child.stdout.read()
        header = Header(*HEADER.unpack(written[: HEADER.size]))
        assert child.wait() == 1 and len(written) == HEADER.size + header.size and header.kind == FAULT
    return str(json.loads(written[HEADER.size :])["text"])


def test_what_cannot_be_opened_is_refused_with_the_cure(sea: Any) -> None:
    sea.plug_in("hydrophones")
    assert fault_of(device="hidrophones") == "no device is called 'hidrophones'; did you mean 'hydrophones'?"
    assert "has 32 input channels, not 40: see source.device_channels" in fault_of(device="hydrophones", channels=40)
    fault = fault_of(device="hydrophones", rate_hz=700000, channels=4)
    assert "refuses 4 channels of float32 at 700000 Hz: " in fault and "192000 Hz: see source.rate_hz" in fault
    fault = fault_of(device="stern", channels=2)
    assert "'stern' (ALSA, 32 channels) refuses 2 channels of float32 at 44100 Hz: " in fault


def test_service_that_forbids_executable_memory_is_told_what_to_leave_out(sea: Any) -> None:
    sea.plug_in("hydrophones")
    program = (
        "import ctypes, sys; ctypes.CDLL(None).prctl(65, 1, 0, 0, 0); "  # PR_SET_MDWE
        "from orcawatch.soundcard import main; sys.exit(main(sys.argv[1]))"
    )
    if subprocess.run(
        [sys.executable, "-c", "import ctypes, sys; sys.exit(ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0)"],
        check=False,
    ).returncode:
        pytest.skip("the kernel has no PR_SET_MDWE (Linux 6.3)")
    assert "leave MemoryDenyWriteExecute out" in fault_of(["-c", program], device="hydrophones", channels=4)


def test_devices_are_listed_by_name_with_what_they_take(sea: Any) -> None:
    sea.plug_in("hydrophones")
    found = {entry.device.name: entry for entry in find_devices()}
    assert {48000, 96000} < set(found["hydrophones"].rates_hz) and found["default"].default
    told = CliRunner().invoke(devices_command, ["--json"])
    records = [json.loads(line) for line in told.output.splitlines()]
    entry = next(record for record in records if record["name"] == "hydrophones")
    assert told.exit_code == 0 and "index" not in entry
    assert (entry["hostapi"], entry["channels"], entry["default"]) == ("ALSA", 32, False)
    assert "hydrophones  [ALSA]  32 channels at 8000, " in CliRunner().invoke(devices_command).output


def test_devices_fails_with_the_cure_where_there_is_none(sea: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PULSE_RUNTIME_PATH", "/nowhere")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nowhere")
    with pytest.raises(OrcawatchError, match="no sound card with an input is there: plug it in") as raised:
        find_devices()
    assert raised.value.exit_code == 1


def test_missing_library_and_a_broken_sound_system_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from orcawatch.soundcard import main; main('--list')"
    with pytest.raises(OrcawatchError, match="apt install libportaudio2"):
        find_devices([sys.executable, "-c", program])
    with pytest.raises(OrcawatchError, match=r"the sound system broke \(exit code -11\)"):
        find_devices([sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"])


def test_only_one_file_imports_sounddevice_and_the_daemon_does_not() -> None:
    package = Path(live.__file__).parent
    importing = [file.name for file in package.rglob("*.py") if "import sounddevice" in file.read_text()]
    assert importing == ["soundcard.py"]
    program = "import sys, orcawatch.live, orcawatch.devices; sys.exit('sounddevice' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd="/", check=False).returncode == 0


class Tee(Through[LiveSource]):
    """Keeps what a source yields, has the scene played when it begins, and stops when it has been heard."""

    def __init__(self, source: LiveSource, play: Callable[[], object], last: Any, stop: threading.Event) -> None:
        super().__init__(source)
        self.kept: list[AudioBlock] = []
        self._play = play
        self._last = last
        self._stop = stop

    def blocks(self) -> Iterator[Item]:
        for item in self._source.blocks():
            assert isinstance(item, AudioBlock), item
            if not self.kept:
                self._play()
            self.kept.append(item)
            if has(item.samples, self._last):
                self._stop.set()
            yield item


def test_scene_that_is_played_live_gives_the_detections_of_its_file(sea: Any, tmp_path: Path) -> None:
    """On four hydrophones, scored by the shipped bundle: equal to the sample and to the bit."""
    scene = played_scene()
    sea.plug_in("hydrophones", 4, RATE_HZ)
    for attempt in range(3):  # on a busy machine the player may stumble, which is no fault of the listener
        live, live_found, heard = listened(sea, scene, tmp_path / f"live{attempt}")
        start = first_sound(heard) - first_sound(scene)
        if np.array_equal(heard[start : start + len(scene)], scene):
            break
    np.testing.assert_array_equal(heard[start : start + len(scene)], scene)
    file, file_found = tmp_path / "tee.wav", []
    soundfile.write(file, heard, RATE_HZ, subtype="FLOAT")
    settings = watch_in(tmp_path / "file")
    recordings = find_recordings([file], settings.output)
    ensemble = open_ensemble(settings)
    here = Here(ensemble, lambda seconds: None, threading.Event())
    of_file = scan(recordings, ensemble.bundle, settings, file_found.append, here)
    assert [facts(detection) for detection in live_found] == [facts(detection) for detection in file_found]
    assert len(file_found) >= 3 and live.scored_s == of_file.scored_s == len(heard) / RATE_HZ


def first_sound(samples: Any) -> int:
    return int(np.flatnonzero(samples.any(axis=1))[0])


def played_scene() -> Any:
    """Fifteen simulated seconds, or the four-channel file that SCENE names, at `RATE_HZ`."""
    if "SCENE" in os.environ:
        samples, rate_hz = soundfile.read(os.environ["SCENE"], dtype="float32")
        assert (samples.shape[1], rate_hz) == (4, RATE_HZ)
        return samples
    settings = SceneSettings(duration_s=15.0, rate_hz=RATE_HZ, seed=3, calls_per_minute=20.0, snr_low_db=9.0)
    return np.ascontiguousarray(simulate_scene(settings).samples, np.float32)


def listened(sea: Any, scene: Any, output: Path) -> tuple[Totals, list[Detection], Any]:
    """The account and the detections of a scene that is played to the daemon, and all that it heard."""
    stop, found = threading.Event(), []
    settings = watch_in(output)
    with LiveSource(CHOICE, Clocks()) as source:
        assert source.open(stop)
        tee = Tee(source, lambda: sea.play("hydrophones", scene.tobytes()), scene[-1], stop)
        totals = run(tee, open_ensemble(settings), settings, found.append, stop)
        assert source.overruns == source.shed_s == source.unnoticed_s == 0
    return totals, found, np.concatenate([block.samples for block in tee.kept])


def watch_in(output: Path) -> Settings:
    """Settings of a watch without snapshots."""
    return Settings(output=output, snapshots=False, clips=ClipSettings(0.5, 0.5))


RATE_HZ = 44100


def facts(detection: Detection) -> tuple[Any, ...]:
    """What does not depend on where the audio came from."""
    return (
        detection.start_sample, detection.end_sample, detection.score, detection.channel_scores, detection.best_channel,
        detection.levels_db,
    )  # fmt: skip
