"""The review page: lists, filters, paging, status, effort, and what is shown when there is nothing to show."""

from __future__ import annotations

import csv
import fcntl
import io
import re
import sqlite3
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from math import nan
from pathlib import Path
from xml.etree import ElementTree

import pytest
from flask.testing import FlaskClient
from hypothesis import given, settings
from hypothesis import strategies as st

from orcawatch import daemon
from orcawatch.clock import Clocks
from orcawatch.config import Settings
from orcawatch.export import write_exports
from orcawatch.ledger import FileTime, Ledger, Session
from orcawatch.records import Missing
from orcawatch.schema import STEPS, migrate
from orcawatch.store import Detection, Store, inserted, row_of
from orcawatch.verdicts import give
from orcawatch.web import charts, download, filters, queries, season, status
from orcawatch.web.app import create_app
from orcawatch.web.filters import Filter, from_args
from orcawatch.web.site import MOST_DOWNLOADS, Site

TOKEN = "a-token-of-some-length"
NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
ROWS = Detection(
    None, "hydrophones", 5.0, 7.0, NOON, 0.8, (0, 1), (0.8, 0.4), 0, "first-light", "0" * 64, station="Sound"
)

Fill = Callable[..., list[int]]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def fill(output: Path) -> Fill:
    """Write detections: fill(detection, ...) gives their numbers."""

    def write(*detections: Detection) -> list[int]:
        with daemon.open_store(output) as store:
            return [store.add(detection) for detection in detections]

    return write


@pytest.fixture
def client(output: Path) -> FlaskClient:
    return create_app(replace(Settings(), output=output), TOKEN).test_client()


def shown(client: FlaskClient, address: str) -> list[int]:
    """Numbers of the detections on a page of the list, in order."""
    answer = client.get(address)
    assert answer.status_code == 200, answer.text
    return [int(number) for number in re.findall(r'<div class="when"><a href="/detection/(\d+)', answer.text)]


def every(client: FlaskClient, query: str = "", way: str = "next") -> Iterator[list[int]]:
    """Page after page, along the links."""
    address: str | None = f"/?{query}"
    while address:
        answer = client.get(address)
        yield shown(client, address)
        found = re.search(rf'rel="{way}" href="([^"]+)"', answer.text)
        address = found.group(1).replace("&amp;", "&") if found else None


def test_detections_are_listed_by_day_newest_first(fill: Fill, client: FlaskClient) -> None:
    early, late, other = fill(
        ROWS, replace(ROWS, start_utc=NOON + timedelta(hours=1)), replace(ROWS, start_utc=NOON + timedelta(days=1))
    )
    assert shown(client, "/") == [other, late, early]
    text = client.get("/").text
    assert text.index("Monday 2 March 2026") < text.index("Sunday 1 March 2026")
    assert "12:00:00" in text and "All times are UTC" in text


def test_a_time_with_another_offset_is_listed_by_its_utc(fill: Fill, client: FlaskClient) -> None:
    east = timezone(timedelta(hours=14))
    first, second = fill(ROWS, replace(ROWS, start_utc=(NOON - timedelta(minutes=1)).astimezone(east)))
    assert shown(client, "/?since=2026-03-01&until=2026-03-01") == [first, second]


def test_files_without_a_time_stand_behind_under_their_source(fill: Fill, client: FlaskClient) -> None:
    undated = replace(ROWS, start_utc=None, source="tapes/one.wav")
    ids = fill(undated, ROWS, replace(undated, source="tapes/two.wav"))
    assert shown(client, "/") == [ids[1], ids[0], ids[2]]
    assert shown(client, "/?undated=1") == [ids[0], ids[2]]
    assert "tapes/one.wav" in client.get("/?undated=1").text


DAYS = [None, *(NOON + timedelta(hours=hours) for hours in (-13, -12, -0.5, 0, 11.99, 12, 40))]
MADE = st.builds(
    replace,
    st.just(ROWS),
    start_utc=st.sampled_from(DAYS),
    score=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    station=st.sampled_from(["", "Sound", "50% _\\"]),
    source=st.sampled_from(["a.wav", "A%.wav", "b_\\.wav", "é'\"<.wav"]),
    bundle=st.sampled_from(["one", "two"]),
    best_channel=st.sampled_from([0, 1]),
    verdict=st.sampled_from([None, "orca", "not_orca", "unsure"]),
    verdict_note=st.sampled_from(["", "Loud & CLEAR", "100 % _sure_", "\\"]),
)
WANTED = st.builds(
    Filter,
    since=st.sampled_from([None, "2026-02-28", "2026-03-01", "2026-03-02"]),
    until=st.sampled_from([None, "2026-02-28", "2026-03-01", "2026-03-03"]),
    undated=st.booleans(),
    station=st.sampled_from(["", "Sound", "50% _\\"]),
    source=st.sampled_from(["", "a", "%", "_", "\\", "é", "<"]),
    verdict=st.sampled_from([None, "none", "orca", "unsure"]),
    score=st.sampled_from([None, 0.0, 0.5, 1.0]),
    bundle=st.sampled_from(["", "two"]),
    channel=st.sampled_from([None, 0, 1]),
    note=st.sampled_from(["", "clear", "%", "_", "\\"]),
    sort=st.sampled_from(["newest", "oldest", "score"]),
)


def lowered(text: str) -> str:
    return "".join(chr(ord(letter) + 32) if "A" <= letter <= "Z" else letter for letter in text)


def passes(detection: Detection, wanted: Filter) -> bool:
    """The filter once more, in plain words."""
    day = None if detection.start_utc is None else detection.start_utc.date().isoformat()
    return all(
        [
            wanted.since is None or (day is not None and day >= wanted.since),
            wanted.until is None or (day is not None and day <= wanted.until),
            day is None or not wanted.undated,
            wanted.station in ("", detection.station),
            lowered(wanted.source) in lowered(detection.source),
            wanted.verdict is None or (detection.verdict or "none") == wanted.verdict,
            wanted.score is None or detection.score >= wanted.score,
            wanted.bundle in ("", detection.bundle),
            wanted.channel in (None, detection.best_channel),
            lowered(wanted.note) in lowered(detection.verdict_note),
        ]
    )


def expected(detections: Sequence[Detection], wanted: Filter) -> list[int]:
    """Numbers of those that pass, in the filter's order."""
    found = [(number, detection) for number, detection in enumerate(detections, 1) if passes(detection, wanted)]
    if wanted.sort == "score":
        return [number for number, _ in sorted(found, key=lambda pair: (-pair[1].score, -pair[0]))]
    dated = [(detection.start_utc, number) for number, detection in found if detection.start_utc]
    return [number for _, number in sorted(dated, reverse=wanted.sort == "newest")] + [
        number for number, detection in found if detection.start_utc is None
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(MADE, min_size=1, max_size=14), WANTED)
def test_filters_pages_and_neighbours_are_those_of_plain_python(detections: list[Detection], wanted: Filter) -> None:
    right = expected(detections, wanted)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection, 0, STEPS)
        for detection in detections:
            inserted(connection, row_of(detection))
        forward = list(walk(connection, wanted, back=False))
        assert [id for page in forward for id in page] == right
        if right:
            last = queries.key_of(queries.detections(connection, right[-1:])[0], wanted)
            assert [id for page in walk(connection, wanted, True, last) for id in page[::-1]][::-1] == right[:-1]
        assert queries.count(connection, wanted) == len(right)
        for place, id in enumerate(right):
            found = queries.neighbours(connection, id, wanted)
            assert found is not None
            assert found.previous == (right[place - 1] if place else None)
            assert found.next == (right[place + 1] if place + 1 < len(right) else None)
            assert (found.place, found.count) == (place + 1, len(right))
        counts = queries.days(connection, wanted, "2026-03-01", "2026-03-31")
        on_day = [
            detections[id - 1]
            for id in expected(detections, replace(wanted, since="2026-03-01", until="2026-03-31", undated=False))
        ]
        assert sum(counts.values()) == len(on_day)
    assert from_args(wanted.fields()) == wanted


def walk(connection: sqlite3.Connection, wanted: Filter, back: bool, key: str | None = None) -> Iterator[list[int]]:
    """Pages of three."""
    while True:
        page = queries.page(connection, wanted, key, back, 3)
        yield [int(row.id or 0) for row in page.detections]
        key = page.before if back else page.after
        if key is None:
            return


def test_paging_is_complete_and_without_doubles_while_rows_are_added(
    fill: Fill, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = fill(*(replace(ROWS, start_utc=NOON + timedelta(seconds=number // 3)) for number in range(150)))
    seen: list[int] = []
    for page in every(client):
        seen += page
        fill(replace(ROWS, start_utc=NOON + timedelta(days=1)))
    assert seen == sorted(ids, reverse=True)
    assert len(list(every(client))) > 2


@pytest.mark.parametrize("key", ["x", "n~", "n~2026~x", "s~1e999999~1", f"u~{10**30}", "u~1~2", "n~a'b~3", "~~~"])
def test_a_key_that_is_none_is_passed_over(fill: Fill, client: FlaskClient, key: str) -> None:
    fill(ROWS)
    assert client.get("/", query_string={"after": key}).status_code == 200


def test_the_list_is_answered_from_an_index_alone(tmp_path: Path) -> None:
    with Store(tmp_path / "x.sqlite") as store, store.transaction() as connection:
        for sort, parts in queries.PARTS.items():
            wanted = Filter(
                verdict="none", score=0.5, channel=1, station="x", bundle="y", source="z", note="q", sort=sort
            )
            for part in parts:
                values = ("2026", 5)[2 - len(part.columns) :]
                for asked in (Filter(sort=sort), wanted):
                    query, given_values = queries.part_query(asked, part, values, False)
                    plan = connection.execute(f"EXPLAIN QUERY PLAN {query}", (*given_values, 61)).fetchall()
                    assert len(plan) == 1, plan
                    assert "USING COVERING INDEX" in plan[0][3], plan


@pytest.mark.parametrize(
    "query",
    ["since=yesterday", "until=2026-02-30", "score=2", "score=nan", "verdict=maybe", "sort=up", "channel=-1",
     f"note={'x' * 201}", "source=%00", "channel=%C2%B2"],
)  # fmt: skip
def test_a_wrong_filter_is_told_and_not_guessed(fill: Fill, client: FlaskClient, query: str) -> None:
    fill(ROWS)
    answer = client.get(f"/?{query}")
    assert answer.status_code == 400
    assert "must be" in answer.text


AWKWARD = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=40
) | st.sampled_from(
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "'-alert(1)-'",
        "{{ 7*7 }}",
        "</title><svg onload=a>",
    ]
)


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and the text outside of tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attributes)))


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """An output folder with one detection, and its number."""
    output = tmp_path_factory.mktemp("awkward")
    with daemon.open_store(output) as log:
        id = log.add(replace(ROWS, start_utc=None, source="a", station="b"))
        give(log, id, "unsure", "c", "d", NOON)
    yield output, id


@settings(max_examples=25, deadline=None)
@given(AWKWARD.filter(str.strip), AWKWARD, AWKWARD.filter(str.strip))
def test_names_and_notes_are_only_ever_text(awkward: tuple[Path, int], source: str, station: str, note: str) -> None:
    output, id = awkward
    client = create_app(replace(Settings(), output=output, station="b"), TOKEN).test_client()
    plain = {address: Tags(client.get(address).text).found for address in ("/", "/status")}
    with closing(sqlite3.connect(output / daemon.DATABASE, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        change = "UPDATE detections SET source = ?, station = ?, verdict_note = ? WHERE id = ?"
        try:
            connection.execute(change, (source, station or "b", note, id))
            client.application.extensions["orcawatch"] = replace_station(client, station or "b")
            for address, tags in plain.items():
                found = [
                    (tag, [name for name in names if name != "selected"])
                    for tag, names in Tags(client.get(address).text).found
                ]
                assert [tag for tag in found if tag[0] != "option"] == [
                    (tag, list(names)) for tag, names in tags if tag != "option"
                ]
                assert all(names == ["value"] for tag, names in found if tag == "option")
        finally:
            connection.execute(change, ("a", "b", "c", id))


def replace_station(client: FlaskClient, station: str) -> Site:
    """What is served, under another name."""
    site = client.application.extensions["orcawatch"]
    return replace(site, settings=replace(site.settings, station=station))


def test_before_any_detection_it_says_what_to_do(output: Path, client: FlaskClient) -> None:
    daemon.open_store(output).close()
    text = client.get("/").text
    assert "No detections yet" in text
    assert f"orcawatch run --output {output}" in text
    assert "Nothing was running" in client.get("/effort").text
    assert "says nothing of any run" in client.get("/status").text


def test_a_log_that_is_not_there_is_told_with_the_cure(output: Path, client: FlaskClient) -> None:
    for address in ("/", "/effort", "/status"):
        answer = client.get(address)
        assert answer.status_code == 503
        assert "is not there" in answer.text
    assert client.get("/status.json").get_json()["error"]
    assert not output.exists()
    assert client.get("/healthz").status_code == 200


def test_an_older_log_is_told_with_the_cure(output: Path, fill: Fill, client: FlaskClient) -> None:
    fill(ROWS)
    with closing(sqlite3.connect(output / daemon.DATABASE)) as connection:
        connection.execute("PRAGMA user_version = 2")
    answer = client.get("/")
    assert answer.status_code == 503
    assert "brings it up to date" in answer.text


def test_a_damaged_log_is_told(output: Path, fill: Fill, client: FlaskClient) -> None:
    fill(*[replace(ROWS, source="x" * 3000)] * 30)
    path = output / daemon.DATABASE
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    assert client.get("/").status_code == 503
    path.write_bytes(b"no database at all" * 500)
    assert client.get("/").status_code == 503


def test_rows_that_are_damaged_are_told_with_the_cure(output: Path, fill: Fill, client: FlaskClient) -> None:
    """Found by fuzzing: pages in order with values that no column holds were told as a mistake of the page."""
    fill(ROWS)
    with closing(sqlite3.connect(output / daemon.DATABASE)) as connection, connection:
        connection.execute("UPDATE detections SET score = 'high'")
    for address in ("/", "/detection/1", "/status.json"):
        answer = client.get(address)
        assert answer.status_code == 503 and "next start of the daemon" in answer.text
    assert "Traceback" not in client.get("/status").text


def test_reading_leaves_nothing_open_and_nothing_behind(output: Path, fill: Fill, client: FlaskClient) -> None:
    fill(ROWS)
    before = sorted(path.name for path in output.iterdir())
    with daemon.open_store(output) as store:
        client.get("/")
        with store.transaction() as connection:
            assert connection.execute("SELECT count(*) FROM detections").fetchone()[0] == 1
        assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    assert sorted(path.name for path in output.iterdir()) == before


def downloaded(client: FlaskClient, query: str = "") -> list[dict[str, str]]:
    """The list as CSV, a row by name of its column."""
    with client.get(f"/detections.csv?{query}") as answer:
        assert (answer.status_code, answer.mimetype) == (200, "text/csv"), answer.text
        return list(csv.DictReader(io.StringIO(answer.data.decode("utf-8-sig"), newline="")))


@pytest.fixture
def by_twos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only two rows are read at once."""
    monkeypatch.setattr(download, "BATCH", 2)


@pytest.mark.usefixtures("by_twos")
def test_the_download_is_the_list_with_the_columns_of_the_export(
    fill: Fill, output: Path, client: FlaskClient, tmp_path: Path
) -> None:
    found = [replace(ROWS, score=number / 10, start_utc=NOON + timedelta(hours=7 * number)) for number in range(7)]
    fill(*found, replace(ROWS, start_utc=None, source="archive/a.wav"), replace(ROWS, channel_scores=(nan, 0.4)))
    with daemon.open_store(output) as store:
        give(store, 3, "orca", "clear", "Ada", NOON)
    write_exports(output, ["csv"], tmp_path)
    exported = (tmp_path / "detections.csv").read_bytes()
    with client.get("/detections.csv?sort=oldest") as answer:
        ours = answer.data
    assert ours.splitlines()[0] == exported.splitlines()[0]
    assert sorted(ours.splitlines()) == sorted(exported.splitlines())
    for query in ("", "sort=score", "verdict=none&score=0.2", "since=2026-03-02", "undated=1", "note=clear"):
        ids = [int(row["id"]) for row in downloaded(client, query)]
        assert ids == [id for ids in every(client, query) for id in ids] != []
    assert downloaded(client, "note=nothing") == []


def test_no_cell_of_the_download_is_a_formula(fill: Fill, client: FlaskClient) -> None:
    texts = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1"]
    fill(*(replace(ROWS, source=text, station=text, channel_scores=(nan, 0.4)) for text in texts))
    for row, text in zip(downloaded(client, "sort=oldest"), texts):
        assert row["file"] == row["station"] == f"'{text}" and row["channel_scores"] == "'- 0.4"


@pytest.mark.usefixtures("by_twos")
def test_rows_that_come_during_a_download_double_and_push_out_none(fill: Fill, client: FlaskClient) -> None:
    before = fill(*(replace(ROWS, start_utc=NOON + timedelta(hours=number)) for number in range(600)))
    answer = client.get("/detections.csv?sort=newest")
    parts = iter(answer.response)
    first = next(parts)
    later = fill(*(replace(ROWS, start_utc=NOON + timedelta(minutes=61 * number)) for number in range(0, 500, 50)))
    text = b"".join([first, *parts]).decode("utf-8-sig")
    answer.close()
    ids = [int(row["id"]) for row in csv.DictReader(io.StringIO(text, newline=""))]
    assert len(ids) == len(set(ids)) and set(before) <= set(ids) <= {*before, *later}


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("", "Sound_2026-03-01_2026-03-03_detections.csv"),
        ("since=2026-03-02", "Sound_2026-03-02_2026-03-03_detections.csv"),
        ("since=2026-03-01&until=2026-03-01&station=%3DHaro+Strait/1", "Haro-Strait-1_2026-03-01_detections.csv"),
        ("undated=1", "Sound_detections.csv"),
        ("note=nothing", "Sound_detections.csv"),
    ],
)
def test_a_download_is_named_by_station_and_days(fill: Fill, output: Path, query: str, name: str) -> None:
    fill(ROWS, replace(ROWS, start_utc=NOON + timedelta(days=2)), replace(ROWS, start_utc=None))
    client = create_app(replace(Settings(), output=output, station="Sound"), TOKEN).test_client()
    with client.get(f"/detections.csv?{query}") as answer:
        assert answer.headers["Content-Disposition"] == f"attachment; filename={name}"


def test_the_list_leads_to_the_download_of_the_same_filter(fill: Fill, client: FlaskClient) -> None:
    fill(ROWS, replace(ROWS, score=0.3))
    (address,) = re.findall(r'href="(/detections\.csv[^"]*)"', client.get("/?score=0.5&sort=score").text)
    assert [row["score"] for row in downloaded(client, address.partition("?")[2].replace("&amp;", "&"))] == ["0.8"]
    assert "/detections.csv" not in client.get("/?score=0.9").text


def test_a_download_takes_little_memory(output: Path, fill: Fill, client: FlaskClient) -> None:
    fill(replace(ROWS, source="x" * 1000))
    with sqlite3.connect(output / daemon.DATABASE) as connection:
        columns = ", ".join(row[1] for row in connection.execute("PRAGMA table_info(detections)") if row[1] != "id")
        many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)"
        connection.execute(f"INSERT INTO detections ({columns}) {many} SELECT {columns} FROM detections, n")
    connection.close()
    tracemalloc.start()
    try:
        with client.get("/detections.csv") as answer:
            size = sum(map(len, answer.response))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 10_000_000 and peak < 7_000_000


def test_a_damaged_index_is_told_with_the_cure(output: Path, fill: Fill, client: FlaskClient) -> None:
    """Found by fuzzing: the table is whole, and SQLite answers from the index alone."""
    fill(ROWS)
    path = output / daemon.DATABASE
    with closing(sqlite3.connect(path)) as connection:
        ((page,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'detections_by_time'")
        ((size_b,),) = connection.execute("PRAGMA page_size")
        connection.execute("PRAGMA journal_mode = DELETE")
    content = bytearray(path.read_bytes())
    start, end = (page - 1) * size_b, page * size_b
    content[start:end] = content[start:end].replace(b"-", b"\xff")
    path.write_bytes(content)
    answer = client.get("/effort")
    assert answer.status_code == 503 and "next start of the daemon" in answer.text


def test_a_download_of_a_damaged_log_is_told_and_ends(output: Path, fill: Fill, client: FlaskClient) -> None:
    (output / daemon.DATABASE).parent.mkdir()
    (output / daemon.DATABASE).write_bytes(b"SQLite format 3\0" + bytes(4096))
    for _ in range(MOST_DOWNLOADS + 1):
        with client.get("/detections.csv") as answer:
            assert answer.status_code == 503 and "downloaded already" not in answer.text
    (output / daemon.DATABASE).unlink()
    fill(ROWS)
    begun = [client.get("/detections.csv") for _ in range(MOST_DOWNLOADS)]
    refused = client.get("/detections.csv")
    assert refused.status_code == 503 and "try again" in refused.text
    for answer in begun:
        answer.close()
    assert len(downloaded(client)) == 1


@pytest.fixture
def session(output: Path, fill: Fill) -> int | None:
    """An hour and a half from noon: recorded, a gap, recorded at a step, and two detections."""
    with daemon.open_store(output) as store:
        timeline = FileTime(100, lambda sample: NOON + timedelta(seconds=sample / 100))
        ledger = Ledger(
            store, Session("array", True, 100, (0, 1), ("A", "B"), "Sound", "first-light"), timeline, Clocks()
        )
        ledger.recorded(0, 360_000)
        ledger.missing(Missing(360_000, 450_000, "gap", "device gone"))
        ledger.step(1, "longer hop")
        ledger.recorded(450_000, 540_000)
        number = ledger.session
        ledger.close()
    fill(
        replace(ROWS, session=number),
        replace(ROWS, session=number, verdict="orca", start_utc=NOON + timedelta(minutes=5)),
    )
    return number


def test_effort_is_that_of_the_ledger(session: int, client: FlaskClient) -> None:
    text = client.get("/effort").text
    row = re.search(r"<tr><th scope=\"row\">.*?2026-03-01</a></th>(.*?)</tr>", text, re.DOTALL)
    assert row is not None
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row.group(1))
    assert cells[:3] == ["1.00", "0.25", "0.25"]
    assert cells[5:] == ["2", "1.600", "device gone 15.0 min"]


def test_charts_are_well_formed_and_lie_within_their_frame(session: int, client: FlaskClient) -> None:
    text = client.get("/effort?since=2026-03-01&until=2026-03-02").text
    pictures = re.findall(r'<svg class="chart".*?</svg>', text, re.DOTALL)
    assert len(pictures) == 3
    for picture in pictures:
        for path in ElementTree.fromstring(picture).iter("path"):
            for x, y in re.findall(r"M([\d.-]+) ([\d.-]+)", path.attrib["d"]):
                assert 0 <= float(x) <= charts.WIDTH and 0 <= float(y) <= charts.HEIGHT


@pytest.mark.parametrize("query", ["since=2026-03-01&until=2026-03-01", "since=2026-02-27&until=2026-03-03"])
def test_detections_of_files_are_not_divided_by_hours_at_sea(
    session: int, fill: Fill, client: FlaskClient, query: str
) -> None:
    before = client.get(f"/effort?{query}").text
    fill(replace(ROWS, session=None, source="archive/a.wav"))
    rates = [
        re.findall(r"<title>Detections per hour listened.*?</svg>", text, re.DOTALL)
        for text in (before, client.get(f"/effort?{query}").text)
    ]
    assert rates[0] == rates[1] and len(rates[0]) == 1


def test_many_scores_are_counted_where_they_lie(
    fill: Fill, output: Path, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(season, "MOST_DOTS", 10)
    asked = season.chosen("2026-02-28", "2026-03-02", 1, None)
    points = [(asked.since + timedelta(hours=7.4 * number), (number % 11 + 0.1) / 11) for number in range(9)]
    points += [(asked.until - timedelta(microseconds=1), 1.0), (asked.since, 0.0), (asked.since, 0.001)]
    fill(*(replace(ROWS, start_utc=utc, score=score) for utc, score in points))
    wanted = Counter(
        (int((utc - asked.since) / timedelta(days=3) * charts.ACROSS), min(charts.UP - 1, int(score * charts.UP)))
        for utc, score in points
    )
    with Store.reader(output / daemon.DATABASE) as reader, reader.transaction() as connection:
        found = season.scores(connection, asked)
    assert (found.count, found.dots, found.cells) == (len(points), {}, wanted)
    assert "Darker is more detections" in client.get("/effort?since=2026-02-28&until=2026-03-02").text


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    found = charts.ticks(low, low + span)
    assert 1 <= len(found) <= charts.TICKS_Y + 2
    assert all(low - span * 1e-6 <= tick <= low + span * (1 + 1e-6) for tick in found)


@given(st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1)), st.floats(0.04, 3650))
def test_time_ticks_are_few_and_inside(since: datetime, days: float) -> None:
    start = since.replace(tzinfo=timezone.utc)
    end = start + timedelta(days=days)
    found = charts.time_ticks(start, end)
    assert len(found) <= charts.TICKS_X + 5
    assert all(start <= moment <= end for moment, _ in found)


@pytest.mark.parametrize(
    "query",
    [
        "days=0",
        "days=x",
        "since=2026-03-02&until=2026-03-01",
        "since=0001-01-01",
        "until=0001-01-01",
        "until=9999-12-31",
        "since=no",
    ],
)
def test_a_wrong_range_is_told(session: int, client: FlaskClient, query: str) -> None:
    assert client.get(f"/effort?{query}").status_code == 400


def test_status_tells_a_daemon_from_none(session: int, output: Path, client: FlaskClient) -> None:
    seen = client.get("/status.json").get_json()
    assert seen["state"] == "not running"
    assert seen["account"]["step_name"] == "longer hop"
    assert seen["detections"]["unreviewed"] == 1
    with daemon.only_writer(output):
        assert client.get("/status.json").get_json()["state"] == "silent"
    assert "Sound" in client.get("/status").text


def test_a_lock_is_seen_whatever_device_the_system_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, table = tmp_path / "lock", tmp_path / "locks"
    file.touch()
    assert status.locked(file) is False
    with file.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert status.locked(file) is True
        number = file.stat().st_ino
        for place, kind, seen in ((number, "FLOCK", True), (number + 1, "FLOCK", False), (number, "POSIX", False)):
            table.write_text(f"1: {kind}  ADVISORY  WRITE 21538 ff:fe:{place} 0 EOF\n")
            monkeypatch.setattr(status, "LOCKS", table)
            assert status.locked(file) is seen


def test_thumbnails_are_small_and_only_of_the_output_folder(
    output: Path, fill: Fill, client: FlaskClient, tmp_path: Path
) -> None:
    picture = Path(__file__).parents[2] / "docs" / "snapshot.png"
    outside = tmp_path / "secret.png"
    outside.write_bytes(picture.read_bytes())
    daemon.make_folders(output)
    (output / "snapshots" / "a.png").write_bytes(picture.read_bytes())
    (output / "snapshots" / "link.png").symlink_to(outside)
    (output / "snapshots" / "text.png").write_text("no picture")
    (output / "snapshots" / "cut.png").write_bytes(picture.read_bytes()[:5000])
    names = [
        "snapshots/a.png",
        "snapshots/text.png",
        "snapshots/cut.png",
        "../secret.png",
        str(outside),
        "snapshots/link.png",
        "snapshots/gone.png",
        "snapshots",
        None,
    ]
    ids = fill(*(replace(ROWS, snapshot=name) for name in names))
    answers = [client.get(f"/thumbnail/{id}.jpg") for id in ids]
    assert [answer.status_code for answer in answers] == [200, *[404] * 8]
    assert len(answers[0].data) < 20_000
    assert client.get(f"/thumbnail/{2**70}.jpg").status_code == 404
    assert client.get("/?until=9999-12-31").status_code == 400


def test_the_whole_page_is_small(fill: Fill, client: FlaskClient) -> None:
    fill(*(replace(ROWS, start_utc=NOON + timedelta(minutes=number)) for number in range(100)))
    sizes = [
        len(client.get(address).data) for address in ("/", "/static/style.css", "/static/list.js", "/static/icon.svg")
    ]
    assert sum(sizes) < 100_000
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", client.get("/").text)
    assert filters.Filter().fields() == {}
