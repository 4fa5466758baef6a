// Keys: j and k go through the rows of a list, Enter opens one, a y n press its buttons. Never acts by itself.
"use strict";

let chosen = ""; // id of the chosen row: the list is drawn anew every few seconds

function rows() {
  return [...document.querySelectorAll('[data-keys="rows"] tr.row')];
}

function show(scroll) {
  for (const row of rows()) {
    const is = row.id === chosen;
    row.classList.toggle("chosen", is);
    row.setAttribute("aria-selected", is ? "true" : "false");
    if (is && scroll) row.scrollIntoView({ block: "nearest" });
  }
}

function step(by) {
  const all = rows();
  if (!all.length) return;
  const at = all.findIndex((row) => row.id === chosen);
  const next = at < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(Math.max(at + by, 0), all.length - 1);
  chosen = all[next].id;
  show(true);
}

function press(key) {
  const row = document.getElementById(chosen);
  const within = rows().length ? row : document;
  const form = within && within.querySelector(`form[data-key="${key}"]`);
  if (!form) return false;
  if (row) {
    const all = rows(); // an acknowledged row leaves the list of unread ones: stand on the next
    const at = all.indexOf(row);
    if (key === "a") chosen = (all[at + 1] || all[at - 1] || row).id;
  }
  form.requestSubmit();
  return true;
}

const dialog = document.getElementById("keys");
document.getElementById("help").addEventListener("click", () => dialog.showModal());

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || dialog.open) return;
  if (event.target.matches("input:not([type=range]):not([type=checkbox]), select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const onList = rows().length > 0;
  if (event.key === "j" && onList) step(1);
  else if (event.key === "k" && onList) step(-1);
  else if (event.key === "Enter" && onList && document.getElementById(chosen) && event.target === document.body) {
    location.assign(document.getElementById(chosen).dataset.href);
  } else if (["a", "y", "n"].includes(event.key)) {
    if (!press(event.key)) return;
  } else if (event.key === "u") {
    const back = document.querySelector('a[data-key="u"]');
    if (back) back.click();
  } else if (event.key === "/") {
    const search = document.getElementById("search");
    if (!search) return;
    search.focus();
  } else if (event.key === "?") dialog.showModal();
  else return;
  event.preventDefault();
});

document.addEventListener("ichnode:shown", () => show(false));
