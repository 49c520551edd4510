// The page of one detection: sound with a playhead on every picture, verdicts by key, pictures as they are made.
"use strict";

document.documentElement.classList.add("scripted");

const page = document.getElementById("detection");
const audio = document.getElementById("audio");
const form = document.getElementById("verdict");
const length = Number(page.dataset.length || 0);
const event_s = "eventStart" in page.dataset ? [Number(page.dataset.eventStart), Number(page.dataset.eventEnd)] : null;
const byId = (id) => document.getElementById(id);

// --- sound -----------------------------------------------------------------------------------------------------
const playheads = document.querySelectorAll(".playhead");
let looping = false;
let wanted_s = null; // where to go on once another channel is loaded

function show() {
  const at = wanted_s === null ? audio.currentTime : wanted_s;
  const place = `${(100 * at) / length}%`;
  for (const line of playheads) {
    line.setAttribute("x1", place);
    line.setAttribute("x2", place);
  }
  byId("seek").value = at;
  byId("clock").textContent = `${at.toFixed(2)} / ${length.toFixed(2)} s`;
  page.classList.toggle("moved", at > 0 || !audio.paused);
}

function tick() {
  if (looping && event_s && audio.currentTime >= event_s[1]) audio.currentTime = Math.max(0, event_s[0]);
  show();
  if (!audio.paused) requestAnimationFrame(tick);
}

function seek(seconds) {
  const at = Math.min(Math.max(seconds, 0), length);
  if (wanted_s === null) audio.currentTime = at;
  else wanted_s = at;
  show();
}

function toggle() {
  if (!audio.paused) return audio.pause();
  if (looping && event_s && (audio.currentTime < event_s[0] || audio.currentTime >= event_s[1])) seek(event_s[0]);
  return audio.play().catch((fault) => say(`The clip cannot be played: ${fault.message}`));
}

function listen(channel) {
  const choice = [...byId("channel").options].find((option) => option.value === channel);
  if (!choice) return;
  const playing = !audio.paused;
  byId("channel").value = channel;
  for (const button of document.querySelectorAll(".listen"))
    button.setAttribute("aria-pressed", String(button.dataset.channel === channel));
  for (const article of document.querySelectorAll(".channel"))
    article.classList.toggle("heard-now", article.dataset.channel === channel);
  if (new URL(choice.dataset.src, location).href === audio.src) return;
  wanted_s = wanted_s === null ? audio.currentTime : wanted_s;
  audio.src = choice.dataset.src;
  slow();
  if (playing) toggle();
}

function slow() {
  audio.preservesPitch = false;
  audio.defaultPlaybackRate = audio.playbackRate = Number(byId("speed").value);
}

function loop() {
  if (!event_s) return;
  looping = !looping;
  byId("loop").setAttribute("aria-pressed", String(looping));
  if (looping) seek(event_s[0]);
}

let amplifier = null;
function amplify() {
  const level_db = Number(byId("gain").value);
  byId("gain-text").textContent = `${level_db > 0 ? "+" : ""}${level_db} dB`;
  if (!amplifier && level_db === 0) return;
  if (!amplifier) {
    const context = new AudioContext();
    amplifier = context.createGain();
    const limiter = new DynamicsCompressorNode(context, { threshold: -6, knee: 0, ratio: 20, attack: 0.002 });
    context.createMediaElementSource(audio).connect(amplifier).connect(limiter).connect(context.destination);
    context.resume();
  }
  amplifier.gain.value = 10 ** (level_db / 20);
}

function drag(plot) {
  const go = (move) => {
    const box = plot.getBoundingClientRect();
    seek((length * (move.clientX - box.left)) / box.width);
  };
  plot.addEventListener("pointerdown", (down) => {
    if (down.button !== 0) return;
    plot.setPointerCapture(down.pointerId);
    go(down);
  });
  plot.addEventListener("pointermove", (move) => plot.hasPointerCapture(move.pointerId) && go(move));
}

function unfocus(click) {
  if (click.detail > 0) click.currentTarget.blur(); // after a click of the mouse the space bar plays again
}

function prepareSound() {
  audio.addEventListener("loadedmetadata", () => {
    if (wanted_s !== null) audio.currentTime = wanted_s;
    wanted_s = null;
    show();
  });
  for (const name of ["play", "pause", "ended"])
    audio.addEventListener(name, () => {
      byId("play").firstElementChild.textContent = audio.paused ? "▶" : "❚❚";
      byId("play").setAttribute("aria-label", audio.paused ? "Play" : "Pause");
      tick();
    });
  audio.addEventListener("seeked", show);
  audio.addEventListener("error", () => say("The clip cannot be played."));
  byId("play").addEventListener("click", (click) => { unfocus(click); toggle(); });
  byId("seek").addEventListener("input", () => seek(Number(byId("seek").value)));
  byId("channel").addEventListener("change", () => listen(byId("channel").value));
  byId("speed").addEventListener("change", slow);
  byId("gain").addEventListener("input", amplify);
  byId("gain").value = 0;
  byId("speed").value = "1";
  byId("channel").value = page.dataset.best;
  if (byId("loop")) byId("loop").addEventListener("click", (click) => { unfocus(click); loop(); });
  for (const button of document.querySelectorAll(".listen"))
    button.addEventListener("click", (click) => { unfocus(click); listen(button.dataset.channel); });
  document.querySelectorAll(".plot, .curve").forEach(drag);
  listen(page.dataset.best);
  show();
}

// --- what the network looked at --------------------------------------------------------------------------------
const svg = (article, backbone) =>
  [...article.querySelectorAll(".plot[data-kind=relevance]")].find((plot) => plot.dataset.backbone === backbone);

function hang(image, picture) {
  image.setAttribute("x", `${(100 * picture.start_s) / length}%`);
  image.setAttribute("width", `${(100 * picture.length_s) / length}%`);
  image.setAttribute("href", picture.picture);
}

function showLook(article, look) {
  for (const panel of look.panels) {
    const plot = svg(article, panel.backbone) || article.querySelector(".plot[data-kind=relevance]");
    hang(plot.querySelector(".veil"), panel);
  }
  const points = look.curve.map(([at, score]) => `${(1000 * at) / length},${100 - 100 * score}`);
  article.querySelector(".score-line").setAttribute("points", points.join(" "));
}

async function ask(article) {
  const state = article.querySelector(".look-state");
  for (;;) {
    const answer = await fetch(article.dataset.look, { headers: { Accept: "application/json" } });
    const look = await answer.json();
    if (answer.status === 202) {
      state.textContent = "Being computed, behind everything else on this machine…";
      await new Promise((done) => setTimeout(done, 700));
    } else if (look.state === "made") {
      showLook(article, look);
      state.textContent = look.curve.length ? "" : "Nothing of it could be scored.";
      return;
    } else {
      state.textContent = `It cannot be shown: ${look.text || look.error}`;
      return;
    }
  }
}

async function askAll() {
  const articles = [...document.querySelectorAll(".channel")];
  articles.sort((a, b) => (b.dataset.channel === page.dataset.best) - (a.dataset.channel === page.dataset.best));
  for (const article of articles)
    try {
      await ask(article);
    } catch (fault) {
      article.querySelector(".look-state").textContent = "The server does not answer.";
    }
  page.dataset.looked = "1";
}

// --- verdicts --------------------------------------------------------------------------------------------------
const UNDO = "orcawatch-undo";
const CALLED = { orca: "orca", not_orca: "not orca", unsure: "unsure", "": "no verdict" };

function say(text, action) {
  const toast = byId("toast");
  toast.textContent = text;
  if (action) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Undo (z)";
    button.addEventListener("click", action);
    toast.append(button);
  }
  toast.hidden = false;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { toast.hidden = true; }, 6000);
}

async function post(address, fields) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.set(name, value);
  const csrf = document.querySelector("meta[name=csrf]");
  if (csrf) body.set("csrf", csrf.content);
  const answer = await fetch(address, { method: "POST", body, headers: { Accept: "application/json" } });
  return { code: answer.status, ...(await answer.json()) };
}

async function send(address, fields) {
  const fault = byId("fault");
  fault.textContent = "";
  try {
    const answer = await post(address, fields);
    if (answer.code < 400) return answer;
    fault.textContent = answer.error;
    if (answer.code === 409) form.elements.seen.value = answer.seen;
  } catch (problem) {
    fault.textContent = "Not saved: the server does not answer. What you typed is still here.";
  }
  fault.scrollIntoView({ block: "nearest" });
  return null;
}

let sending = false;
async function judge(verdict, stay) {
  if (sending || form.elements.note.disabled) return explainLocked();
  sending = true;
  const fields = { verdict, note: form.elements.note.value, reviewer: form.elements.reviewer.value, seen: form.elements.seen.value };
  const answer = await send(form.action, fields);
  sending = false;
  if (!answer) return;
  const before = { verdict: page.dataset.verdict, note: page.dataset.note, reviewer: fields.reviewer, seen: answer.seen };
  const undo = { id: page.dataset.id, action: form.action, address: location.href, said: verdict, before };
  sessionStorage.setItem(UNDO, JSON.stringify([...undos(), undo].slice(-50)));
  sessionStorage.setItem("orcawatch-told", stay ? "" : "1");
  location.assign(!stay && answer.next ? answer.next : location.href);
}

function explainLocked() {
  if (form.elements.note.disabled) say("Verdicts need the token: open the address that orcawatch serve printed.");
}

const undos = () => JSON.parse(sessionStorage.getItem(UNDO) || "[]");

async function undo() {
  const all = undos();
  const last = all.pop();
  if (!last || sending) return;
  sending = true;
  const answer = await send(last.action, last.before);
  sending = false;
  if (!answer) return;
  sessionStorage.setItem(UNDO, JSON.stringify(all));
  sessionStorage.setItem("orcawatch-told", "");
  location.assign(last.address);
}

function prepareVerdicts() {
  form.addEventListener("submit", (submit) => {
    submit.preventDefault();
    const button = submit.submitter;
    judge(button ? button.value : page.dataset.verdict, !button || button.id === "keep" || button.id === "back");
  });
  const last = undos().pop();
  if (last && sessionStorage.getItem("orcawatch-told")) {
    const waits = last.id === page.dataset.id ? "; no other waits" : "";
    say(`Detection ${last.id}: ${CALLED[last.said]}${waits}`, undo);
    sessionStorage.setItem("orcawatch-told", "");
  }
}

// --- keys ------------------------------------------------------------------------------------------------------
const follow = (id) => byId(id) && location.assign(byId(id).href);
const KEYS = {
  o: () => judge("orca"), n: () => judge("not_orca"), u: () => judge("unsure"),
  z: undo, Backspace: undo,
  j: () => follow("next"), ArrowRight: () => follow("next"), k: () => follow("previous"), ArrowLeft: () => follow("previous"),
  e: () => byId("note").focus(), "/": () => byId("note").focus(),
  "?": () => byId("help").showModal(),
};
const SOUND_KEYS = {
  " ": toggle, l: loop, m: () => listen("mix"),
  s: () => { byId("speed").selectedIndex = (byId("speed").selectedIndex + 1) % 3; slow(); },
};

function typed(press) {
  const target = press.target;
  if (target.matches("textarea") && press.key === "Enter" && (press.ctrlKey || press.metaKey)) {
    press.preventDefault();
    judge(page.dataset.verdict, true);
  } else if (target.matches("textarea, input[name=reviewer]") && press.key === "Escape") target.blur();
}

function pressed(press) {
  typed(press);
  const target = press.target;
  if (press.ctrlKey || press.metaKey || press.altKey || byId("help").open) return;
  if (target.matches("textarea, select, input:not([type=range])")) return;
  if (target.matches("input[type=range]") && press.key.startsWith("Arrow")) return;
  if (target.matches("button, a, summary") && [" ", "Enter"].includes(press.key)) return;
  const act = KEYS[press.key] || (audio && (SOUND_KEYS[press.key] || (/^\d$/.test(press.key) && (() => listen(press.key)))));
  if (!act || (press.repeat && "onuz".includes(press.key))) return;
  press.preventDefault();
  act();
}

document.addEventListener("keydown", pressed);
byId("help-button").addEventListener("click", () => byId("help").showModal());
prepareVerdicts();
if (audio) {
  prepareSound();
  if (page.dataset.bundle === "1") askAll();
}
