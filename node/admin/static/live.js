// Says when the page is no longer live, and keeps the window's title in step. Never fetches anything itself.
"use strict";

const STALE_MS = 8000;
const banner = document.getElementById("stale");
let answeredAt = Date.now();
let problem = "";

function state() {
  return document.getElementById("state").dataset;
}

function look() {
  const stale = problem !== "" || Date.now() - answeredAt > STALE_MS;
  document.body.classList.toggle("is-stale", stale);
  const text = stale ? `Not live: ${problem || "no answer from the node"}. Shown is ${state().at}.` : "";
  if (banner.textContent !== text) banner.textContent = text;
  banner.hidden = !stale;
}

document.body.addEventListener("htmx:after:request", (event) => {
  const status = event.detail.ctx.response.status;
  problem = status === 503 ? "the database does not answer" : status >= 400 ? `the node answered ${status}` : "";
  if (problem === "") answeredAt = Date.now();
  look();
});

document.body.addEventListener("htmx:error", () => {
  problem = "the node cannot be reached";
  look();
});

document.body.addEventListener("htmx:after:swap", () => {
  document.title = state().title;
});

document.addEventListener("visibilitychange", () => {
  answeredAt = Date.now(); // timers sleep in a hidden tab: give the next answer time to come
});

setInterval(look, 1000);
