"""The page of one detection: what was heard, what the network looked at, and what people say of it."""

from __future__ import annotations

import hashlib
import io
import logging
import re
import zipfile
import zlib
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from flask import (
    Blueprint,
    Response,
    abort,
    current_app,
    jsonify,
    redirect,
    render_template,
    request,
    send_file,
    url_for,
)
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as AnyResponse

from .. import verdicts
from ..errors import AudioError, InputError, OrcawatchError
from ..store import Detection, Store
from . import axes, facts, filters, looking, media, pictures, queries
from .access import inside
from .axes import Tick
from .looking import Desk, Failed, Look, Wish
from .media import MIX, Clip, Shelf
from .site import reading, site

blueprint = Blueprint("detection", __name__)

log = logging.getLogger(__name__)

UNREADABLE = (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error)  # of arrays

KEPT_S = 3600  # a browser may keep audio and pictures
REVIEWER = "reviewer"  # name of the cookie
REVIEWER_S = 365 * 86400
MIXED = "mix"


@dataclass(frozen=True)
class Axis:
    """Frequency axis of one backbone's pictures.

    Attributes
    ----------
    backbone : its name.
    edges_hz : lowest and highest frequency.
    scale : `mel` or `linear`.
    ticks : its marks.
    box : top and height of the call's band, percent; None where it is not known.
    """

    backbone: str
    edges_hz: tuple[float, float]
    scale: str
    ticks: list[Tick]
    box: tuple[float, float] | None


@dataclass(frozen=True)
class Files:
    """What lies on the disk for a detection; None for what does not.

    Attributes
    ----------
    clip_path, clip : the audio, and what it says of itself.
    fault : why it cannot be read.
    snapshot, arrays : the stored picture and its figures.
    """

    clip_path: Path | None
    clip: Clip | None
    fault: str
    snapshot: Path | None
    arrays: Path | None


@dataclass(frozen=True)
class Stored:
    """Figures of the stored snapshot.

    Attributes
    ----------
    axes : (backbone, ends of the frequency axis, scale).
    threshold : score at which an event begins.
    event_s : of the clip.
    curves : by channel, (seconds of the clip, score).
    spans_s : by backbone, where its picture begins on the clip and how long it is.
    """

    axes: list[tuple[str, tuple[float, float], str]]
    threshold: float
    event_s: tuple[float, float]
    curves: dict[int, list[tuple[float, float]]]
    spans_s: dict[str, tuple[float, float]]


def shelf() -> Shelf:
    """Where this site's pictures and sounds are kept for a while."""
    found: Shelf = current_app.extensions.setdefault("orcawatch.shelf", Shelf())
    return found


def desk() -> Desk:
    """Where this site's looks are made."""
    opened = partial(looking.open_quietly, site().settings.bundles)
    found: Desk = current_app.extensions.setdefault("orcawatch.desk", Desk(shelf(), opened))
    return found


def detection_or_404(id: int) -> Detection:
    """The row; ends the request where there is none."""
    with reading() as connection:
        found = queries.detection(connection, id)
    return found or missing(id)


def missing(id: int) -> Any:
    """End the request."""
    abort(404, f"There is no detection {id}.")


def files_of(detection: Detection) -> Files:
    """What lies on the disk."""
    path, clip, fault = existing(detection.clip), None, ""
    if path is not None:
        try:
            clip = media.clip_of(path)
        except AudioError as why:
            fault = str(why)
    snapshot = existing(detection.snapshot)
    arrays = None if detection.snapshot is None else existing(str(Path(detection.snapshot).with_suffix(".npz")))
    return Files(path, clip, fault, snapshot, arrays)


def existing(name: str | None) -> Path | None:
    """A file in the output folder; None where it is not there, or lies elsewhere."""
    try:
        return inside(site().output, name)
    except HTTPException:
        return None


def stored_of(arrays: Path | None) -> Stored | None:
    """Figures of the snapshot; None where there is none that can be read."""
    if arrays is None:
        return None
    try:
        with looking.arrays_of(arrays) as found:
            names = [str(name) for name in found["backbones"]]
            ends = [("" if name == names[0] else f"-{name}") for name in names]
            shown = [
                (name, pictures.axis_edges_hz(found[f"frequencies_hz{end}"], str(found[f"scale{end}"])),
                 str(found[f"scale{end}"]))
                for name, end in zip(names, ends)
            ]  # fmt: skip
            spans_s = {name: looking.extent(found[f"times_s{end}"]) for name, end in zip(names, ends)}
            start_s, end_s = (float(value) for value in found["event_s"])
            return Stored(shown, float(found["threshold"]), (start_s, end_s), looking.stored_curves(arrays), spans_s)
    except UNREADABLE as fault:
        log.warning("%s cannot be shown: %s", arrays, fault)
        return None


def axes_of(detection: Detection, stored: Stored | None, folder: Path | None) -> list[Axis]:
    """Frequency axes: the stored ones, else those of the bundle, else what a hydrophone's picture usually shows."""
    if stored is not None:
        shown = stored.axes
    elif folder is not None:
        shown = bundle_axes(folder)
    else:
        shown = [("", (100.0, 8000.0), "mel")]
    return [
        Axis(name, edges, scale, axes.frequency_ticks(edges, scale), box_of(detection, edges, scale))
        for name, edges, scale in shown
    ]


def bundle_axes(folder: Path) -> list[tuple[str, tuple[float, float], str]]:
    """Axes of a bundle's backbones."""
    from ..bundle import load_bundle
    from ..snapshot import LINEAR_POWER

    found = []
    for name, entry in load_bundle(folder).backbones.items():
        scale = "linear" if entry.front_end.kind == LINEAR_POWER else "mel"
        found.append((name, pictures.axis_edges_hz(entry.front_end.frequencies_hz, scale), scale))
    return found


def box_of(detection: Detection, edges_hz: tuple[float, float], scale: str) -> tuple[float, float] | None:
    """Top and height of the call's band."""
    low, high = detection.numbers.get("band_low_hz"), detection.numbers.get("band_high_hz")
    if low is None or high is None:
        return None
    top, bottom = axes.height_of(high, edges_hz, scale), axes.height_of(low, edges_hz, scale)
    return top, bottom - top


@blueprint.get("/detection/<int:id>")
def page(id: int) -> str:
    """The page."""
    return rendered(id, filters.from_args(request.args))


def rendered(id: int, wanted: filters.Filter, said: dict[str, str] | None = None, fault: str = "") -> str:
    """The page, with what was typed where it could not be saved, and why."""
    with reading() as connection:
        detection = queries.detection(connection, id) or missing(id)
        around = queries.neighbours(connection, id, wanted)
        session = facts.session_of(connection, detection)
    history = history_of(id)
    files = files_of(detection)
    stored = stored_of(files.arrays)
    folder = looking.find_bundle(site().settings, detection.bundle_digest)
    threshold = None if stored is None else stored.threshold
    return render_template(
        "detection.html",
        row=detection, wanted=wanted, around=around, history=history, files=files, stored=stored, fault=fault,
        timeline=None if files.clip is None else facts.timeline(
            detection, files.clip, None if stored is None else stored.event_s
        ),
        axes=axes_of(detection, stored, folder), channels=facts.channels_of(detection), has_bundle=folder is not None,
        facts=facts.facts(detection, session, threshold), threshold=threshold,
        compass=facts.compass(detection.bearing_deg, detection.bearing_error_deg),
        notices=facts.notices(detection, files.clip_path, files.fault, files.snapshot is not None),
        said=said or {"note": detection.verdict_note, "reviewer": request.cookies.get(REVIEWER, "")},
        levels=level_bar(detection, files, stored), times=axes.times_ticks(), longest=verdicts,
        magma=[(colour, 1.0) for colour in pictures.MAGMA],
        viridis=list(zip(pictures.VIRIDIS, pictures.VEIL)), address=address,
    )  # fmt: skip


def address(id: int, wanted: filters.Filter) -> str:
    """Of a detection's page, within a filter."""
    fields: dict[str, Any] = dict(wanted.fields())
    return url_for("detection.page", id=id, **fields)


def history_of(id: int) -> list[verdicts.Verdict]:
    """Every verdict that was ever given to it, the oldest first."""
    with Store.reader(site().database) as reader:
        return verdicts.history(reader, id)


def level_bar(detection: Detection, files: Files, stored: Stored | None) -> list[Tick] | None:
    """Marks of the spectrograms' colour bar; None where nothing is shown."""
    if files.clip is None:
        return None
    try:
        return axes.level_ticks(range_of(detection, files.clip, axes_of(detection, stored, None)[0]))
    except AudioError:
        return None


def range_of(detection: Detection, clip: Clip, axis: Axis) -> tuple[float, float]:
    """Levels of the first and the last colour: those of the best channel, so that channels can be compared."""
    key = "range", clip.path, clip.version, axis.edges_hz
    found: tuple[float, float] | None = shelf().get(key)
    if found is None:
        best = detection.channels.index(detection.best_channel)
        found = pictures.level_range_db(levels_of(clip, min(best, clip.columns - 1), axis))
        shelf().put(key, found, 64)
    return found


def levels_of(clip: Clip, column: int, axis: Axis) -> Any:
    """The spectrogram of one of a clip's columns."""
    return pictures.spectrogram_db(media.one_channel(clip, column), clip.rate_hz, axis.edges_hz, axis.scale)


def clip_or_404(detection: Detection) -> Clip:
    """The clip; ends the request where there is none to be read."""
    clip = files_of(detection).clip
    return abort(404, "There is no clip of it.") if clip is None else clip


def column_or_404(detection: Detection, clip: Clip, number: str) -> int | None:
    """The place of a channel in the clip; ends the request where there is none of that name."""
    if number == MIXED:
        return MIX
    names = [str(channel) for channel in detection.channels]
    if number not in names or names.index(number) >= clip.columns:
        abort(404, f"It has no channel {number[:20]}.")
    return names.index(number)


@blueprint.get("/detection/<int:id>/clip.wav")
def sound(id: int) -> Response:
    """One channel of the clip, or the mean of all, as recorded, in 16 bits; a part of it where that is asked for."""
    detection = detection_or_404(id)
    clip = clip_or_404(detection)
    column = column_or_404(detection, clip, request.args.get("channel", str(detection.best_channel)))
    content = shelf().made(
        ("sound", clip.path, clip.version, column), lambda: media.wav(media.one_channel(clip, column), clip.rate_hz)
    )
    return sent(content, "audio/wav")


@blueprint.get("/detection/<int:id>/picture/<number>.png")
def picture(id: int, number: str) -> Response:
    """Pixels of a channel: its spectrogram, or with `of=relevance` what the backbone `backbone` looked at.

    With `stored=1` the relevance is that of the stored snapshot.
    """
    detection = detection_or_404(id)
    files = files_of(detection)
    if request.args.get("of") == "relevance":
        panel = panel_or_404(detection, files, number)
        return sent(panel.picture, "image/png")
    clip = clip_or_404(detection)
    column = column_or_404(detection, clip, number)
    stored = stored_of(files.arrays)
    axis = axes_of(detection, stored, looking.find_bundle(site().settings, detection.bundle_digest))[0]
    content = shelf().made(
        ("spectrogram", clip.path, clip.version, column, axis.edges_hz),
        lambda: pictures.spectrogram_png(levels_of(clip, column or 0, axis), range_of(detection, clip, axis)),
    )
    return sent(content, "image/png")


def panel_or_404(detection: Detection, files: Files, number: str) -> looking.Panel:
    """What a backbone looked at, where that is made or stored."""
    backbone = request.args.get("backbone", "")
    clip = clip_or_404(detection)
    if request.args.get("stored"):
        found = stored_look(detection, files)
    else:
        found = (
            shelf().get(wish_of(detection, clip, number).key)
            if column_or_404(detection, clip, number) is not MIX
            else None
        )
    panels = found.panels if isinstance(found, Look) else ()
    return next((panel for panel in panels if panel.backbone == backbone), None) or abort(404, "It is not made yet.")


def stored_look(detection: Detection, files: Files) -> Look | None:
    """What the stored snapshot shows of the best channel."""
    if files.arrays is None:
        return None
    try:
        return looking.stored(files.arrays, detection.score)
    except UNREADABLE as fault:
        log.warning("%s cannot be shown: %s", files.arrays, fault)
        return None


def wish_of(detection: Detection, clip: Clip, number: str) -> Wish:
    """The look at a channel."""
    column = column_or_404(detection, clip, number)
    folder = looking.find_bundle(site().settings, detection.bundle_digest)
    if folder is None or column is MIX:
        abort(404, "The bundle that scored it is not here any more.")
    return Wish(clip, column, folder, detection.score)


@blueprint.get("/detection/<int:id>/look/<number>.json")
def look(id: int, number: str) -> tuple[Response, int]:
    """What the network looked at on a channel: addresses of pictures and the scores; 202 while it is being made.

    What is not asked for again within some seconds is not made.
    """
    detection = detection_or_404(id)
    clip = clip_or_404(detection)
    made = desk().ask(wish_of(detection, clip, number))
    if made is None:
        return jsonify(state="making"), 202
    if isinstance(made, Failed):
        return jsonify(state="failed", text=made.text), 200
    panels = [
        {
            "backbone": panel.backbone,
            "start_s": panel.start_s,
            "length_s": panel.length_s,
            "picture": url_for("detection.picture", id=id, number=number, of="relevance", backbone=panel.backbone),
        }
        for panel in made.panels
    ]  # fmt: skip
    return jsonify(state="made", panels=panels, curve=made.curve), 200


@blueprint.get("/detection/<int:id>/file/<kind>")
def file(id: int, kind: str) -> Response:
    """The clip as it was written, with its metadata, or the stored picture or its figures, to keep."""
    files = files_of(detection_or_404(id))
    kinds = {
        "clip": (files.clip_path, "audio/flac" if str(files.clip_path).endswith(".flac") else "audio/wav"),
        "snapshot": (files.snapshot, "image/png"),
        "figures": (files.arrays, "application/octet-stream"),
    }
    path, kind_of_content = kinds.get(kind, (None, ""))
    if path is None:
        abort(404, "It is not there.")
    return send_file(path.resolve(), kind_of_content, as_attachment=kind != "snapshot", download_name=path.name)


def sent(content: bytes, kind: str) -> Response:
    """A file made here, or the part of it that is asked for."""
    tag = hashlib.sha256(content).hexdigest()[:32]
    response = send_file(io.BytesIO(content), kind, etag=tag, conditional=True)
    response.headers["Cache-Control"] = f"private, max-age={KEPT_S}"
    return response


@blueprint.post("/detection/<int:id>/verdict")
def verdict(id: int) -> AnyResponse | tuple[AnyResponse | str, int]:
    """Take a verdict: `verdict` (empty takes it back), `note`, `reviewer`, and `seen`, how many there were.

    Answers JSON where that is asked for: where to go on (`next`), or 409 with what somebody else has said meanwhile.
    """
    with reading() as connection:
        if queries.detection(connection, id) is None:
            abort(404, "There is no detection of that number.")
    wanted = filters.from_args(request.args)
    said = {name: request.form.get(name, "").replace("\r\n", "\n").strip() for name in ("note", "reviewer")}
    given = request.form.get("verdict") or None
    try:
        give(id, given, said)
    except verdicts.ChangedError as fault:
        return changed(id, wanted, said, fault.other)
    except OrcawatchError as fault:
        return unsaved(id, wanted, said, fault)
    if wants_json():
        return remember(jsonify(**after(id, wanted)), said)
    return remember(redirect(next_address(id, wanted, given), 303), said)


def wants_json() -> bool:
    """Whether a script asks."""
    return request.accept_mimetypes.best_match(("text/html", "application/json")) == "application/json"


def give(id: int, given: str | None, said: dict[str, str]) -> None:
    """Write a verdict.

    Raises
    ------
    ChangedError : there are more than the page had seen.
    OrcawatchError : it cannot be written.
    """
    text = request.form.get("seen", "")
    seen = int(text) if re.fullmatch("[0-9]{1,9}", text) else None
    with verdicts.Writer(site().database) as writer:
        verdicts.give(writer, id, given, said["note"], said["reviewer"], datetime.now(timezone.utc), seen)


def unsaved(
    id: int, wanted: filters.Filter, said: dict[str, str], fault: OrcawatchError
) -> tuple[AnyResponse | str, int]:
    """The page again, with what was typed, and why it was not saved."""
    code = 400 if isinstance(fault, InputError) and "cannot" not in str(fault) else 503
    text = f"Not saved: {fault}"
    if wants_json():
        return jsonify(error=text), code
    return rendered(id, wanted, said, text), code


def changed(
    id: int, wanted: filters.Filter, said: dict[str, str], other: verdicts.Verdict
) -> tuple[AnyResponse | str, int]:
    """Somebody was quicker: the page again, which knows their verdict."""
    what = (other.verdict or "no verdict").replace("_", " ")
    text = f"Not saved: {other.reviewer or 'somebody'} has meanwhile said: {what}. Give yours again to replace it."
    if wants_json():
        return jsonify(error=text, **after(id, wanted)), 409
    return rendered(id, wanted, said, text), 409


def after(id: int, wanted: filters.Filter) -> dict[str, Any]:
    """What a page is to know after a verdict."""
    with reading() as connection:
        around = queries.neighbours(connection, id, wanted)
    history = history_of(id)
    return {
        "seen": len(history),
        "verdict": history[-1].verdict if history else None,
        "next": None if around is None or around.next_unreviewed is None else address(around.next_unreviewed, wanted),
    }


def next_address(id: int, wanted: filters.Filter, given: str | None) -> str:
    """Where a form goes on: to the next without a verdict; here at the end, or after one was taken back."""
    waiting = after(id, wanted)["next"] if given else None
    return waiting or address(id, wanted)


def remember(response: Any, said: dict[str, str]) -> AnyResponse:
    """Keep the reviewer's name in their browser."""
    found: AnyResponse = response
    found.set_cookie(REVIEWER, said["reviewer"], max_age=REVIEWER_S, samesite="Strict", httponly=True)
    return found
