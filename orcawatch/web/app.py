"""The review page as a Flask application."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urlencode

from flask import Flask, Response, abort, current_app, g, jsonify, redirect, render_template, request, url_for
from flask.globals import request_ctx
from markupsafe import Markup
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as AnyResponse

from .._version import __version__
from ..config import Settings
from ..errors import InputError, OrcawatchError
from ..recovery import found_by_sqlite, passed_over
from . import access, detection, download, effort, lists, status, words
from .access import COOKIE, COOKIE_S, Access
from .filters import Filter
from .site import KEY, Site, site

log = logging.getLogger(__name__)

KINDS = ("text/html", "application/json")
WORDS = (
    words.utc, words.clock, words.iso, words.day, words.duration, words.offset, words.tail, words.bearing, words.unit,
)  # fmt: skip
MOST_BODY_B = 64 << 10
STATIC_S = 3600  # a browser may keep style and scripts; their addresses change with the version
TITLES = {
    400: "That cannot be asked", 401: "The token is needed", 403: "Not allowed", 404: "Not here",
    405: "Not allowed", 413: "Too much", 429: "Too many tries", 500: "A fault of the page",
    503: "The log cannot be read",
}  # fmt: skip


def create_app(settings: Settings, token: str, always: bool = False) -> Flask:
    """The application.

    Parameters
    ----------
    settings : of the station; its output folder is looked at.
    token : what verdicts, and other addresses, need.
    always : whether reading from this machine needs the token, too.
    """
    app = Flask(__name__)
    rules = Access(token, always)
    app.extensions[KEY] = Site(settings, rules)
    app.config.update(
        OUTPUT=settings.output, SETTINGS=settings, MAX_CONTENT_LENGTH=MOST_BODY_B, MAX_FORM_PARTS=50,
        SEND_FILE_MAX_AGE_DEFAULT=STATIC_S,
    )  # fmt: skip
    app.jinja_options = {"trim_blocks": True, "lstrip_blocks": True}
    app.before_request(let_in)
    app.after_request(finished)
    app.context_processor(common)
    for word in WORDS:
        app.add_template_filter(word)
    app.register_error_handler(HTTPException, refused)
    app.register_error_handler(OrcawatchError, unread)
    app.register_error_handler(Exception, broken)
    app.add_url_rule("/healthz", "health", health)
    app.add_url_rule("/token", "login", login, methods=["POST"])
    app.register_blueprint(lists.blueprint)
    app.register_blueprint(download.blueprint)
    app.register_blueprint(effort.blueprint)
    app.register_blueprint(status.blueprint)
    app.register_blueprint(detection.blueprint)
    return app


def common() -> dict[str, Any]:
    """What every template knows."""
    return {
        "station": site().settings.station,
        "may_write": g.get("may_write", False),
        "csrf": site().access.csrf if g.get("may_write") else "",
        "csrf_field": csrf_field,
        "version": __version__,
        "output": site().output,
        "pages": current_app.view_functions,
        "detection_link": detection_link,
        "static": lambda name: url_for("static", filename=name, v=__version__),
    }


def detection_link(id: int, wanted: Filter) -> str:
    """Address of a detection's page, from which the list's filter goes on."""
    return f"/detection/{id}" + (f"?{wanted.query}" if wanted.query else "")


def csrf_field() -> Markup:
    """A hidden field for every form that writes."""
    return Markup('<input type="hidden" name="csrf" value="{}">').format(site().access.csrf)


def finished(response: Response) -> Response:
    """Every response gets the headers that keep other sites out; pages are not kept by the browser."""
    kept = {} if "Cache-Control" in response.headers else {"Cache-Control": "no-store"}
    for name, value in access.secured(response.headers, kept).items():
        response.headers[name] = value
    return response


def health() -> Response:
    """That the page is served; whether the log can be read is told by /status.json."""
    return jsonify(status="ok", version=__version__)


def login() -> AnyResponse:
    """Take a token from the form of the page that asks for it."""
    access.check_origin(request)
    return entered(request.form.get("token", "").strip(), url_for("lists.page"))


def let_in() -> AnyResponse | None:
    """Take a token from the address, which then no longer shows it; else look whether the request may pass."""
    try:
        token = request.args.get("token")
    except UnicodeDecodeError:
        abort(400, "The address holds bytes that are no UTF-8: write them as %XX.")
    if token is None or request.method != "GET":
        site().access.check()
        return None
    rest = urlencode([(name, value) for name, value in request.args.items(multi=True) if name != "token"])
    path = "/" + quote(request.path).lstrip("/")
    return entered(token, f"{path}?{rest}" if rest else path)


def entered(token: str, address: str) -> AnyResponse:
    """Go on to an address with the token as a cookie; 401 where it is wrong."""
    if not site().access.accepts(token, request):
        abort(401, "That is not the token.")
    response = redirect(address, 303)
    response.set_cookie(
        COOKIE, site().access.cookie, max_age=COOKIE_S, httponly=True, samesite="Strict",
        secure=access.is_encrypted(request),
    )  # fmt: skip
    return response


def refused(fault: HTTPException) -> tuple[str | Response, int] | HTTPException:
    """What went wrong, as a page, or as JSON where that is asked for."""
    code = fault.code or 500
    return told(code, fault.description or fault.name) if code >= 400 else fault


def unread(fault: OrcawatchError) -> tuple[str | Response, int]:
    """A wrong value in the address, or a log that cannot be read or written."""
    return told(400 if isinstance(fault, InputError) else 503, str(fault))


def broken(fault: Exception) -> tuple[str | Response, int]:
    """A log with damaged rows, or a mistake of ours: the journal tells it, the page does not."""
    log.error("%s %s failed", request.method, request.path, exc_info=fault)
    with suppress(OSError):
        if (damage := passed_over(site().database) or found_by_sqlite(site().database)) is not None:
            return told(503, f"The log is damaged ({damage}): the next start of the daemon rescues what can be read.")
    return told(500, "The page made a mistake; the journal of `orcawatch serve` says more.")


def told(code: int, text: str) -> tuple[str | Response, int]:
    """A fault, for people or for scripts."""
    if request.path.endswith(".json") or request.accept_mimetypes.best_match(KINDS) == KINDS[1]:
        return jsonify(error=text), code
    if request_ctx.url_adapter is None:  # a `Host` that is none: a page could not name its own files
        return Response(f"{TITLES.get(code, text)}: {text}\n", mimetype="text/plain"), code
    g.setdefault("may_write", False)
    return render_template("error.html", code=code, title=TITLES.get(code, "That did not work"), text=text), code
