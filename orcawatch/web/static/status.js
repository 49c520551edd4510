// Brings the page up to date every few seconds, while somebody looks at it.
"use strict";
(() => {
  const live = document.getElementById("live"), stale = document.getElementById("stale");
  const look = async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch(live.dataset.from, { headers: { Accept: "application/json" }, signal: AbortSignal.timeout(8000) });
      const found = await answer.json();
      if (!answer.ok) throw new Error(found.error);
      if (!live.contains(document.activeElement)) live.innerHTML = found.html; // made by the same template as the page
      stale.textContent = "";
    } catch (fault) {
      stale.textContent = `Not up to date: ${fault.message}`;
    }
  };
  setInterval(look, 5000);
  document.addEventListener("visibilitychange", look);
})();
