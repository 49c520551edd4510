// j and k (or the arrows) go through the rows, Enter opens: the links themselves are focused, so that all else is the browser's.
"use strict";
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, button, summary")) return;
  const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
  if (!step) return;
  const links = [...document.querySelectorAll(".row .when a")];
  const at = links.indexOf(document.activeElement);
  const next = at < 0 ? (step > 0 ? 0 : links.length - 1) : at + step;
  if (links[next]) {
    links[next].focus();
    links[next].closest(".row").scrollIntoView({ block: "nearest" });
    event.preventDefault();
  } else {
    document.querySelector(step > 0 ? ".pages [rel=next]" : ".pages [rel=prev]")?.focus();
  }
});
