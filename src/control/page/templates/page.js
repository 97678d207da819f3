// Keeps the page as it is now: replaces the parts that the server sends, and counts the seconds in between.
"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  // The server's clock may differ from this one.
  let clock = Number(document.body.dataset.now) - Date.now();
  let seen = Date.now();
  let said = "";

  const count = (value, unit) => `${value} ${unit}${value === 1 ? "" : "s"}`;
  const past = (seconds) => {
    if (seconds < 2) return "just now";
    if (seconds < 120) return `${count(Math.round(seconds), "second")} ago`;
    if (seconds < 7200) return `${count(Math.round(seconds / 60), "minute")} ago`;
    if (seconds < 172800) return `${count(Math.round(seconds / 3600), "hour")} ago`;
    return `${count(Math.round(seconds / 86400), "day")} ago`;
  };
  const tick = () => {
    for (const time of document.querySelectorAll("time[data-ago]")) {
      const ago = (Date.now() + clock - Date.parse(time.dateTime)) / 1000;
      const text = past(ago);
      if (time.textContent !== text) time.textContent = text;
    }
  };

  const replace = (id, html) => {
    const part = find(id);
    if (!part) return;
    const focused = part.contains(document.activeElement) && document.activeElement.dataset.key;
    part.innerHTML = html;
    if (focused) part.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  };
  // A screen reader hears the sentence when it says something else, not when a number in it has changed.
  const announce = (aloud) => {
    const headline = find("sentence").querySelector("h1").textContent;
    const kind = headline.replace(/[\d.,]+/g, "");
    document.title = `${headline} · cloud-sync`;
    if (aloud && kind !== said) find("announce").textContent = headline;
    said = kind;
  };

  const lost = () => {
    const time = new Date(seen).toLocaleTimeString();
    find("lost").textContent = `This page has lost its connection to cloud-sync. What it shows is from ${time}.`;
    find("lost").hidden = false;
  };
  const listen = () => {
    const events = new EventSource("/cloud-sync/events");
    events.onmessage = (event) => {
      const update = JSON.parse(event.data);
      clock = update.now - Date.now();
      seen = Date.now();
      find("lost").hidden = true;
      for (const [id, html] of Object.entries(update.parts)) replace(id, html);
      announce(true);
      tick();
    };
    events.onerror = () => {
      lost();
      if (events.readyState !== EventSource.CLOSED) return;
      // Signed out, or too many browsers.
      fetch("/cloud-sync", { redirect: "manual" })
        .then((answer) => (answer.type === "opaqueredirect" ? location.reload() : setTimeout(listen, 30000)))
        .catch(() => setTimeout(listen, 5000));
    };
  };
  // What became of a form is old news after a while.
  setTimeout(() => find("notice")?.remove(), 20000);
  announce(false);
  tick();
  setInterval(tick, 1000);
  listen();
})();
