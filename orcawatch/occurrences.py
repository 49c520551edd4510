"""Detections as Darwin Core occurrences, as OBIS and GBIF take them. See docs/formats.md."""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import quote

from .effort import Entry, Span, parts
from .formats import quoted_line
from .ledger import RECORDED
from .selection import Row

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:orcawatch:occurrence")
TAXON = {
    "scientificName": "Orcinus orca",
    "scientificNameID": "urn:lsid:marinespecies.org:taxname:137102",
    "scientificNameAuthorship": "(Linnaeus, 1758)",
    "kingdom": "Animalia",
    "phylum": "Chordata",
    "class": "Mammalia",
    "family": "Delphinidae",
    "genus": "Orcinus",
    "taxonRank": "species",
    "vernacularName": "killer whale",
}
TERMS = (
    "occurrenceID", "basisOfRecord", "occurrenceStatus", *TAXON, "eventDate", "decimalLatitude", "decimalLongitude",
    "geodeticDatum", "coordinateUncertaintyInMeters", "locationID", "samplingProtocol", "samplingEffort",
    "eventRemarks", "identifiedBy", "dateIdentified", "identificationVerificationStatus", "identificationQualifier",
    "identificationReferences", "identificationRemarks", "associatedMedia", "occurrenceRemarks",
)  # fmt: skip

NOT_ORCA = "not_orca"
LACKS = {
    "position": "no position: give latitude_deg and longitude_deg in the settings of the next run, or --position now",
    "time": "no time: `orcawatch scan` again with files.timezone or files.time_format in the settings",
    "not_orca": "with the verdict not_orca",
    "repeated": "found again in another scan of the same file",
}

Effort = Mapping["tuple[str, str]", float]


@dataclass
class Occurrences:
    """Turns detections into rows, and counts those that cannot be one.

    Attributes
    ----------
    effort : seconds recorded, by station and UTC day.
    position : latitude and longitude, degrees, where a run has none.
    uncertainty_m : radius around the position in which the animal was, metres.
    media_url : where the output folder is published; None where it is not.
    left_out : how many are no row, by the key in `LACKS`.
    """

    effort: Effort
    position: tuple[float, float] | None = None
    uncertainty_m: float | None = None
    media_url: str | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    _seen: set[bytes] = field(default_factory=set)

    def lines(self, rows: Iterable[Row]) -> Iterator[str]:
        """The terms, then a line of CSV for each occurrence."""
        yield quoted_line(TERMS)  # nothing is guarded: Darwin Core takes values as they are
        for row in rows:
            lack = self._lack(row)
            if lack is None:
                terms = self.terms(row)
                yield quoted_line(terms[name] for name in TERMS)
            else:
                self.left_out[lack] += 1

    def terms(self, row: Row) -> dict[str, str]:
        """An occurrence by the names of `TERMS`; empty is not known."""
        latitude, longitude = self._place(row) or (None, None)
        return {
            "occurrenceID": identity(row).urn,
            "basisOfRecord": "MachineObservation",
            "occurrenceStatus": "present",
            **TAXON,
            "eventDate": interval(row),
            "decimalLatitude": degrees(latitude),
            "decimalLongitude": degrees(longitude),
            "geodeticDatum": "EPSG:4326",
            "coordinateUncertaintyInMeters": "" if self.uncertainty_m is None else f"{self.uncertainty_m:g}",
            "locationID": row.detection.station,
            "samplingProtocol": protocol(row),
            "samplingEffort": self._effort(row),
            "eventRemarks": "the clock was not synchronised" if row.detection.synchronised is False else "",
            "associatedMedia": self._media(row),
            "occurrenceRemarks": bearing(row),
            **identification(row),
        }

    def _lack(self, row: Row) -> str | None:
        """Why a detection is no row; None where it is one."""
        if row.detection.verdict == NOT_ORCA:
            return "not_orca"
        if row.start_utc is None:
            return "time"
        if self._place(row) is None:
            return "position"
        key = identity(row).bytes
        if key in self._seen:
            return "repeated"
        self._seen.add(key)
        return None

    def _place(self, row: Row) -> tuple[float, float] | None:
        run = row.run
        if run is None or run.latitude_deg is None or run.longitude_deg is None:
            return self.position
        return run.latitude_deg, run.longitude_deg

    def _effort(self, row: Row) -> str:
        day = day_of(row.start_utc)
        seconds = self.effort.get((row.detection.station, day))
        return "" if seconds is None else f"{seconds / 3600:.3f} h recorded on {day} UTC"

    def _media(self, row: Row) -> str:
        """The clip's address; empty where nothing is published, or the clip is gone."""
        if self.media_url is None or row.detection.clip is None or row.detection.removed is not None:
            return ""
        return f"{self.media_url.rstrip('/')}/{quote(row.detection.clip)}"


def read_effort(entries: Iterable[Entry]) -> Effort:
    """Seconds recorded, by station and UTC day."""
    found: defaultdict[tuple[str, str], float] = defaultdict(float)
    for entry in entries:
        if entry.stretch.kind == RECORDED:
            for day, seconds in parts(entry.stretch, "day", Span()):
                found[entry.station, day] += seconds
    return found


def identity(row: Row) -> uuid.UUID:
    """The same for the same sound found by the same bundle, in every export and every copy of the database.

    A live run is told by the machine's start and the steady clock, which no correction of UTC changes; a file by the
    path by which it was scanned, and its time.
    """
    found, run = row.detection, row.run
    origin: tuple[object, ...] = (row.start_utc,)
    if run is not None and run.live and run.boot:
        origin = (run.boot, run.started_steady_s)
    span = (found.start_sample, found.end_sample) if found.start_sample is not None else (found.start_s, found.end_s)
    key = (found.station, found.source, found.bundle_digest, *origin, *span)
    return uuid.uuid5(NAMESPACE, "\x1f".join(map(str, key)))


def interval(row: Row) -> str:
    """Start and end in ISO 8601, to the millisecond."""
    return "/".join(moment(utc) for utc in (row.start_utc, row.end_utc) if utc is not None)


def moment(utc: datetime) -> str:
    """UTC with a Z, to the millisecond."""
    return f"{utc.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


def day_of(utc: datetime | None) -> str:
    """The UTC day; empty where the time is not known."""
    return "" if utc is None else f"{utc:%Y-%m-%d}"


def degrees(value: float | None) -> str:
    """To a metre or so."""
    return "" if value is None else f"{value:.5f}"


def protocol(row: Row) -> str:
    """How it was listened, in words."""
    count = len(row.detection.channels)
    rate = "" if row.rate_hz is None else f" at {row.rate_hz} Hz"
    return (
        f"passive acoustic monitoring with {count} hydrophone{'s' if count != 1 else ''}{rate}; calls found by the "
        "automatic detector orcawatch"
    )


def bearing(row: Row) -> str:
    """Where the sound came from; empty where that is not known."""
    found = row.detection
    if found.bearing_deg is None:
        return ""
    error = f", 90 % interval {found.bearing_error_deg:.0f} degrees to each side" if found.bearing_error_deg else ""
    return f"bearing from the hydrophones {found.bearing_deg:.0f} degrees true{error}"


def identification(row: Row) -> dict[str, str]:
    """Who says that it is an orca, and how sure that is."""
    found = row.detection
    by_person = found.verdict is not None
    note = f"; reviewer's note: {' '.join(found.verdict_note.split())}" if found.verdict_note.strip() else ""
    doubt = "; a reviewer was not sure" if found.verdict == "unsure" else ""
    version = f" {row.run.version}" if row.run is not None and row.run.version else ""
    software = f"orcawatch{version}, bundle {found.bundle}, SHA-256 of its manifest {found.bundle_digest}"
    return {
        "identifiedBy": (found.reviewer or "a reviewer") if by_person else f"orcawatch{version}",
        "dateIdentified": "" if found.verdict_utc is None else moment(found.verdict_utc),
        "identificationVerificationStatus": "ValidatedByHuman" if found.verdict == "orca" else "PredictedByMachine",
        "identificationQualifier": "cf. orca" if found.verdict == "unsure" else "",
        "identificationReferences": software,
        "identificationRemarks": f"detector's score {found.score:.3f} of 1{doubt}{note}",
    }
