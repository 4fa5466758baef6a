// Says when the page is no longer live, keeps the title in step, and sends forms without leaving the page.
"use strict";

const STALE_MS = 10000;
const banner = document.getElementById("stale");
const live = document.getElementById("live");
const csrf = document.querySelector('meta[name="csrf"]').content;
const plainTitle = document.title.replace(/^\(\d+\) /, "");
const refreshes = /every/.test(live.getAttribute("hx-trigger"));
let answeredAt = Date.now();
let problem = "";

function state() {
  return document.getElementById("state").dataset;
}

function look() {
  const stale = problem !== "" || (refreshes && Date.now() - answeredAt > STALE_MS);
  document.body.classList.toggle("is-stale", stale);
  const text = stale ? `Not live: ${problem || "no answer from the node"}. Shown is ${state().at}.` : "";
  if (banner.textContent !== text) banner.textContent = text;
  banner.hidden = !stale;
}

function problemOf(status) {
  if (status === 401) return "you are logged out – load the page again";
  if (status === 503) return "the database does not answer";
  return status >= 400 ? `the node answered ${status}` : "";
}

document.body.addEventListener("htmx:after:request", (event) => {
  problem = problemOf(event.detail.ctx.response.status);
  if (problem === "") answeredAt = Date.now();
  look();
});

document.body.addEventListener("htmx:error", () => {
  problem = "the node cannot be reached";
  look();
});

document.body.addEventListener("htmx:after:swap", () => {
  const unread = Number(state().unread);
  document.title = unread ? `(${unread}) ${plainTitle}` : plainTitle;
  document.dispatchEvent(new Event("ichnode:shown"));
});

document.addEventListener("visibilitychange", () => {
  answeredAt = Date.now(); // timers sleep in a hidden tab: give the next answer time to come
});

setInterval(look, 1000);

// Forms: send, stay, refresh. Without this script the same forms work with a redirection.
const toast = document.getElementById("toast");
let toastTimer = 0;

function say(text, bad) {
  toast.textContent = text;
  toast.classList.toggle("bad", Boolean(bad));
  toast.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { toast.hidden = true; }, bad ? 8000 : 2500);
}

async function send(form, submitter) {
  const body = new URLSearchParams(new FormData(form, submitter));
  const options = { method: "POST", body, headers: { "X-Quiet": "1", "X-CSRF-Token": csrf, Accept: "application/json" } };
  const buttons = [...form.querySelectorAll("button")];
  for (const button of buttons) button.disabled = true;
  try {
    const target = submitter && submitter.hasAttribute("formaction") ? submitter.formAction : form.action;
    const answer = await fetch(target, options);
    if (answer.ok) {
      say("Done.");
    } else {
      const told = await answer.json().catch(() => ({}));
      say(typeof told.detail === "string" ? told.detail : `The node answered ${answer.status}.`, true);
    }
  } catch {
    say("The node cannot be reached.", true);
  }
  for (const button of buttons) button.disabled = false;
  htmx.trigger(live, "refresh");
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (!form.classList.contains("act")) return;
  event.preventDefault();
  if (form.dataset.confirm && !window.confirm(form.dataset.confirm)) return;
  send(form, event.submitter);
});

document.addEventListener("change", (event) => {
  if (event.target.matches(".filter select")) event.target.form.requestSubmit();
});
